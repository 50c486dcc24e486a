"""The step: terms become a loss, a loss a gradient, a gradient the next state."""

import dataclasses
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from rkd_jax.data.augment import Augment
from rkd_jax.methods import adba, base, kd, supervised
from rkd_jax.training import loop, update
from rkd_jax.training.checkpoint import digest
from rkd_jax.training.optimizer import Optimizer

# Terms and metrics.


def test_terms_are_weighted_means_that_add_up():
  terms = {
    "a": (jnp.array([1.0, 2.0, 4.0]), jnp.array([1.0, 0.0, 3.0])),  # (1 + 12) / 4
    "b": jnp.float32(0.5),
    "c": (jnp.array([7.0, 8.0, 9.0]), jnp.zeros(3)),
  }
  loss, logged = update.reduce_terms(terms)
  assert loss == pytest.approx(3.25 + 0.5)
  assert {name: (float(v), float(n)) for name, (v, n) in logged.items()} == {
    "a": (3.25, 1), "b": (0.5, 1), "c": (0, 1),
  }  # fmt: skip


def test_a_mask_equals_the_subset_in_value_and_gradient():
  values, mask = jnp.array([0.3, -2.0, 5.0, 1.0]), np.array([True, False, True, False])

  def masked(x):
    return update.reduce_terms({"t": (x**2, jnp.float32(mask))})[0]

  def subset(x):
    x = x[mask]
    return update.reduce_terms({"t": (x**2, jnp.ones(2))})[0]

  np.testing.assert_allclose(masked(values), subset(values), rtol=1e-6)
  np.testing.assert_allclose(jax.grad(masked)(values), jax.grad(subset)(values), rtol=1e-6)


def test_no_weight_means_no_loss_and_a_finite_gradient():
  value, gradient = jax.value_and_grad(
    lambda x: update.reduce_terms({"t": (jnp.log(x), jnp.zeros(3))})[0]
  )(jnp.array([1.0, 2.0, 3.0]))
  assert value == 0
  np.testing.assert_array_equal(gradient, np.zeros(3))


def test_metrics_are_sums_and_counts():
  assert update.count(jnp.array([1.0, 0.0, 1.0])) == (2, 3)
  assert update.count((jnp.array([1.0, 5.0, 2.0]), jnp.array([True, False, True]))) == (3, 2)
  assert update.count(4) == (4, 1)
  old = update.add(None, update.count(jnp.ones(2)))
  assert update.add(old, update.count(jnp.zeros(3))) == (2, 5)


def test_logged_metrics_are_those_of_the_examples_seen():
  toy = small.Small(supervised.Method(), small.rows(16, unlabelled=6))
  state, _ = toy.play(2)  # one epoch
  hits, labelled = map(float, state.metrics["train_acc"])
  assert labelled == 10 and hits == int(hits) and 0 <= hits <= 10
  assert float(state.metrics["loss"][1]) == 2
  cleared = update.zero_metrics(toy.program, state)
  assert all(float(leaf) == 0 for leaf in jax.tree.leaves(cleared.metrics))


# The optimisers, against PyTorch's.


@dataclasses.dataclass(frozen=True)
class Quadratic(base.Method):
  """0.5 |w - x|^2 for a bare vector w and the batch's first pixels x."""

  start: tuple[float, ...] = (1.0, -2.0, 3.0)

  def roles(self, networks):
    return {"w": base.Role(player="student", init=lambda *_: jnp.array(self.start))}

  def loss(self, player, variables, state, batch, targets, key, step):
    goal = batch["image"].mean((0, 1, 2, 3))
    return {"q": 0.5 * ((variables["w"] - goal) ** 2).sum()}, base.Aux()


def goals(toy, rounds):
  table = [toy.stream.source(step)["order"] for step in range(rounds)]
  pixels = toy.rows.image.astype(np.float32) / 255
  return [float(pixels[np.asarray(t[i % len(t)])].mean()) for i, t in enumerate(table)]


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "step", "clip"])
def test_several_steps_equal_torch(name):
  torch = pytest.importorskip("torch")
  rounds, kind = 6, name if name.startswith("adam") else "sgd"
  optimizer = Optimizer(kind, learning_rate=0.1, weight_decay=0.05)
  changes = {
    "step": {"schedule": "step", "milestones": (0.5, 0.84)},
    "clip": {"clip": 0.7, "schedule": "constant"},
  }
  optimizer = dataclasses.replace(optimizer, **changes.get(name, {}))
  toy = small.Small(Quadratic(), rounds=rounds, optimizer=optimizer)
  state, _ = toy.play(rounds)

  w = torch.nn.Parameter(torch.tensor(Quadratic().start))
  theirs = {
    "sgd": lambda: torch.optim.SGD([w], 0.1, momentum=0.9, nesterov=True, weight_decay=0.05),
    "adam": lambda: torch.optim.Adam([w], 0.1, weight_decay=0.05),
    "adamw": lambda: torch.optim.AdamW([w], 0.1, weight_decay=0.05),
  }[kind]()
  schedule = {
    "step": lambda: torch.optim.lr_scheduler.MultiStepLR(theirs, [3, 5], 0.1),
    "clip": lambda: torch.optim.lr_scheduler.ConstantLR(theirs, 1.0),
  }.get(name, lambda: torch.optim.lr_scheduler.CosineAnnealingLR(theirs, rounds))()
  for goal in goals(toy, rounds):
    theirs.zero_grad()
    (0.5 * ((w - goal) ** 2).sum()).backward()
    if name == "clip":
      torch.nn.utils.clip_grad_norm_([w], 0.7)
    theirs.step()
    schedule.step()
  np.testing.assert_allclose(state.roles["w"]["params"], w.detach().numpy(), rtol=2e-5, atol=1e-6)


def test_milestones_that_round_to_one_update_both_count():
  rate = Optimizer(learning_rate=1.0, schedule="step", milestones=(0.5, 0.54)).rate(10)
  np.testing.assert_allclose([rate(k) for k in (4, 6)], [1, 0.01], rtol=1e-6)


def test_warm_up_rises_linearly_and_then_decays():
  rate = Optimizer(learning_rate=1.0, warmup=0.25).rate(8)
  expected = [0, 0.5] + [0.5 * (1 + np.cos(np.pi * k / 6)) for k in range(7)]
  np.testing.assert_allclose([rate(k) for k in range(9)], expected, atol=1e-6)


# One distillation step, against PyTorch's.


def test_the_losses_of_a_distillation_step_equal_torch():
  torch = pytest.importorskip("torch")
  functional = torch.nn.functional
  toy = small.Small(kd.Method(temperature=3.0, alpha=0.7), small.rows(16, unlabelled=9))
  state, frozen = toy.begin()
  trees = jax.device_get({**frozen, **state.roles})

  def forward(tree, x, train):
    p, stats = tree["params"], tree["batch_stats"]
    x = (x - 0.5) / 0.25
    for i in (1, 2):
      kernel = torch.tensor(p[f"conv{i}"]["kernel"].transpose(3, 2, 0, 1))
      x = functional.conv2d(functional.pad(x, (0, 1, 0, 1)), kernel, stride=2)  # "SAME"
      norm, mean, var = (
        p[f"norm{i}"],
        *(torch.tensor(stats[f"norm{i}"][k]) for k in ("mean", "var")),
      )
      scale, bias = torch.tensor(norm["scale"]), torch.tensor(norm["bias"])
      x = functional.relu(functional.batch_norm(x, mean, var, scale, bias, training=train))
    x = x.mean((2, 3))
    return x @ torch.tensor(p["head"]["kernel"]) + torch.tensor(p["head"]["bias"])

  rows = np.asarray(toy.stream.source(0)["order"])[0]
  images = torch.tensor(toy.rows.image[rows].transpose(0, 3, 1, 2)).float() / 255
  labels = torch.tensor(toy.rows.label[rows]).long()
  teacher, student = (
    forward(trees[n], images, t) for n, t in (("teacher", False), ("student", True))
  )
  labels = torch.where(labels < 0, teacher.argmax(1), labels)
  ce = functional.cross_entropy(student, labels)
  soft = functional.kl_div(
    (student / 3).log_softmax(1), (teacher / 3).softmax(1), reduction="batchmean"
  )
  expected = {"ce": 0.3 * ce, "kl": 0.7 * 9 * soft, "loss": 0.3 * ce + 0.7 * 9 * soft}
  state = toy.round(state, frozen)
  for name, value in expected.items():
    assert float(state.metrics[name][0]) == pytest.approx(float(value), rel=1e-4), name


# Sharpness-aware minimisation.


def test_sam_climbs_by_hand():
  params = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([[4.0]])}
  grads = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[-4.0]])}  # |g| = 5
  found = update.climb(params, grads, 0.5, adaptive=False)
  small.close(found, {"a": np.array([1.3, -2.0]), "b": np.array([[3.6]])})
  # ASAM: p^2 g = (3, 0, -64), |p g| = |(3, 0, -16)| = sqrt(265)
  found = update.climb(params, grads, 0.5, adaptive=True)
  step = 0.5 / np.sqrt(265)
  small.close(found, {"a": np.array([1 + 3 * step, -2.0]), "b": np.array([[4 - 64 * step]])})


def test_a_sam_step_uses_the_gradient_from_up_there():
  @dataclasses.dataclass(frozen=True)
  class Quartic(Quadratic):
    sam = 0.1

    def loss(self, player, variables, state, batch, targets, key, step):
      return {"q": (variables["w"] ** 4).sum() / 4}, base.Aux()

  plain = Optimizer(learning_rate=0.01, momentum=0, nesterov=False, weight_decay=0)
  toy = small.Small(Quartic((1.0, 2.0, 0.5)), optimizer=plain)
  state, _ = toy.play(1)
  w = np.array([1.0, 2.0, 0.5])
  up = w + 0.1 * w**3 / np.linalg.norm(w**3)
  np.testing.assert_allclose(state.roles["w"]["params"], w - 0.01 * up**3, rtol=1e-5)


# Rounds and turns.


@dataclasses.dataclass(frozen=True)
class Draws(base.Method):
  """Remembers what `batch` and each turn draw."""

  turns = (("a", 2), ("b", 1))

  def roles(self, networks):
    role = lambda player: base.Role(player=player, init=lambda *_: jnp.zeros(()))  # noqa: E731
    return {"p": role("a"), "q": role("b")}

  def init_state(self, key, variables, example):
    return {"draws": jnp.zeros((2, 4)), "turn": jnp.int32(0), "batches": jnp.int32(0)}

  def batch(self, key, variables, state, batch, step):
    draws = state["draws"].at[step, 3].set(jax.random.uniform(key))
    return batch, {**state, "draws": draws, "turn": jnp.int32(0), "batches": state["batches"] + 1}

  def loss(self, player, variables, state, batch, targets, key, step):
    draws = state["draws"].at[step, state["turn"]].set(jax.random.uniform(key))
    role = {"a": "p", "b": "q"}[player]
    aux = base.Aux(state={**state, "draws": draws, "turn": state["turn"] + 1})
    return {"x": variables[role] * 1.0}, aux


def test_steps_count_rounds_and_every_turn_draws_for_itself():
  constant = Optimizer(schedule="constant", momentum=0)
  state, _ = small.Small(Draws(), rounds=2, optimizer=constant).play(2)
  assert int(state.step) == 2 and int(state.memory["batches"]) == 2
  draws = np.asarray(state.memory["draws"])
  assert len(np.unique(draws)) == 8 and (draws > 0).all()  # 2 rounds of batch + 3 turns
  again, _ = small.Small(Draws(), rounds=2, optimizer=constant).play(2)
  np.testing.assert_array_equal(draws, again.memory["draws"])
  # p has twice q's updates
  p, q = (float(state.roles[name]["params"]) for name in "pq")
  assert p < q < 0


def test_the_frozen_stay_and_the_state_is_donated():
  toy = small.Small(kd.Method(), augment=Augment(flip=True, crop=1))
  state, frozen = toy.begin()
  before, old = digest(frozen), jax.tree.leaves((state.roles, state.optimizers))
  new = toy.round(state, frozen)
  assert digest(frozen) == before  # reads every buffer: none was donated
  assert all(leaf.is_deleted() for leaf in old)
  assert set(new.roles) == {"student"}


@pytest.mark.parametrize("method", [kd.Method(), adba.Method()], ids=["one turn", "three turns"])
def test_nothing_is_compiled_after_the_first_round(method):
  toy = small.Small(method)
  programs = update._round, update._prepare, update._turn, update._ended, update._zeros
  state, frozen = toy.begin()
  state = update.zero_metrics(toy.program, toy.round(state, frozen))
  compiled = [program._cache_size() for program in programs]
  for _ in range(4):
    state = update.zero_metrics(toy.program, toy.round(state, frozen))
  assert [program._cache_size() for program in programs] == compiled


def test_a_restored_state_compiles_nothing_again(tmp_path):
  small.Small(kd.Method()).train(tmp_path, save_every=4)
  compiled = update._round._cache_size()
  shutil.rmtree(tmp_path / "6")
  steps = []
  small.Small(kd.Method()).train(tmp_path, loop.Hooks(log=lambda step, _: steps.append(step)))
  assert steps == [6] and update._round._cache_size() == compiled


@pytest.mark.parametrize("devices", [1, 8])
def test_a_round_as_one_program_equals_turn_by_turn(devices):
  toy = small.Small(adba.Method(), devices=devices)
  state, frozen = toy.begin()
  whole = jax.tree.map(jnp.copy, state)
  for step in range(2):
    state = toy.round(state, frozen)
    whole = update._round(toy.program, whole, frozen, toy.stream.source(step))
  small.close(state, whole)


def test_several_turns_of_a_player_in_one_program_too():
  toy = small.Small(Draws(), rounds=2)
  state, frozen = toy.begin()
  whole = jax.tree.map(jnp.copy, state)
  state = toy.round(state, frozen)
  whole = update._round(toy.program, whole, frozen, toy.stream.source(0))
  small.close(state, whole)


# What crosses between devices.


def reduced_bytes(method) -> int:
  """How much the compiled step sums over eight devices, per device."""
  toy = small.Small(method, devices=8, augment=Augment(crop=1))
  state, frozen = toy.begin()
  text = update._round.lower(toy.program, state, frozen, toy.stream.source(0)).compile().as_text()
  assert not re.search(r"all-to-all|reduce-scatter", text)
  found = 0
  for shapes in re.findall(r"= (.*?) all-reduce(?:-start)?\(", text):
    for shape in re.findall(r"f32\[([\d,]*)\]", shapes):
      found += 4 * int(np.prod([int(n) for n in shape.split(",") if n] or [1]))
  return found


def test_the_frozen_teacher_costs_no_communication():
  alone, taught = reduced_bytes(supervised.Method()), reduced_bytes(kd.Method())
  student = sum(leaf.nbytes for leaf in jax.tree.leaves(small.network(0)["params"]))
  assert alone >= student  # every gradient crosses once
  assert abs(taught - alone) <= 0.01 * alone + 16  # a term's weight and metric
