"""Detoxification: every reading of it by hand, what may move, and what the survey knows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from rkd_jax.errors import UserError
from rkd_jax.methods import detox

STAGES = ("stage1", "stage2")


def world(method=None, size=20, **changes):
  toy = small.Small(method or detox.Method(), small.rows(size), **changes)
  return toy, *toy.begin()


def features(frozen, rows):
  """The untouched teacher's tensors, {stage: [N, h, w, c]}."""
  pixels = jnp.float32(rows.image) / 255
  network = small.tiny.network()
  found = network.apply(frozen["teacher"], pixels, train=False)[0].pre_relu
  return {stage: np.asarray(value) for stage, value in found.items()}


@pytest.mark.parametrize("variance", ["sample", "channel", "batch"])
def test_the_survey_knows_the_untouched_features_whatever_its_batches(variance, monkeypatch):
  monkeypatch.setattr("rkd_jax.training.start.SURVEY_BATCH", 8)  # 20 = 8 + 8 + 4 of padding
  method = detox.Method(variance=variance)
  toy, state, frozen = world(method)
  seen = features(frozen, toy.rows)
  axes = {"sample": (1, 2, 3), "channel": (3,), "batch": (0,)}[variance]
  for stage in STAGES:
    known = state.memory[stage]
    expected = seen[stage].var(axes).mean()
    np.testing.assert_allclose(method.untouched(known), expected, rtol=1e-4)
    pattern = state.roles["mask"]["params"][stage]["pattern"]
    np.testing.assert_allclose(pattern, seen[stage].mean(0), rtol=1e-4, atol=1e-6)


def test_where_the_pattern_starts():
  mean = world()[1].roles["mask"]["params"]["stage1"]["pattern"]
  zeros, random = (
    world(detox.Method(start=start))[1].roles["mask"]["params"]["stage1"]["pattern"]
    for start in ("zeros", "random")
  )
  assert not np.asarray(zeros).any()
  assert np.linalg.norm(random) == pytest.approx(np.linalg.norm(mean), rel=1e-4)
  assert np.abs(np.corrcoef(np.ravel(random), np.ravel(mean))[0, 1]) < 0.6


F = jax.random.normal(jax.random.key(0), (3, 2, 2, 4))
P = jax.random.normal(jax.random.key(1), (2, 2, 4))


@pytest.mark.parametrize("combine", ["add", "convex"])
@pytest.mark.parametrize("grain", ["fixed", "element", "channel"])
def test_the_change_by_hand(combine, grain):
  fields = {"mask": "fixed"} if grain == "fixed" else {"mask": "learned", "grain": grain}
  method = detox.Method(combine=combine, cap=0.4, **fields)
  gate = {"element": P, "channel": P[0, 0]}.get(grain)
  mask = {"stage1": {"pattern": P} | ({} if gate is None else {"gate": gate})}
  m = 0.4 if gate is None else 0.4 * (np.tanh(np.asarray(gate)) + 1) / 2
  kept = np.asarray(F) if combine == "add" else (1 - m) * np.asarray(F)
  seen = {}
  found = method.edit(mask, seen)("stage1", F)
  np.testing.assert_allclose(found, kept + m * np.asarray(P), rtol=1e-5)
  assert seen["stage1"] is found
  assert method.edit(mask)("stage2", F) is F  # no tap


def test_a_cap_of_zero_is_the_teacher_itself():
  for fields in ({"combine": "add"}, {"combine": "convex", "mask": "learned"}):
    method = detox.Method(cap=0.0, **fields)
    toy, state, frozen = world(method)
    variables = toy.program.bind({**frozen, **state.roles})
    images = jnp.float32(toy.rows.image) / 255
    same = variables["teacher"](images, train=False)[0].logits
    np.testing.assert_array_equal(method.predict(variables, (), images), same)


def test_a_learned_mask_stays_below_its_cap_however_long():
  method = detox.Method(mask="learned", cap=0.05, learning_rate=50.0, weight=100.0)
  toy = small.Small(method, small.rows(16), rounds=4)
  state, _ = toy.play(4)
  for stage in STAGES:
    m = method._amount(state.roles["mask"]["params"][stage])
    assert m.min() >= 0 and m.max() <= 0.05 + 1e-7 and m.std() > 0.005


@pytest.mark.parametrize("variance", ["sample", "channel", "batch"])
def test_its_terms_by_hand(variance):
  method = detox.Method(variance=variance, weight=3.0, guard=2.0, start="random")
  toy, state, frozen = world(method, 8)
  variables = toy.program.bind({**frozen, **state.roles})
  images, label = jnp.float32(toy.rows.image) / 255, jnp.array([0, 1, 2, -1, 1, 2, 0, 1])
  batch = {"image": images, "label": label, "index": jnp.arange(8)}
  terms, aux = method.loss("mask", variables, state.memory, batch, (), None, 0)

  outputs = variables["teacher"](images, train=False, edit=method.edit(variables["mask"]))[0]
  log = np.asarray(jax.nn.log_softmax(outputs.logits))
  value, weight = terms["guard"]
  expected = -2 * log[np.arange(8), np.maximum(label, 0)]
  np.testing.assert_allclose(np.where(weight > 0, value, 0), np.where(label < 0, 0, expected), 1e-4)
  assert weight.tolist() == [1, 1, 1, 0, 1, 1, 1, 1]

  before, axes = features(frozen, toy.rows), {"sample": (1, 2, 3), "channel": (3,), "batch": (0,)}
  spread = lambda x: np.asarray(x).var(axes[variance]).mean()  # noqa: E731
  ratios = [spread(outputs.pre_relu[stage]) / spread(before[stage]) for stage in STAGES]
  assert float(terms["variance"]) == pytest.approx(3 * np.mean(ratios), rel=1e-4)
  assert float(aux.metrics["variance_ratio"]) == pytest.approx(np.mean(ratios), rel=1e-4)


def test_added_patterns_cannot_move_the_batchs_variance_at_their_own_tap():
  method = detox.Method(variance="batch", taps=("stage2",), guard=0.0)
  toy, state, frozen = world(method, 8)
  variables = toy.program.bind({**frozen, **state.roles})
  batch = {"image": jnp.float32(toy.rows.image) / 255, "label": jnp.asarray(toy.rows.label)}

  def term(mask):
    return method.loss("mask", {**variables, "mask": mask}, state.memory, batch, (), None, 0)[0][
      "variance"
    ]

  gradient = jax.grad(term)(variables["mask"])["stage2"]["pattern"]
  assert np.abs(gradient).max() < 1e-5
  assert float(term(variables["mask"])) == pytest.approx(0.1, rel=1e-3)


def test_what_is_optimised_falls_and_only_the_mask_moves():
  method = detox.Method(weight=10.0, guard=0.1)
  toy = small.Small(method, small.rows(16), rounds=30)
  first, frozen = toy.begin()
  before = jax.device_get(frozen)
  start = float(toy.round(first, frozen).metrics["variance_ratio"][0])
  state, after = toy.play(30)
  total, count = state.metrics["variance_ratio"]
  assert float(total / count) < 0.9 * start
  small.close(before, after, 0, 0)
  assert set(state.roles) == {"mask"}


def test_a_pattern_that_is_not_learned_stays():
  method = detox.Method(learn_pattern=False, mask="learned", grain="channel", combine="convex")
  toy = small.Small(method, small.rows(16))
  first = jax.device_get(toy.begin()[0].roles["mask"]["params"])
  after = toy.play(3)[0].roles["mask"]["params"]
  for stage in STAGES:
    np.testing.assert_array_equal(first[stage]["pattern"], after[stage]["pattern"])
    assert (first[stage]["gate"] != np.asarray(after[stage]["gate"])).any()


def test_with_a_suspected_trigger_it_asks_for_the_label_there_too():
  method = detox.Method(inverted=True, guard=2.0)
  suspect = {"mask": jnp.zeros((8, 8, 1)).at[-2:, -2:].set(1.0), "pattern": jnp.ones((8, 8, 1))}
  toy = small.Small(method, small.rows(8), given={"teacher": small.network(3), "suspect": suspect})
  state, frozen = toy.begin()
  variables = toy.program.bind({**frozen, **state.roles})
  images = jnp.float32(toy.rows.image) / 255
  batch = {"image": images, "label": jnp.asarray(toy.rows.label), "index": jnp.arange(8)}
  terms, _ = method.loss("mask", variables, state.memory, batch, (), None, 0)
  logits = method.predict(variables, (), images.at[:, -2:, -2:].set(1.0))
  expected = -2 * np.asarray(jax.nn.log_softmax(logits))[np.arange(8), toy.rows.label]
  np.testing.assert_allclose(terms["inverted"][0], expected, rtol=1e-4)


@pytest.mark.parametrize(
  "wrong",
  [
    {"combine": "minus"}, {"mask": "soft"}, {"grain": "pixel"}, {"variance": "all"},
    {"start": "ones"}, {"cap": 1.5}, {"weight": -1.0}, {"guard": float("nan")}, {"steps": 0},
  ],
)  # fmt: skip
def test_wrong_fields_are_named(wrong):
  with pytest.raises(UserError, match=f"detox.{next(iter(wrong))}"):
    detox.Method(**wrong)


def test_a_tap_that_is_not_there():
  method = detox.Method(taps=("stage2", "layer4"))
  with pytest.raises(UserError, match=r"detox.taps names 'layer4'.*stage1, stage2"):
    method.roles(small.NETWORKS)


def test_a_detoxified_network_is_called_like_the_one_it_stands_for():
  toy, state, frozen = world()
  variables = toy.program.bind({**frozen, **state.roles})
  found = toy.method.detoxified(variables)
  assert found.module is variables["teacher"].module
  assert found.params is variables["teacher"].params
  fields = dataclasses.fields(found(jnp.zeros((1, 8, 8, 1)), train=False)[0])
  assert {"logits", "pre_relu"} <= {f.name for f in fields}
