"""Fair timing on a shared machine: contestants take turns, and every number carries its context."""

import datetime
import os
import pathlib
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

import jax

import rkd_jax
from rkd_jax.manifest import git_revision

Run = Callable[[int], float]  # so many steps -> the seconds they took, everything finished
# A run counts as quiet where other processes took at most this share of the processors. Frameworks
# suffer differently from a neighbour (threads that wait for each other most), so ratios need quiet.
QUIET = 0.1


def steps_for(run: Run, seconds: float, most: int, patience: float = 0.0) -> int:
  """How many steps of `run` last about so many seconds. Compiles and warms up on the way."""
  run(2)
  steps = 2
  while True:
    wait_for_quiet(time.monotonic() + patience)
    if (spent := run(steps)) >= seconds / 4 or steps >= most:
      break
    steps = min(4 * steps, most)
  return max(2, min(round(steps * seconds / spent), most))


def interleave(
  runs: Mapping[str, Run], steps: Mapping[str, int], rounds: int, batch: int, patience: float = 0.0
) -> dict[str, dict[str, Any]]:
  """Runs every contestant once a round, starting with another one each time.

  Args:
    patience: seconds to spend on finding a quiet moment for each run.

  Returns:
    {name: {"steps", "images_per_second", "ms_per_step" (medians over the quiet rounds, or over all
    if none was), "quiet_rounds", "rounds": [...]}}; a round has "images_per_second" and
    "foreign_cpu", the share of the processors' time that other processes took meanwhile (null where
    the system does not tell).
  """
  samples: dict[str, list[dict[str, Any]]] = {name: [] for name in runs}
  for number in range(rounds):
    names = list(runs)
    turn = number % len(names)
    for name in names[turn:] + names[:turn]:
      samples[name].append(_sample(runs[name], steps[name], batch, patience))
  return {name: _summary(steps[name], batch, found) for name, found in samples.items()}


def _sample(run: Run, steps: int, batch: int, patience: float) -> dict[str, Any]:
  """One run. What was disturbed is thrown away and done again for as long as there is patience."""
  end = time.monotonic() + patience
  while True:
    wait_for_quiet(end)
    before = _cpu()
    rate = batch * steps / run(steps)
    sample = {"images_per_second": rate, "foreign_cpu": _foreign(before, _cpu())}
    if _quiet(sample) or time.monotonic() > end:
      return sample


def wait_for_quiet(end: float) -> None:
  """Returns when other processes leave the processors alone, or at the latest at this time."""
  while time.monotonic() < end:
    before = _cpu()
    time.sleep(0.5)
    if _quiet({"foreign_cpu": _foreign(before, _cpu())}):
      return


def _summary(steps: int, batch: int, samples: list[dict[str, Any]]) -> dict[str, Any]:
  counted = [sample["images_per_second"] for sample in samples if _quiet(sample)]
  rate = statistics.median(counted or [sample["images_per_second"] for sample in samples])
  return {
    "steps": steps,
    "images_per_second": rate,
    "ms_per_step": 1000 * batch / rate,
    "quiet_rounds": len(counted),
    "rounds": samples,
  }


def _quiet(*samples: Mapping[str, Any]) -> bool:
  return all((sample["foreign_cpu"] or 0.0) <= QUIET for sample in samples)


def ratio(timed: Mapping[str, Any], over: str, under: str) -> dict[str, Any] | None:
  """Rate of `over` by that of `under`: the median of the rounds' ratios, and all of them.

  Ratios within a round cancel what slows the machine for longer than a round. The median is over
  the rounds in which both were quiet; over all of them if none was ("quiet_rounds" is 0). None
  where either was not measured.
  """
  if over not in timed or under not in timed:
    return None
  pairs = list(zip(timed[over]["rounds"], timed[under]["rounds"], strict=True))
  found = [a["images_per_second"] / b["images_per_second"] for a, b in pairs]
  counted = [one for one, pair in zip(found, pairs, strict=True) if _quiet(*pair)]
  median = statistics.median(counted or found)
  return {"median": median, "quiet_rounds": len(counted), "rounds": found}


def cost(jitted: Any, *args: Any) -> dict[str, Any]:
  """What XLA says of a jitted function, and how long it takes to say it.

  Returns:
    "trace_s", "compile_s"; "flops" and "bytes_unfused" of the program as written (each operation
    reads and writes memory); "bytes" of the compiled one (fused; null where the back end does not
    tell); "arguments_bytes" (data set and state), "temporary_bytes", and "peak_memory_bytes": these
    and what is returned in buffers of its own. (XLA's own peak leaves out temporaries on CPU.)
  """
  began = time.perf_counter()
  lowered = jitted.lower(*args)
  traced = time.perf_counter()
  compiled = lowered.compile()
  done = time.perf_counter()
  written, fused = lowered.cost_analysis() or {}, compiled.cost_analysis() or {}
  memory = compiled.memory_analysis()
  arguments, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
  returned = memory.output_size_in_bytes - memory.alias_size_in_bytes
  return {
    "trace_s": traced - began,
    "compile_s": done - traced,
    "flops": written.get("flops"),
    "bytes_unfused": written.get("bytes accessed"),
    "bytes": fused.get("bytes accessed"),
    "peak_memory_bytes": arguments + temporary + returned,
    "arguments_bytes": arguments,
    "temporary_bytes": temporary,
  }


def context() -> dict[str, Any]:
  """When, where and with what: the device, versions, and how busy the machine was at the start."""
  packages = ("jax", "jaxlib", "flax", "optax", "numpy")
  versions = {"rkd_jax": rkd_jax.__version__, "python": platform.python_version()}
  return {
    "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "git": git_revision(),
    "versions": versions | {package: metadata.version(package) for package in packages},
    "device": device(),
    "load_before": load(),
  }


def device() -> dict[str, Any]:
  found = jax.devices()
  stats = found[0].memory_stats() or {}
  flags = ("XLA_FLAGS", "OMP_NUM_THREADS", "XLA_PYTHON_CLIENT_PREALLOCATE")
  return {
    "platform": found[0].platform,
    "kind": cpu_model() if found[0].platform == "cpu" else found[0].device_kind,
    "count": len(found),
    "driver": " ".join(found[0].client.platform_version.split()),
    "memory_bytes": stats.get("bytes_limit"),
    "cpu": cpu_model(),
    "cores": cores(),
    "flags": {name: os.environ[name] for name in flags if name in os.environ},
  }


def slug() -> str:
  """The device's name for a folder: "amd-epyc-2-cores", "nvidia-h200", "nvidia-h200-x8"."""
  about = device()
  if about["platform"] == "cpu":
    name = f"{about['kind']} {about['cores']} cores"
  else:
    name = about["kind"] + (f" x{about['count']}" if about["count"] > 1 else "")
  return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def cpu_model() -> str:
  try:
    text = pathlib.Path("/proc/cpuinfo").read_text()
  except OSError:
    text = ""
  found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
  return found[1].strip() if found else platform.processor() or platform.machine()


def cores() -> int:
  """Processors that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load() -> list[float] | None:
  """Load averages over 1, 5, 15 minutes."""
  return list(os.getloadavg()) if hasattr(os, "getloadavg") else None


def _cpu() -> tuple[float, float, float] | None:
  """Seconds of processor time since the start: (all, busy, ours)."""
  try:
    line = pathlib.Path("/proc/stat").read_text().split("\n", 1)[0]
  except OSError:
    return None
  ticks = [int(field) / os.sysconf("SC_CLK_TCK") for field in line.split()[1:9]]
  mine = os.times()
  return sum(ticks), sum(ticks) - ticks[3] - ticks[4], mine.user + mine.system


def _foreign(before: Any, after: Any) -> float | None:
  """Other processes' share of all processor time between two readings, in [0, 1]."""
  if before is None or after is None:
    return None
  whole, busy, ours = (b - a for a, b in zip(before, after, strict=True))
  return min(max((busy - ours) / whole, 0.0), 1.0) if whole > 0 else 0.0
