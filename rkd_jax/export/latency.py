"""How long one answer takes, warm, on the processor that is here."""

import os
import pathlib
import platform
import time
from collections.abc import Callable
from typing import Any

import numpy as np

WARM, REPETITIONS, SECONDS = 3, 100, 4.0  # calls before, calls at most, and about how long they may
LEAST = 10  # calls, however slow


def measure(call: Callable[[np.ndarray], Any], images: np.ndarray) -> dict[str, Any]:
  """Milliseconds of a call on these images: {"batch", "p50", "p95", "fastest", "repetitions"}.

  On a machine with other work the fastest is nearest to what the call itself takes.
  """
  for _ in range(WARM):
    call(images)
  times: list[float] = []
  while len(times) < REPETITIONS and (sum(times) < SECONDS or len(times) < LEAST):
    began = time.perf_counter()
    call(images)
    times.append(time.perf_counter() - began)
  p50, p95 = (1e3 * float(np.percentile(times, share)) for share in (50, 95))
  found = {"batch": len(images), "p50": p50, "p95": p95, "fastest": 1e3 * min(times)}
  return found | {"repetitions": len(times)}


def processor() -> dict[str, Any]:
  """{"name", "cores" that this process may use, "load": of the last minute, null if unknown}."""
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
  load = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
  except (OSError, StopIteration):
    name = platform.processor() or platform.machine()
  return {"name": name, "cores": cores, "load": load}
