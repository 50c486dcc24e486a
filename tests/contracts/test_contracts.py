"""Seven systems as toys on the contracts: small, killed in mid-round, resumed to the same bytes."""

import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))  # the toys are no part of the package

import driver  # noqa: E402

from rkd_jax.training import checkpoint  # noqa: E402


@pytest.mark.parametrize("name", driver.TOYS)
def test_is_short(name):
  assert len((HERE / "toys" / f"{name}.py").read_text().splitlines()) <= 40


@pytest.mark.slow
@pytest.mark.parametrize("name", driver.TOYS)
def test_killed_in_mid_round_and_resumed_to_the_same_bytes(name, tmp_path):
  whole = driver.Toy(name).run(tmp_path / "whole")
  turns = sum(often for _, often in driver.method(name).turns)
  kill_at = 4 * turns + turns // 2  # in the fifth round, past the checkpoint of step 4's start
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)}
  command = [sys.executable, str(HERE / "driver.py"), name, str(tmp_path / "cut"), str(kill_at)]
  died = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
  assert died.returncode == -signal.SIGKILL, died.stderr
  resumed = driver.Toy(name).run(tmp_path / "cut")
  assert checkpoint.digest(resumed) == checkpoint.digest(whole)


@pytest.mark.parametrize("name", driver.TOYS)
def test_trains_what_it_says_and_delivers_it(name, tmp_path):
  toy = driver.Toy(name)
  state = toy.run(tmp_path)
  for leaf in jax.tree.leaves(state):
    assert np.isfinite(leaf).all()
  trained = {role for role, _ in toy.program.players}
  assert set(state.roles) == trained
  start_state = driver.start.begin(
    toy.program, toy.roles, toy.given(), toy.make_stream(), toy.example
  )[0]
  for role in trained:
    before, after = start_state.roles[role]["params"], state.roles[role]["params"]
    assert checkpoint.digest(before) != checkpoint.digest(after), role
  trees = toy.frozen | state.roles
  variables = toy.method.materialize(toy.program.bind(trees))
  delivered = toy.method.deliver(variables, state.memory)
  assert delivered and all(jax.tree.leaves(tree) for tree in delivered.values())
  logits = toy.method.predict(variables, state.memory, np.zeros((2, 8, 8, 1), np.float32))
  assert logits.shape == (2, 3)


@pytest.mark.parametrize("name", driver.TOYS)
def test_eight_devices_give_the_single_devices_result(name, tmp_path):
  one, eight = (driver.Toy(name, devices=n).run(tmp_path / str(n)) for n in (1, 8))
  # Sums over the batch are added in another order; six rounds of SGD amplify the last bits.
  for a, b in zip(jax.tree.leaves(one.roles), jax.tree.leaves(eight.roles), strict=True):
    np.testing.assert_allclose(jax.device_get(a), jax.device_get(b), rtol=2e-3, atol=2e-4)
