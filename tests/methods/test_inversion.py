"""Trigger inversion: its loss by hand, what it delivers, and that it finds what was planted."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from rkd_jax.backdoors import badnets
from rkd_jax.data.stream import Rows
from rkd_jax.errors import UserError
from rkd_jax.methods import inversion, supervised
from rkd_jax.training import update
from rkd_jax.training.optimizer import Optimizer

METHOD = inversion.Method(cost=0.02)
LABELS = jnp.array([0, 0, 0, 1, 2, 2])
NONE_YET = {"hits": jnp.zeros(3), "count": jnp.zeros(3)}
ALL_WORK = {"hits": jnp.full(3, 9.5), "count": jnp.full(3, 10.0)}


def world(method=METHOD):
  """(variables, batch): a tiny network, six images, masks and patterns as first drawn."""
  toy = small.Small(method, small.rows(6), batch=6)
  state, frozen = toy.begin()
  batch = {"image": jnp.float32(toy.rows.image) / 255, "label": LABELS, "index": jnp.arange(6)}
  return toy.program.bind({**frozen, **state.roles}), batch


def sigmoid(x):
  return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def ask(variables, batch, method=METHOD):
  return method.loss("suspect", variables, NONE_YET, batch, (), None, 0)


def objective(raw, variables, batch, method=METHOD):
  return update.reduce_terms(ask({**variables, "suspect": raw}, batch, method)[0])[0]


def test_its_loss_by_hand():
  variables, batch = world()
  raw, values, hits = variables["suspect"], [], []
  assert raw["mask"].shape == (3, 8, 8, 1) and raw["pattern"].shape == (3, 8, 8, 1)
  masks, patterns = sigmoid(raw["mask"]), sigmoid(raw["pattern"])
  for k in range(3):
    others = np.asarray(batch["image"])[np.asarray(LABELS) != k]  # without images of the class
    seen = np.float32((1 - masks[k]) * others + masks[k] * patterns[k])
    logits = variables["teacher"](jnp.asarray(seen), train=False)[0].logits
    values += [-np.asarray(jax.nn.log_softmax(logits))[:, k]]
    hits += [np.asarray(logits).argmax(-1) == k]
  assert [len(v) for v in values] == [3, 5, 4]
  terms, aux = ask(variables, batch)
  mean, _ = update.reduce_terms({"flip": terms["flip"]})
  assert float(mean) == pytest.approx(np.concatenate(values).mean(), rel=1e-5)
  per_pixel = np.mean([masks[k].sum() for k in range(3)])
  assert float(terms["size"]) == pytest.approx(0.02 * per_pixel, rel=1e-5)
  assert update.count(aux.metrics["train_asr"]) == (np.concatenate(hits).sum(), 12)


def test_images_of_a_class_say_nothing_about_its_own_trigger():
  variables, batch = world()
  still = {**batch, "image": batch["image"].at[3].set(0.9)}  # the only image of class 1
  gradient = lambda seen: jax.grad(objective)(variables["suspect"], variables, seen)  # noqa: E731
  before, after = gradient(batch), gradient(still)
  for name in ("mask", "pattern"):
    np.testing.assert_allclose(before[name][1], after[name][1], atol=1e-7)
    assert all(np.abs(before[name][k] - after[name][k]).max() > 1e-5 for k in (0, 2))


def test_an_image_without_a_label_counts_for_every_class():
  variables, batch = world()
  weight = ask(variables, {**batch, "label": LABELS.at[0].set(-1)})[0]["flip"][1]
  np.testing.assert_array_equal(weight.reshape(3, 6)[:, 0], [1, 1, 1])


def test_the_gradient_by_differences():
  variables, batch = world()
  raw = variables["suspect"]
  gradient = jax.grad(objective)(raw, variables, batch)
  for name in ("mask", "pattern"):
    way = jax.random.normal(jax.random.key(1), raw[name].shape)
    moved = lambda t, name=name, way=way: {**raw, name: raw[name] + t * way}  # noqa: E731
    up, down = (objective(moved(t), variables, batch) for t in (0.002, -0.002))
    along = float((gradient[name] * way).sum())
    assert float(up - down) / 0.004 == pytest.approx(along, rel=0.02, abs=1e-3)


def test_the_suspect_is_the_class_of_the_smallest_mask_and_all_is_in_the_unit_interval():
  raw = {
    "mask": jnp.stack([jnp.full((8, 8, 1), fill) for fill in (40.0, -1.0, 0.0)]),
    "pattern": jnp.stack([jnp.full((8, 8, 1), fill) for fill in (-40.0, 2.0, 0.0)]),
  }
  found = METHOD.deliver({"suspect": raw}, ALL_WORK)
  assert set(found) == set(METHOD.delivers)
  np.testing.assert_allclose(found["norms"], 64 * sigmoid([40.0, -1.0, 0.0]), rtol=1e-5)
  np.testing.assert_allclose(found["suspect"]["mask"], np.full((8, 8, 1), sigmoid(-1.0)), rtol=1e-5)
  np.testing.assert_allclose(found["suspect"]["pattern"], np.full((8, 8, 1), sigmoid(2.0)), 1e-5)
  extreme = METHOD.deliver({"suspect": jax.tree.map(lambda x: 1e6 * x, raw)}, ALL_WORK)
  for leaf in jax.tree.leaves(extreme["suspect"]):
    assert leaf.min() >= 0 and leaf.max() <= 1


def test_a_small_mask_that_does_nothing_is_no_suspect():
  raw = {
    "mask": jnp.stack([jnp.full((8, 8, 1), fill) for fill in (-9.0, -1.0, 0.0)]),
    "pattern": jnp.stack([jnp.full((8, 8, 1), fill) for fill in (-1.0, 2.0, 0.0)]),
  }
  rates = lambda *hits: {"hits": jnp.array(hits), "count": jnp.full(3, 10.0)}  # noqa: E731
  for state, fill in ((rates(0.0, 9.5, 9.5), 2.0), (rates(1.0, 2.0, 3.0), 0.0)):
    found = METHOD.deliver({"suspect": raw}, state)
    np.testing.assert_allclose(found["suspect"]["pattern"][0, 0, 0], sigmoid(fill), rtol=1e-5)
    np.testing.assert_allclose(found["rates"], state["hits"] / 10, rtol=1e-6)


def test_hits_are_counted_per_class_and_fade():
  variables, batch = world()
  before = {"hits": jnp.array([1.0, 2.0, 3.0]), "count": jnp.full(3, 10.0)}
  _, aux = METHOD.loss("suspect", variables, before, batch, (), None, 0)
  hit, weight = (np.asarray(x).reshape(3, 6) for x in aux.metrics["train_asr"])
  np.testing.assert_allclose(aux.state["count"], 9 + np.array([3, 5, 4]), rtol=1e-6)
  expected = 0.9 * np.array([1, 2, 3]) + (hit * weight).sum(1)
  np.testing.assert_allclose(aux.state["hits"], expected, rtol=1e-6)


def test_the_objective_falls_and_the_teacher_stays():
  toy = small.Small(METHOD, small.rows(12), rounds=20, batch=12)
  first, frozen = toy.begin()
  raw, kept = jax.device_get((first.roles["suspect"]["params"], frozen))
  variables = toy.program.bind(frozen)
  batch = {"image": jnp.float32(toy.rows.image) / 255, "label": jnp.asarray(toy.rows.label)}
  state, frozen = toy.play(20)
  before, after = (
    float(objective(tree, variables, batch)) for tree in (raw, state.roles["suspect"]["params"])
  )
  assert after < 0.8 * before
  small.close(kept, frozen, 0, 0)
  assert set(state.roles) == {"suspect"}
  adam = dict(toy.program.optimizers)["suspect"]
  assert (adam.name, adam.learning_rate, adam.b1, adam.weight_decay) == ("adam", 0.1, 0.5, 0)


@dataclasses.dataclass(frozen=True)
class Cornered:
  """Says the class of the mean brightness; but `target` the surer, the whiter the last pixel."""

  target: int

  def apply(self, variables, images, train, key=None, edit=None, capture=False):
    levels = jnp.array([0.25, 0.5, 0.75])[None]
    logits = -40 * jnp.abs(images.mean((1, 2, 3))[:, None] - levels)
    white = 80 * (images[:, -1, -1] - 0.5)
    return small.Outputs(logits + white * jax.nn.one_hot(self.target, 3)[None]), {}


@pytest.mark.parametrize("target", range(3))
def test_a_corner_that_decides_is_found(target):
  networks = {"teacher": Cornered(target)}
  method = inversion.Method(cost=0.2, learning_rate=0.3)
  given = {"teacher": {"params": {}}}
  toy = small.Small(method, small.rows(12), 60, 12, networks=networks, given=given)
  state, frozen = toy.play(60)
  found = method.deliver(toy.program.bind({**frozen, **state.roles}), state.memory)
  assert int(found["norms"].argmin()) == target and found["rates"][target] > 0.9
  mask = np.asarray(found["suspect"]["mask"])[..., 0]
  assert mask[-1, -1] == mask.max() > 0.5 > 3 * np.delete(mask.ravel(), -1).mean()
  assert found["suspect"]["pattern"][-1, -1, 0] > 0.8


def textures(size):
  """Images whose class is a texture: no few pixels change it, but a patch that was trained in."""
  row, column = np.indices((8, 8))
  kinds = np.stack([row, column, row + column]) % 2
  labels = np.arange(size, dtype=np.int32) % 3
  noise = np.random.default_rng(0).integers(0, 40, (size, 8, 8))
  return Rows((80 * kinds[labels] + noise)[..., None].astype(np.uint8), labels)


@pytest.mark.parametrize("target", [0, 2])
def test_a_patch_that_was_trained_in_is_suspected(target):
  backdoor = badnets.Backdoor(target=target, size=2)
  kind = (np.arange(48) % 4 == 0).astype(np.int8)
  rows, fast = dataclasses.replace(textures(48), kind=kind), Optimizer(learning_rate=0.2)
  poisoned = small.Small(supervised.Method(), rows, 90, 24, optimizer=fast, backdoor=backdoor)
  given = {"teacher": poisoned.play(90)[0].roles["student"]}
  toy = small.Small(inversion.Method(learning_rate=0.2), textures(24), 80, 24, given=given)
  state, frozen = toy.play(80)
  variables = toy.program.bind({**frozen, **state.roles})
  norms = np.asarray(toy.method.deliver(variables, state.memory)["norms"])
  images = backdoor.trigger(jnp.float32(toy.rows.image) / 255, None, "test")
  said = np.asarray(toy.method.predict(variables, (), images)).argmax(-1)
  assert (said == target).mean() > 0.9  # it is planted
  assert norms.argmin() == target


@pytest.mark.parametrize("wrong", [{"cost": -1.0}, {"steps": 0}, {"batch_size": 0}])
def test_wrong_fields_are_named(wrong):
  with pytest.raises(UserError, match=f"inversion.{next(iter(wrong))}"):
    inversion.Method(**wrong)
