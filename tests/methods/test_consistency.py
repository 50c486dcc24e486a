"""Consistency: one term more, nothing else touched; and a perturbation that stays in its ball."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from rkd_jax import losses
from rkd_jax.errors import UserError
from rkd_jax.methods import consistency, kd, views

KEY = jax.random.key(5)


def world():
  variables = {
    name: small.Bound(small.tiny.network(), small.network(seed))
    for name, seed in (("teacher", 3), ("student", 4))
  }
  rows = small.rows(8, unlabelled=4)
  batch = {
    "image": jnp.float32(rows.image) / 255, "label": jnp.asarray(rows.label), "index": jnp.arange(8)
  }  # fmt: skip
  return variables, batch


def ask(method, variables, state, batch, step=0):
  targets = method.targets(variables, batch, KEY)
  return method.loss("student", variables, state, batch, targets, KEY, jnp.int32(step))


def make(**fields):
  return consistency.Method(base=kd.Method(), **fields)


def with_perturbation(p):
  return {"base": (), "perturbation": jnp.asarray(p, jnp.float32)}


@pytest.mark.parametrize("view", consistency.VIEWS)
def test_adds_exactly_its_term(view):
  variables, batch = world()
  p = np.random.default_rng(0).uniform(-0.1, 0.1, (8, 8, 1))
  state = with_perturbation(p) if view == "universal" else {"base": ()}
  method = make(view=view, weight=2.5, temperature=3.0)
  terms, aux = ask(method, variables, state, batch)
  base_terms, base_aux = ask(kd.Method(), variables, (), batch)
  for name, (value, weight) in base_terms.items():
    np.testing.assert_array_equal(terms[name][0], value)
    np.testing.assert_array_equal(terms[name][1], weight)
  assert set(terms) == {*base_terms, "consistency"}
  small.close(aux.batch_stats, base_aux.batch_stats, 0, 0)  # those of the clean images
  if view == "universal":
    seen = jnp.clip(batch["image"] + jnp.float32(p)[None], 0, 1)
  else:
    seen = views.random_blend(method.own(KEY), batch["image"], 0.5)
  answer = variables["teacher"](batch["image"], train=False)[0].logits
  logits = variables["student"](seen, train=True)[0].logits
  expected = 2.5 * losses.kl_divergence(answer, logits, 3.0)
  np.testing.assert_allclose(terms["consistency"][0], expected, rtol=1e-5)
  np.testing.assert_array_equal(terms["consistency"][1], np.ones(8))


def test_no_weight_leaves_the_bases_loss():
  variables, batch = world()
  terms, _ = ask(make(weight=0.0), variables, {"base": ()}, batch)
  assert not np.asarray(terms["consistency"][0]).any()


def test_a_blend_is_a_share_of_one_pattern():
  _, batch = world()
  images = batch["image"]
  seen = views.random_blend(KEY, images, 0.4)
  assert seen.min() >= 0 and seen.max() <= 1
  a = jax.random.uniform(jax.random.split(KEY)[0], (8, 1, 1, 1), maxval=0.4)
  pattern = (seen - (1 - a) * images) / a
  np.testing.assert_allclose(pattern, jnp.broadcast_to(pattern[:1], pattern.shape), atol=2e-3)
  assert len(np.unique(a)) == 8 and float(pattern.std()) > 0.2
  np.testing.assert_array_equal(views.random_blend(KEY, images, 0.0), images)


def test_the_universal_perturbation_worsens_in_its_ball():
  variables, batch = world()
  method = make(view="universal", radius=0.08, redraw=1000)
  state = method.init_state(KEY, variables, small.start.Example({"image": batch["image"]}, 8, 3))
  assert state["perturbation"].shape == (8, 8, 1)
  found, step = [], jax.jit(lambda state: ask(method, variables, state, batch))
  for _ in range(12):
    assert np.abs(state["perturbation"]).max() <= 0.08 + 1e-7
    terms, aux = step(state)
    found.append(float(terms["consistency"][0].mean()))
    moved = np.abs(aux.state["perturbation"] - state["perturbation"])
    assert 0 < moved.max() <= 0.008 + 1e-7  # a tenth of the radius
    state = aux.state
  assert found[-1] > 1.2 * found[0]
  assert np.abs(state["perturbation"]).max() == pytest.approx(0.08)


def test_it_is_drawn_anew_now_and_then():
  variables, batch = world()
  method = make(view="universal", redraw=3)
  state = with_perturbation(np.zeros((8, 8, 1)))
  sizes = [
    float(jnp.abs(ask(method, variables, state, batch, k)[1].state["perturbation"]).max())
    for k in range(4)
  ]
  assert [size > 0.011 for size in sizes] == [False, False, True, False]


def test_the_perturbation_gets_no_gradient_and_stays_with_the_state():
  toy = small.Small(make(view="universal", radius=0.05), small.rows(16, 8))
  state, _ = toy.begin()
  first = np.asarray(state.memory["perturbation"])
  state, _ = toy.play(3)
  assert state.memory["base"] == () and np.abs(state.memory["perturbation"]).max() <= 0.05
  assert (np.asarray(state.memory["perturbation"]) != first).any()


def test_the_bases_state_comes_through():
  @dataclasses.dataclass(frozen=True)
  class Counting(kd.Method):
    def init_state(self, key, variables, example):
      return jnp.int32(0)

    def loss(self, player, variables, state, *rest):
      terms, aux = super().loss(player, variables, state, *rest)
      return terms, dataclasses.replace(aux, state=state + 1)

  for view in consistency.VIEWS:
    toy = small.Small(consistency.Method(view=view, base=Counting()))
    state, _ = toy.play(3)
    assert int(state.memory["base"]) == 3
    assert ("perturbation" in state.memory) == (view == "universal")


@pytest.mark.parametrize(
  "wrong", [{"view": "blur"}, {"weight": -1.0}, {"amplitude": 1.5}, {"radius": 2.0}]
)
def test_wrong_fields_are_named(wrong):
  with pytest.raises(UserError, match=f"consistency.{next(iter(wrong))}"):
    make(**wrong)
