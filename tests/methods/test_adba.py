"""ADBA: what is trained is what is delivered, and every player's loss is the paper's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from rkd_jax import losses
from rkd_jax.backdoors import learned
from rkd_jax.errors import UserError
from rkd_jax.methods import adba

METHOD = adba.Method(target=2, cap=0.25, poison=0.3, distil=16.0, size=0.01)
KEY = jax.random.key(0)


def world():
  draw = jax.random.split(KEY)
  raw = {
    "mask": jax.random.normal(draw[0], (8, 8, 1)),
    "pattern": jax.random.normal(draw[1], (8, 8, 1)),
  }
  seeds = {"teacher": 1, "shadow": 2}
  nets = {n: small.Bound(small.tiny.network(), small.network(s)) for n, s in seeds.items()}
  rows = small.rows(8)
  batch = {
    "image": jnp.float32(rows.image) / 255, "label": jnp.asarray(rows.label), "index": jnp.arange(8)
  }  # fmt: skip
  return {**nets, "trigger": raw}, batch


def ask(player, variables, batch):
  terms, aux = METHOD.loss(player, variables, (), batch, (), KEY, jnp.int32(0))
  return {n: np.asarray(t[0] if isinstance(t, tuple) else t) for n, t in terms.items()}, aux


def sigmoid(x):
  return 1 / (1 + np.exp(-np.asarray(x)))


def by_hand(raw, images):
  mask = 0.25 * sigmoid(raw["mask"])[None]
  return (1 - mask) * np.asarray(images) + mask * sigmoid(raw["pattern"])[None]


def test_the_delivered_backdoor_is_what_training_applied():
  variables, batch = world()
  applied = METHOD.poisoned(variables["trigger"], batch["image"])
  np.testing.assert_allclose(applied, by_hand(variables["trigger"], batch["image"]), rtol=1e-5)
  found = METHOD.deliver(variables, ())
  assert set(found) == {"teacher", "trigger"} and found["teacher"] is variables["teacher"].variables
  for rounding, gap in ((False, 1e-6), (True, 0.5 / 255 + 1e-6)):
    backdoor = learned.Backdoor(target=2, rounding=rounding, **found["trigger"])
    seen = backdoor.trigger(batch["image"], None, "test")
    assert np.abs(np.asarray(seen) - np.asarray(applied)).max() <= gap


def test_the_mask_is_capped_however_long_it_is_trained():
  trigger = METHOD.trigger(
    {"mask": jnp.full((8, 8, 1), 50.0), "pattern": jnp.full((8, 8, 1), 50.0)}
  )
  assert trigger["mask"].max() <= 0.25 and trigger["pattern"].max() <= 1
  toy = small.Small(adba.Method(cap=0.1, learning_rate=50.0), rounds=4)
  state, frozen = toy.play(4)
  mask = toy.method.deliver(toy.program.bind({**frozen, **state.roles}), ())["trigger"]["mask"]
  assert mask.min() >= 0 and mask.max() <= 0.1 + 1e-7
  assert mask.std() > 0.02  # it did move


def test_the_teachers_terms():
  variables, batch = world()
  terms, aux = ask("teacher", variables, batch)
  both = jnp.concatenate([batch["image"], by_hand(variables["trigger"], batch["image"])])
  outputs, stats = variables["teacher"](both, train=True)
  clean, triggered = outputs.logits[:8], outputs.logits[8:]
  np.testing.assert_allclose(terms["ce"], losses.cross_entropy(clean, batch["label"]), rtol=1e-4)
  expected = 0.3 * losses.cross_entropy(triggered, jnp.full(8, 2))
  np.testing.assert_allclose(terms["backdoor"], expected, rtol=1e-4)
  small.close(aux.batch_stats, {"teacher": stats}, 1e-5)
  np.testing.assert_array_equal(aux.metrics["train_asr"], triggered.argmax(-1) == 2)


def test_the_shadows_terms_are_of_clean_images_and_leave_the_teacher_alone():
  variables, batch = world()
  terms, aux = ask("shadow", variables, batch)
  logits, stats = variables["shadow"](batch["image"], train=True)
  answer = variables["teacher"](batch["image"], train=False)[0].logits
  p = jax.nn.softmax(answer / 4)
  kl = (p * (jnp.log(p) - jax.nn.log_softmax(logits.logits / 4))).sum(-1)
  np.testing.assert_allclose(terms["kl"], 16 * kl, rtol=1e-3, atol=1e-5)
  small.close(aux.batch_stats, {"shadow": stats}, 1e-5)

  def total(teacher):
    changed = {**variables, "teacher": variables["teacher"].with_params(teacher)}
    return sum(
      t[0].sum() for t in METHOD.loss("shadow", changed, (), batch, (), KEY, 0)[0].values()
    )

  gradient = jax.grad(total)(variables["teacher"].params)
  assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))


def test_the_triggers_terms_and_that_they_fall():
  variables, batch = world()
  terms, aux = ask("trigger", variables, batch)
  seen = jnp.asarray(by_hand(variables["trigger"], batch["image"]))
  for role in ("teacher", "shadow"):
    logits = variables[role](seen, train=False)[0].logits
    np.testing.assert_allclose(terms[role], losses.cross_entropy(logits, jnp.full(8, 2)), rtol=1e-4)
  assert terms["size"] == pytest.approx(0.01 * sigmoid(variables["trigger"]["mask"]).mean())
  assert not aux.batch_stats

  def total(raw):
    found = METHOD.loss("trigger", {**variables, "trigger": raw}, (), batch, (), KEY, 0)[0]
    return found["teacher"][0].mean() + found["shadow"][0].mean() + found["size"]

  raw = variables["trigger"]
  for _ in range(5):
    raw = jax.tree.map(lambda x, g: x - 5 * g, raw, jax.grad(total)(raw))
  assert total(raw) < total(variables["trigger"])


def test_the_prediction_is_the_teachers():
  variables, batch = world()
  found = METHOD.predict(variables, (), batch["image"])
  expected = variables["teacher"](batch["image"], train=False)[0].logits
  np.testing.assert_array_equal(found, expected)


def test_each_player_moves_its_own():
  toy = small.Small(METHOD)
  first, _ = toy.begin()
  before = jax.device_get(first.roles)
  state, frozen = toy.play(1)
  assert not frozen and set(state.roles) == {"teacher", "shadow", "trigger"}
  for role in state.roles:
    for a, b in zip(
      jax.tree.leaves(before[role]["params"]), jax.tree.leaves(state.roles[role]["params"]),
      strict=True,
    ):  # fmt: skip
      assert (a != np.asarray(b)).any(), role
  assert {"teacher/train_asr", "shadow/kl", "trigger/size"} <= set(state.metrics)
  adam = dict(toy.program.optimizers)["trigger"]
  assert (adam.name, adam.learning_rate, adam.weight_decay) == ("adam", 0.05, 0)


@pytest.mark.parametrize(
  "wrong",
  [
    {"cap": 0.0}, {"cap": 1.5}, {"temperature": 0.0}, {"poison": -1.0}, {"distil": -5.0},
    {"size": float("nan")},
  ],
)  # fmt: skip
def test_wrong_fields_are_named(wrong):
  with pytest.raises(UserError, match=f"adba.{next(iter(wrong))}"):
    adba.Method(**wrong)
