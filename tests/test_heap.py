"""Large buffers come from memory that the process has already, where nobody chose otherwise."""

import subprocess
import sys

import pytest

from configs import quickstart
from rkd_jax import experiment, heap, main

ALONE = {"JAX_PLATFORMS": "cpu"}
# Twenty buffers of 64 MiB one after another, written whole: page faults in units of one buffer.
PROGRAM = """
import ctypes, resource, sys
from rkd_jax import heap
heap.keep({"JAX_PLATFORMS": "cpu"} if sys.argv[1] == "kept" else {"MALLOC_ARENA_MAX": "8"})
libc, size = ctypes.CDLL(None), 2**26
libc.malloc.restype = ctypes.c_void_p
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
  buffer = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(size)))
  ctypes.memset(buffer, 1, size)
  libc.free(buffer)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults / (size / resource.getpagesize()))
"""


def faulted(how: str) -> float:
  done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, check=True)
  return float(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_a_buffer_finds_the_memory_of_the_last_one():
  assert 0 < faulted("kept") < 0.1 * faulted("as it was")


def test_a_run_begins_with_it(monkeypatch):
  done = []
  monkeypatch.setattr(heap, "keep", lambda: done.append("kept"))
  monkeypatch.setattr(experiment, "run", lambda *_: done.append("ran"))
  main.run(quickstart.get_config("smoke"), "quickstart", "quiet")
  assert done == ["kept", "ran"]


def test_an_allocator_that_somebody_chose_is_left_alone():
  for name in ("MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD"):
    assert not heap.keep({**ALONE, name: "1"})


def test_beside_an_accelerator_nothing_is_set(monkeypatch):
  assert heap.only_cpu(ALONE)
  assert not heap.only_cpu({"JAX_PLATFORMS": "cuda,cpu"})
  monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [])
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  assert heap.only_cpu({})
  monkeypatch.setattr("importlib.metadata.entry_points", lambda group: ["xla_cuda12"])
  assert not heap.only_cpu({})
