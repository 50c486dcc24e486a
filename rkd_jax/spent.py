"""What a phase costs: time, over all its sittings, and memory."""

import pathlib
import resource
import sys
import time

import jax

from rkd_jax.reporting.files import read_json, write_json


class Spent:
  """How long a phase has trained so far, over all its sittings.

  What a killed process did after its last checkpoint is done again, and not counted twice.

  Args:
    path: where it is kept from one sitting to the next.
    step: that this sitting goes on from; from 0 on nothing was spent.
  """

  def __init__(self, path: pathlib.Path, step: int):
    self._path, self._began = path, time.monotonic()
    self._before = read_json(path)["seconds"] if step and path.exists() else 0.0

  def seconds(self) -> float:
    return self._before + time.monotonic() - self._began

  def save(self) -> None:
    write_json(self._path, {"seconds": self.seconds()})


def peak_memory() -> dict[str, int | None]:
  """Bytes at most in use until now: of the first device (None where it does not say) and by this
  process on the host."""
  device = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
  host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return {"device": device, "host": host * (1 if sys.platform == "darwin" else 1024)}
