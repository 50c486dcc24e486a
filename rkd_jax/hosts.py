"""Several processes that are one run: joining them, who writes, and what all must agree on.

Every process runs the same program on global arrays. Whatever hangs on a file, a signal or a clock
is asked of one process and told to all: else some would wait in a collective that others never
enter. The first process alone writes files, to a file system that all of them see. A process that
dies ends the others too (JAX's coordination service); the same command goes on from there.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from rkd_jax.errors import UserError

COORDINATOR, PROCESSES, PROCESS = NAMES = ("RKD_COORDINATOR", "RKD_PROCESSES", "RKD_PROCESS")
AUTO = "auto"  # RKD_PROCESSES: JAX finds the others, by a TPU VM's metadata
# of clusters that start several processes: how many they are, in their own variables
COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
WORKERS = "TPU_WORKER_HOSTNAMES"  # of a slice of a TPU pod on Kubernetes, with commas
SHUTDOWN = 60  # seconds that a process waits for the others to end

_number, _count = 0, 1


def join(environ: Mapping[str, str] = os.environ) -> None:
  """Makes this process one of several where the environment says so; before JAX is used.

  By RKD_COORDINATOR (HOST:PORT of the first), RKD_PROCESSES and RKD_PROCESS (0, 1, ...), or by what
  `srun`, `mpirun` or a TPU slice set. With RKD_PROCESSES=auto, or where JAX_COORDINATOR_ADDRESS is
  set (Kubernetes), JAX finds the rest.

  Raises:
    UserError: some of these are missing or wrong, or the others cannot be reached.
  """
  global _number, _count
  given = {name: environ[name] for name in NAMES if environ.get(name)}
  if given and given != {PROCESSES: AUTO}:
    arguments: dict[str, Any] = told(*(given.get(name, "") for name in NAMES))
    if arguments["num_processes"] == 1:
      return
  elif given or several(environ):
    arguments = {}
  else:
    return
  import jax

  try:
    # it would catch SIGTERM itself, and then not end the process
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(**arguments, shutdown_timeout_seconds=SHUTDOWN)
    _number, _count = jax.process_index(), jax.process_count()
    wait()  # the first time takes no long delay
  except Exception as error:  # JAX, its clusters and their clients each raise their own
    known = ", ".join(f"{name}={value}" for name, value in given.items())
    raise UserError(
      f"This process cannot join the others of the run: {line(error)} Look at "
      f"{known or 'what the cluster says of its hosts'}, and whether all were started and the "
      "first can be reached."
    ) from error


def told(coordinator: str, processes: str, process: str) -> dict[str, Any]:
  """The three variables as JAX takes them; a `UserError` where one is missing or no number."""
  missing = [
    n for n, v in zip(NAMES, (coordinator, processes, process), strict=True) if not v
  ]  # fmt: skip
  if missing:
    raise UserError(f"{' and '.join(missing)} not set: {', '.join(NAMES)} go together.")
  if not (processes.isdecimal() and process.isdecimal() and int(process) < int(processes)):
    raise UserError(
      f"{PROCESS} is {process!r}, {PROCESSES} {processes!r}; of N processes they are 0 to N - 1."
    )
  if not coordinator.rpartition(":")[2].isdecimal() or ":" not in coordinator:
    raise UserError(f"{COORDINATOR} is {coordinator!r}; it is HOST:PORT of the first process.")
  return {
    "coordinator_address": coordinator,
    "num_processes": int(processes),
    "process_id": int(process),
    "cluster_detection_method": "deactivate",
  }


def several(environ: Mapping[str, str]) -> bool:
  """Whether a cluster started this process as one of several."""
  counts = [environ.get(name, "") for name in COUNTS]
  return (
    any(count.isdecimal() and int(count) > 1 for count in counts)
    or "," in environ.get(WORKERS, "")
    or bool(environ.get("JAX_COORDINATOR_ADDRESS"))
  )


def first() -> bool:
  """Whether this is the process that writes and speaks."""
  return _number == 0


def count() -> int:
  return _count


def decide(ask: Callable[[], Any]) -> Any:
  """What the first process finds or does, told to all; any value that JSON keeps. All must call it,
  and where it raises a `UserError`, all raise that."""
  if _count == 1:
    return ask()
  found: list[Any] = [None, None]
  if first():
    try:
      found[0] = ask()
    except UserError as error:
      found[1] = str(error)
  value, wrong = _all(found)[0]
  if wrong is not None:
    raise UserError(wrong)
  return value


def every(value: Any) -> list[Any]:
  """What each process has, by its number. All must call it."""
  return [value] if _count == 1 else _all(value)


def line(error: BaseException) -> str:
  """An error's first line, not too long."""
  return next(iter(str(error).splitlines()), type(error).__name__)[:300]


def leave(status: int) -> int:
  """The status of a process that failed; where it is one of several, it ends here and at once: the
  others wait for it in a collective, and end as soon as it is gone."""
  if _count > 1:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
  return status


def wait() -> None:
  """Until all have come here."""
  every(None)


def _all(value: Any) -> list[Any]:
  import jax
  import numpy as np
  from jax.experimental import multihost_utils

  own = np.frombuffer(json.dumps(value).encode(), np.uint8)
  with jax.transfer_guard("allow"):
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(len(own)))).ravel()
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: len(own)] = own
    found = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
  return [json.loads(bytes(row[:size])) for row, size in zip(found, sizes, strict=True)]
