"""The loop: its order, its guards, and that wherever it stops it goes on to the same bytes."""

import dataclasses
import os
import pathlib
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import linen as nn

from rkd_jax.data.augment import Augment
from rkd_jax.errors import UserError
from rkd_jax.methods import base, kd, supervised
from rkd_jax.training import loop, update
from rkd_jax.training.checkpoint import Checkpoints, digest
from rkd_jax.training.optimizer import Optimizer

AUGMENT = Augment(flip=True, crop=1)


def recorded(monkeypatch, toy, events: list) -> loop.Hooks:
  """Hooks and wrappers that write down what happens at which step."""

  def noting(name, call, step):
    def wrapped(*args, **kwargs):
      events.append((name, step(*args)))
      return call(*args, **kwargs)

    return wrapped

  monkeypatch.setattr(Checkpoints, "save", noting("save", Checkpoints.save, lambda _, k, s: k))
  monkeypatch.setattr(toy.stream, "source", noting("batch", toy.stream.source, lambda k: k))
  play = noting("update", update.play_round, lambda p, state, f, s: int(state.step))
  monkeypatch.setattr(update, "play_round", play)
  evaluate = lambda state: events.append(("evaluate", int(state.step))) or {}  # noqa: E731
  return loop.Hooks(evaluate, lambda step, _: events.append(("log", step)))


def test_evaluates_then_saves_then_reads_then_updates(monkeypatch, tmp_path):
  toy, events = small.Small(supervised.Method(), rounds=5), []
  hooks = recorded(monkeypatch, toy, events)
  toy.train(tmp_path, hooks, log_every=2, save_every=4)
  expected = []
  for step in range(6):
    line = step and (step % 2 == 0 or step == 5)
    expected += [("evaluate", step), ("log", step)] if line else []
    expected += [("save", step)] if step in (4, 5) else []
    expected += [("batch", step), ("update", step)] if step < 5 else []
  opening = events.index(("batch", 0)) + 1  # the first state's structure looks at a batch
  assert events[opening:] == expected


def test_lines_are_means_since_the_last_line(tmp_path):
  lines, seen = {}, []

  def evaluate(state):
    seen.append({name: tuple(map(float, pair)) for name, pair in state.metrics.items()})
    return {"own": 0.25}

  toy = small.Small(supervised.Method(), rounds=5)
  state = toy.train(tmp_path, loop.Hooks(evaluate, lines.__setitem__), log_every=2)
  assert sorted(lines) == [2, 4, 5]
  for line, counted in zip(lines.values(), seen, strict=True):
    assert line["own"] == 0.25
    for name, (total, n) in counted.items():
      assert line[name] == pytest.approx(total / n)
  assert [counted["train_acc"][1] for counted in seen] == [16, 16, 8]
  assert all(float(leaf) == 0 for leaf in jax.tree.leaves(state.metrics))


def test_whoever_moves_arrays_by_accident_is_told(tmp_path):
  def careless(state):
    return {"x": float((state.roles["student"]["params"]["head"]["bias"] + np.ones(3)).sum())}

  with pytest.raises(Exception, match=r"[Dd]isallowed host-to-device transfer"):
    small.Small(supervised.Method()).train(tmp_path, loop.Hooks(careless))


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_loss_that_is_not_finite_stops_with_advice(tmp_path, value):
  @dataclasses.dataclass(frozen=True)
  class Diverging(supervised.Method):
    def loss(self, player, variables, state, batch, targets, key, step):
      terms, aux = super().loss(player, variables, state, batch, targets, key, step)
      return terms | {"bad": jnp.where(step >= 3, float(value), 0.0)}, aux

  with pytest.raises(UserError, match=rf"step 4 loss is {value}.*learning_rate") as error:
    small.Small(Diverging()).train(tmp_path)
  assert "clip" in str(error.value)
  assert Checkpoints(tmp_path).latest() == 2  # nothing sick was saved


@dataclasses.dataclass(frozen=True)
class Patient(kd.Method):
  """Stops at the second line."""

  def stop(self, metrics):
    return metrics["epoch"] >= 2


def test_a_method_that_stops_early_stays_stopped(tmp_path):
  lines, toy = {}, small.Small(Patient(), rounds=12)
  hooks = loop.Hooks(lambda state: {"epoch": int(state.step) / 2}, lines.__setitem__)
  state = toy.train(tmp_path, hooks, save_every=100)
  assert int(state.step) == 4 and lines[4]["stopped"] == 1 and "stopped" not in lines[2]
  again = small.Small(Patient(), rounds=12, stopped=True)
  resumed = again.train(tmp_path, loop.Hooks(lambda state: pytest.fail("evaluated again")))
  assert digest(resumed) == digest(state)


def test_the_last_round_is_no_early_stop(tmp_path):
  lines = {}
  hooks = loop.Hooks(lambda state: {"epoch": int(state.step) / 2}, lines.__setitem__)
  small.Small(Patient(), rounds=4).train(tmp_path, hooks)
  assert "stopped" not in lines[4]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("at", [2, 3, 6])
def test_a_signal_saves_and_the_rest_is_the_same(tmp_path, number, at):
  make = lambda: small.Small(kd.Method(), augment=AUGMENT)  # noqa: E731
  whole = make().train(tmp_path / "whole", log_every=1)
  before = signal.getsignal(number)

  def evaluate(state):
    if int(state.step) == at:
      os.kill(os.getpid(), number)
    return {}

  with pytest.raises(loop.Preempted, match=rf"{number.name} came at step {at} of 6"):
    make().train(tmp_path / "cut", loop.Hooks(evaluate), log_every=1, save_every=100)
  assert signal.getsignal(number) is before
  assert Checkpoints(tmp_path / "cut").latest() == at
  lines = []
  resumed = make().train(
    tmp_path / "cut", loop.Hooks(log=lambda step, _: lines.append(step)), log_every=1
  )
  assert lines == list(range(at + 1, 7))
  assert digest(resumed) == digest(whole)


def test_a_second_interrupt_does_not_wait(tmp_path):
  def evaluate(state):
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    return {}

  with pytest.raises(KeyboardInterrupt):
    small.Small(supervised.Method()).train(tmp_path, loop.Hooks(evaluate))


@dataclasses.dataclass(frozen=True)
class Renewed(base.Method):
  """A bare tensor that learns with momentum, drawn anew at epochs 1 and 3; and one that is not."""

  def roles(self, networks):
    draw = lambda key, made, example: jax.random.normal(key, (3,))  # noqa: E731
    probe = base.Role(nn.Dense(3), "student", init=lambda key, *_: nn.Dense(3).init(key, ONE))
    return {"w": base.Role(player="student", init=draw), "v": probe, "z": base.Role(init=draw)}

  def reset(self, epoch):
    return ("w", "v") if epoch in (0, 1, 3) else ()  # 0 is not asked about

  def loss(self, player, variables, state, batch, targets, key, step):
    w, goal = variables["w"], batch["image"].mean((0, 1, 2))
    return {"q": ((w - goal) ** 2).sum() + (variables["v"](w[None]) ** 2).sum()}, base.Aux()


ONE = jnp.ones((1, 3))


def renewed() -> small.Small:
  return small.Small(Renewed(), rounds=8, optimizer=Optimizer("adam", learning_rate=0.01))


def test_reset_draws_values_and_optimiser_anew_at_epoch_starts(monkeypatch, tmp_path):
  seen, play = {}, update.play_round

  def look(program, state, frozen, source):
    count = next(x for x in jax.tree.leaves(state.optimizers["w"]) if x.dtype == jnp.int32)
    seen[int(state.step)] = np.asarray(state.roles["w"]["params"]), int(count)
    return play(program, state, frozen, source)

  monkeypatch.setattr(update, "play_round", look)
  renewed().train(tmp_path)
  assert [seen[step][1] for step in range(8)] == [0, 1, 0, 1, 2, 3, 0, 1]
  np.testing.assert_array_equal(seen[0][0], renewed().begin()[0].roles["w"]["params"])
  drawn = [seen[step][0] for step in (0, 2, 6)]
  gaps = [np.abs(a - b).max() for a in drawn for b in drawn if a is not b]
  assert min(gaps) > 0.1  # three draws
  assert np.abs(seen[4][0] - seen[3][0]).max() < 0.05  # epoch 2 goes on


@pytest.mark.parametrize("at", [2, 3, 6])
def test_reset_resumes_exactly(tmp_path, at):
  whole = renewed().train(tmp_path / "whole")

  def evaluate(state):
    if int(state.step) == at:
      os.kill(os.getpid(), signal.SIGTERM)
    return {}

  with pytest.raises(loop.Preempted):
    renewed().train(tmp_path / "cut", loop.Hooks(evaluate), log_every=1, save_every=100)
  resumed = renewed().train(pathlib.Path(tmp_path / "cut"))
  assert digest(resumed.roles) == digest(whole.roles)
  assert digest(resumed.optimizers) == digest(whole.optimizers)
