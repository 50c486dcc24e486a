"""Two processes, each reading its half of every batch, train what one process trains."""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

TESTS = pathlib.Path(__file__).parents[1]
PROGRAM = """
import sys
import jax
number, of, port, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
if of > 1:
  jax.distributed.initialize(f"localhost:{port}", of, number)
import numpy as np
import small
from rkd_jax.methods import kd

phase = small.Small(kd.Method(), small.rows(16, 16), devices=0, streamed=True)
state, _ = phase.play(4)
phase.stream.close()
leaves = [np.asarray(leaf.addressable_data(0)) for leaf in jax.tree.leaves(state.roles)]
if number == 0:
  np.savez(out, *leaves, devices=jax.device_count(), local=jax.local_device_count())
"""


def run(processes: int, devices: int, out: pathlib.Path) -> dict[str, np.ndarray]:
  """What so many processes of so many devices end with."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  paths = [str(TESTS), str(TESTS.parent), str(TESTS / "contracts")]
  env = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": os.pathsep.join(paths)}
  started = [
    subprocess.Popen(
      [sys.executable, "-c", PROGRAM, str(number), str(processes), str(port), str(out)],
      env=env, stderr=subprocess.PIPE, text=True,
    )
    for number in range(processes)
  ]  # fmt: skip
  errors = [process.communicate(timeout=300)[1] for process in started]
  assert all(process.returncode == 0 for process in started), "\n".join(errors)
  return dict(np.load(out))


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
  one = run(1, 4, tmp_path / "one.npz")
  two = run(2, 2, tmp_path / "two.npz")
  assert (one.pop("devices"), one.pop("local")) == (4, 4)
  assert (two.pop("devices"), two.pop("local")) == (4, 2)
  assert one.keys() == two.keys() and len(one) > 4
  for name, wanted in one.items():
    np.testing.assert_allclose(two[name], wanted, rtol=1e-5, atol=1e-6)
