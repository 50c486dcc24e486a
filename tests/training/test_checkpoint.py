"""Checkpoints: whole or not there, and where the newest is damaged the one before it serves."""

import gc
import os
import pathlib
import shutil
import subprocess
import sys
import textwrap
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rkd_jax.data.augment import Augment
from rkd_jax.errors import UserError
from rkd_jax.methods import kd
from rkd_jax.training import checkpoint, sharding
from rkd_jax.training.checkpoint import Checkpoints, digest

# Orbax leaves coroutines behind where a restore fails; they complain when they are collected.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def _collect():
  yield
  gc.collect()


def tree():
  return {
    "a": [jnp.arange(6.0).reshape(2, 3), jnp.int32(4)],
    "b": {"x/y": jnp.array([True, False]), "empty": {}},
    "c": (jnp.bfloat16(1.5),),
  }


@pytest.mark.parametrize("devices", [1, 8])
def test_round_trip_with_types_structure_and_placement(tmp_path, devices):
  mesh = sharding.make_mesh(devices)
  state = sharding.replicate(mesh, tree())
  split = jax.device_put(np.arange(16.0), NamedSharding(mesh, P("data")))
  state["split"] = split
  checkpoints = Checkpoints(tmp_path)
  assert checkpoints.restore(state) is None and checkpoints.latest() is None
  checkpoints.save(3, state)
  checkpoints.close()
  template = jax.tree.map(jnp.zeros_like, state)
  step, found = Checkpoints(tmp_path).restore(template)
  assert step == 3 and jax.tree.structure(found) == jax.tree.structure(state)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(state), strict=True):
    assert a.dtype == b.dtype and a.sharding.is_equivalent_to(b.sharding, b.ndim)
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_keeps_the_last_two_and_saves_a_step_once(tmp_path):
  checkpoints = Checkpoints(tmp_path)
  for step in (2, 4, 6, 6):
    checkpoints.save(step, {"x": jnp.float32(step)})
  checkpoints.close()
  assert sorted(p.name for p in tmp_path.iterdir()) == ["4", "6"]
  assert Checkpoints(tmp_path).restore({"x": jnp.zeros(())})[1]["x"] == 6


def truncate(step: pathlib.Path):
  for path in filter(pathlib.Path.is_file, step.rglob("*")):
    os.truncate(path, path.stat().st_size // 2)


def empty(step: pathlib.Path):
  for path in filter(pathlib.Path.is_file, step.rglob("*")):
    os.truncate(path, 0)


def garble(step: pathlib.Path):
  noise = np.random.default_rng(0)
  for path in filter(pathlib.Path.is_file, step.rglob("*")):
    path.write_bytes(noise.bytes(path.stat().st_size))


def lose_metadata(step: pathlib.Path):
  for path in [*step.rglob("_METADATA"), *step.rglob("_CHECKPOINT_METADATA")]:
    path.unlink()


def lose_arrays(step: pathlib.Path):
  for path in step.rglob("d"):
    shutil.rmtree(path)


def lose_everything(step: pathlib.Path):
  shutil.rmtree(step)
  step.mkdir()


def another_shape(step: pathlib.Path):
  other = Checkpoints(step.parent / "other")
  other.save(6, {"x": jnp.zeros(3)})
  other.close()
  shutil.rmtree(step)
  shutil.move(step.parent / "other" / "6", step)
  shutil.rmtree(step.parent / "other")


DAMAGES = truncate, empty, garble, lose_arrays, lose_everything, another_shape


def make():
  return small.Small(kd.Method(), rounds=8, augment=Augment(flip=True, crop=1))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """(a directory with the checkpoints of steps 4 and 6, the digest of the end)."""
  whole = tmp_path_factory.mktemp("whole")
  end = digest(make().train(whole))
  assert sorted(p.name for p in whole.iterdir()) == ["6", "8"]
  toy = make()
  cut = tmp_path_factory.mktemp("cut")
  checkpoints = Checkpoints(cut)
  state, frozen = toy.begin()
  for step in range(7):
    if step in (4, 6):
      checkpoints.save(step, small.update.zero_metrics(toy.program, state))
    state = toy.round(state, frozen)
  checkpoints.close()
  return cut, end


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_costs_only_the_steps_since_the_last(damage, trained, tmp_path):
  saved, end = trained
  shutil.copytree(saved, tmp_path / "c")
  damage(tmp_path / "c" / "6")
  toy = make()
  steps = []
  state = toy.train(tmp_path / "c", small.loop.Hooks(log=lambda step, _: steps.append(step)))
  assert steps == [6, 8] and digest(state) == end
  assert len(toy.warnings) == 1 and "step 6" in toy.warnings[0]
  assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["6", "8"]  # saved anew, both
  again = make()
  assert digest(again.train(tmp_path / "c")) == end and not again.warnings


def test_a_checkpoint_without_its_metadata_serves_or_is_dropped(trained, tmp_path):
  saved, end = trained
  shutil.copytree(saved, tmp_path / "c")
  lose_metadata(tmp_path / "c" / "6")
  assert digest(make().train(tmp_path / "c")) == end


def test_where_all_are_damaged_it_begins_anew(trained, tmp_path):
  saved, end = trained
  shutil.copytree(saved, tmp_path / "c")
  for step in (tmp_path / "c").iterdir():
    garble(step)
  toy = make()
  assert digest(toy.train(tmp_path / "c")) == end
  assert [w.split()[4] for w in toy.warnings] == ["6", "4"]


def test_what_a_kill_left_of_a_save_is_no_checkpoint(trained, tmp_path):
  saved, end = trained
  shutil.copytree(saved, tmp_path / "c")
  shutil.move(tmp_path / "c" / "6", tmp_path / "c" / "6.orbax-checkpoint-tmp")
  toy = make()
  assert digest(toy.train(tmp_path / "c")) == end and not toy.warnings


# Deliveries.


def test_a_delivery_comes_back_and_its_digest_sees_every_byte(tmp_path):
  tree = {"roles": {"w": jnp.arange(4.0)}, "state": {"00000:k": jnp.array([True, False])}}
  checkpoint.save_tree(tmp_path / "final", tree)
  found = checkpoint.load_tree(tmp_path / "final")
  assert digest(found) == digest(tree)
  for other in (
    {"roles": {"v": jnp.arange(4.0)}, "state": tree["state"]},
    {"roles": {"w": jnp.arange(4)}, "state": tree["state"]},
    {"roles": {"w": jnp.arange(4.0).reshape(2, 2)}, "state": tree["state"]},
    {"roles": {"w": jnp.arange(4.0).at[3].add(1e-6)}, "state": tree["state"]},
  ):
    assert digest(other) != digest(tree)
  checkpoint.save_tree(tmp_path / "final", {"roles": {"w": jnp.zeros(2)}})  # written over
  assert set(checkpoint.load_tree(tmp_path / "final")) == {"roles"}


# A full disk: a tiny one where it can be mounted, else a limit on the size of files.

FULL = textwrap.dedent("""
  import pathlib, resource, signal, subprocess, sys
  import jax.numpy as jnp, numpy as np
  from rkd_jax.errors import UserError
  from rkd_jax.training.checkpoint import Checkpoints, load_tree, save_tree

  here, kind = pathlib.Path(sys.argv[1]), sys.argv[2]
  signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

  def space(size):
    if kind == "disk":
      options = "size=40m" if size else "size=3m"  # room for one checkpoint
      subprocess.run(["mount", "-o", f"remount,{options}", str(here)], check=True)
    else:
      hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
      resource.setrlimit(resource.RLIMIT_FSIZE, (hard if size else 100_000, hard))

  def attempt(call):
    try:
      call()
    except UserError as error:
      print("UserError", error)

  noise = lambda seed: {"x": jnp.asarray(np.random.default_rng(seed).random(500_000))}
  checkpoints = Checkpoints(here / "c")
  checkpoints.save(1, noise(1))
  checkpoints._manager.wait_until_finished()
  space(False)
  attempt(lambda: (checkpoints.save(2, noise(2)), checkpoints.close()))
  attempt(lambda: save_tree(here / "final", noise(3)))
  print("delivered", (here / "final").exists())
  space(True)
  checkpoints = Checkpoints(here / "c")
  step, found = checkpoints.restore({"x": jnp.zeros(500_000)})
  print("restored", step, bool((found["x"] == noise(1)["x"]).all()))
  checkpoints.save(2, noise(2))
  checkpoints.close()
  save_tree(here / "final", noise(3))
  print("left", sorted(p.name for p in (here / "c").iterdir()))
  print("delivered", bool((load_tree(here / "final")["x"] == noise(3)["x"]).all()))
""")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["disk", "limit"])
def test_a_full_disk_is_explained_and_leaves_nothing_half_written(tmp_path, kind):
  environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
  command = [sys.executable, "-c", FULL, str(tmp_path), kind]
  if kind == "disk":
    mount = 'mount -t tmpfs -o size=40m tmpfs "$1" || exit 99; shift; exec "$@"'
    command = ["unshare", "-rm", "sh", "-c", mount, "sh", str(tmp_path), *command]
  try:
    ran = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
  except FileNotFoundError:
    pytest.skip("there is no `unshare` here")
  if kind == "disk" and (ran.returncode == 99 or "unshare" in ran.stderr[:20]):
    pytest.skip(f"no disk of a given size can be mounted here: {ran.stderr}")
  saved, delivered, *rest = ran.stdout.splitlines()
  for line, path in ((saved, tmp_path / "c"), (delivered, tmp_path / "final")):
    assert line.startswith(f"UserError Cannot write {path}: "), line
    assert "start the same command again" in line
    assert ("No space left on device" if kind == "disk" else "File too large") in line
  assert rest == [
    "delivered False", "restored 1 True", "left ['1', '2']", "delivered True",
  ]  # fmt: skip


def test_a_save_that_hangs_is_explained(tmp_path):
  with pytest.raises(UserError, match="clock was set"), checkpoint.explained(tmp_path):
    raise TimeoutError("ChainedFuture completed 2/3 futures but timed out")


def test_any_flipped_bit_of_any_array_changes_the_checksum():
  arrays = [
    np.arange(12, dtype=np.float32).reshape(3, 4),
    np.float32(0.1),
    np.array([3, -1], np.int32),
    np.array([True, False]),
    np.arange(5).astype(jnp.bfloat16),
    np.arange(4, dtype=np.int8),
  ]
  whole = int(checkpoint._checksum([jnp.asarray(a) for a in arrays]))
  for number, array in enumerate(arrays):
    for bit in range(array.nbytes * 8) if array.dtype != bool else (0, 8):
      raw = bytearray(array.tobytes())
      raw[bit // 8] ^= 1 << bit % 8
      flipped = np.frombuffer(bytes(raw), array.dtype).reshape(array.shape)
      changed = [*arrays[:number], flipped, *arrays[number + 1 :]]
      assert int(checkpoint._checksum([jnp.asarray(a) for a in changed])) != whole


def test_arrays_that_are_not_those_saved_are_put_aside(tmp_path, monkeypatch):
  state = {"a": jnp.arange(4.0)}
  warnings = []
  saved = checkpoint.Checkpoints(tmp_path / "c", warn=warnings.append)
  saved.save(1, state)
  with monkeypatch.context() as patch:  # as if the bytes had changed after they were summed
    patch.setattr(checkpoint, "_checksum", lambda leaves: jnp.uint32(7))
    saved.save(2, {"a": jnp.arange(4.0) + 1})
  step, restored = saved.restore(state)
  saved.close()
  assert step == 1 and warnings and "step 2" in warnings[0]
  np.testing.assert_array_equal(restored["a"], state["a"])
  assert (tmp_path / "unreadable-2").exists()


def test_threads_that_outlive_a_failed_save_are_not_heard(monkeypatch):
  heard = []
  monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: heard.append(str(error)))
  monkeypatch.setattr(sys, "unraisablehook", lambda what: heard.append(str(what.exc_value)))
  checkpoint.hush_threads()
  for text in ("Event loop is closed", "something else"):
    error = RuntimeError(text)
    sys.excepthook(RuntimeError, error, None)
    sys.unraisablehook(types.SimpleNamespace(exc_value=error))
  assert heard == ["something else"] * 2
