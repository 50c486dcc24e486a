"""Consistency: one term more, nothing else touched; views that are the image itself at strength 0,
stay in range, and are drawn as they say; and a perturbation that stays in its ball."""

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


DRAWN = {
  "random_blend": views.random_blend,
  "occlusion": views.occlude,
  "warp": views.warp,
  "warped_blend": views.warped_blend,
}


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


def state_of(view, p=0.0):
  return with_perturbation(np.full((8, 8, 1), p)) if view == "universal" else {"base": ()}


def pictures(batch=64, shape=(12, 9, 3)):
  return jnp.asarray(np.random.default_rng(0).uniform(size=(batch, *shape)), jnp.float32)


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
    strength = 2.0 if view == "warp" else 0.5
    seen = DRAWN[view](method.own(KEY), batch["image"], strength)
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


def test_a_warped_blend_blends_into_what_moved_by_a_share_of_the_shorter_side(monkeypatch):
  pattern = views.warped_blend(KEY, jnp.full((4, 16, 32, 1), 0.5), 0.5) - 0.5
  assert float(jnp.abs(pattern).max()) > 0.1  # one colour has nothing to bend
  monkeypatch.setattr(views, "random_blend", lambda key, images, amplitude: images)
  ramp = jnp.broadcast_to(jnp.linspace(0, 1, 32)[None, None, :, None], (64, 16, 32, 1))
  inner = slice(4, 28)  # where nothing reaches beyond the border
  for amplitude in (0.25, 0.5):
    moved = 31 * jnp.abs(views.warped_blend(KEY, ramp, amplitude) - ramp)[:, :, inner]
    assert 0.8 * amplitude / 4 * 16 < moved.max() <= amplitude / 4 * 16


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
@pytest.mark.parametrize("view", DRAWN)
def test_no_strength_is_the_image_itself(view, wrap):
  images = pictures()
  np.testing.assert_array_equal(wrap(DRAWN[view])(KEY, images, 0.0), images)
  np.testing.assert_array_equal(views.shift(images, jnp.zeros(images.shape[1:])), images)


@pytest.mark.parametrize("view", consistency.VIEWS)
def test_a_grid_of_strengths_may_start_at_nothing(view):
  variables, batch = world()
  method = make(view=view, amplitude=0.0, pixels=0.0, radius=0.0)
  terms, aux = ask(method, variables, state_of(view), batch)
  answer, logits = (variables[n](batch["image"], train=n == "student")[0].logits for n in variables)
  plain = losses.kl_divergence(answer, logits, method.temperature)
  np.testing.assert_allclose(terms["consistency"][0], plain, rtol=1e-5, atol=1e-7)
  if view == "universal":
    assert not np.asarray(aux.state["perturbation"]).any()


@pytest.mark.parametrize("view", DRAWN)
def test_views_are_functions_of_their_key_and_stay_in_range(view):
  images, draw = pictures().at[:20].set(0.0).at[20:40].set(1.0), DRAWN[view]
  strength = 3.0 if view == "warp" else 0.7
  seen, jitted = draw(KEY, images, strength), jax.jit(draw)(KEY, images, strength)
  assert seen.shape == images.shape and seen.dtype == images.dtype
  assert seen.min() >= 0 and seen.max() <= 1 and jitted.min() >= 0 and jitted.max() <= 1
  np.testing.assert_array_equal(seen, draw(KEY, images, strength))
  np.testing.assert_allclose(seen, jitted, atol=1e-5)
  other = draw(jax.random.key(6), images, strength)
  assert (np.asarray(seen[40:] != other[40:]).any((1, 2, 3))).mean() > 0.9


@pytest.mark.parametrize("view", ["occlusion", "warp"])
def test_views_pass_gradients(view):
  # linear in the images, so their gradient is their adjoint
  images, draw = pictures(8), lambda x: DRAWN[view](KEY, x, 0.5)
  weight, moved = (jax.random.normal(jax.random.key(k), images.shape) for k in (1, 2))
  gradient = jax.jit(jax.grad(lambda x: (weight * draw(x)).sum()))(images)
  np.testing.assert_allclose((gradient * moved).sum(), (weight * draw(moved)).sum(), rtol=1e-4)


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_an_occlusion_is_a_rectangle_of_the_image_before(share):
  images = pictures(500)
  seen, before = np.asarray(views.occlude(KEY, images, share)), np.roll(images, 1, axis=0)
  hidden = (seen != np.asarray(images)).any(-1)
  rows, columns = hidden.any(2), hidden.any(1)
  np.testing.assert_array_equal(hidden, rows[:, :, None] & columns[:, None, :])
  for lines in (rows, columns):  # without gaps
    assert (np.abs(np.diff(lines.astype(int), prepend=0, append=0, axis=1)).sum(1) <= 2).all()
  np.testing.assert_array_equal(seen[hidden], before[hidden])
  area = hidden.mean((1, 2))
  assert area.max() <= share and 0.2 * share < area.mean() < 0.5 * share
  corners = hidden[:, [0, 0, -1, -1], [0, -1, 0, -1]].mean(0)
  assert (corners > 0.05 * share).all() and len(np.unique(area)) > 5


def test_a_warp_moves_smoothly_and_no_further_than_asked():
  # a ramp shows where each pixel was taken from
  rows = jnp.broadcast_to(jnp.arange(32.0)[None, :, None, None] / 31, (40, 32, 32, 1))
  ramps = jnp.concatenate([rows, rows.swapaxes(1, 2)], -1)
  moved = np.asarray(views.warp(KEY, ramps, 1.5) - ramps) * 31
  inner = moved[:, 2:-2, 2:-2]
  assert np.abs(moved).max() <= 1.5 + 1e-4 and np.abs(inner).max() > 1.2
  assert abs(inner.mean()) < 0.1 and inner.std() > 0.3
  for axis in (1, 2):  # two opposite control points are eight pixels apart
    assert np.abs(np.diff(inner, axis=axis)).max() <= 2 * 1.5 / 8 + 1e-4
  assert (moved[0] != moved[1]).mean() > 0.5
  np.testing.assert_allclose(views.warp(KEY, jnp.full_like(rows, 0.3), 4.0), 0.3, rtol=1e-6)


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
  "wrong",
  [{"view": "blur"}, {"weight": -1.0}, {"amplitude": 1.5}, {"radius": 2.0}, {"pixels": -1.0}],
)
def test_wrong_fields_are_named(wrong):
  with pytest.raises(UserError, match=f"consistency.{next(iter(wrong))}"):
    make(**wrong)
