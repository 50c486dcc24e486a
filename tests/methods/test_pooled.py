"""CMI, DeepInversion and OOD: rings, the best batch, contrasts, windows; what they refuse."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from rkd_jax import lookup
from rkd_jax.errors import UserError
from rkd_jax.methods import cmi, datafree, deep_inversion, ood, pooled
from rkd_jax.models.network import Network
from rkd_jax.training import checkpoint, update

INVERSION = deep_inversion.Method(searches=2, students=1, pool=2)
CONTRAST = cmi.Method(searches=1, students=1, pool=2, bank=20, negatives=6, noise=3, width=2)


def images(value, count=3):
  return jnp.full((count, 4, 4, 1), value)


def test_a_pool_keeps_the_best_batch_of_a_round_and_of_the_newest_rounds():
  state = pooled.holding(jnp.zeros((2, 3, 4, 4, 1)))
  for step, values in enumerate([(2.0, 1.0, 3.0), (5.0, 6.0), (9.0, 8.0)]):
    state = {**state, "best": jnp.float32(jnp.inf)}  # as `batch` does
    for value in values:
      state = INVERSION.kept(state, images(value), jnp.float32(value), {"round": step})
  np.testing.assert_array_equal(state["images"][:, 0, 0, 0, 0], [8, 5])  # rounds 2 and 1
  assert float(state["best"]) == 8


def test_students_draw_from_what_is_filled():
  pool = jnp.stack([images(0.25), images(0.5), images(0.0), images(0.0)])
  method = dataclasses.replace(INVERSION, pool=4)
  fresh, slots = {**pooled.holding(pool), "given": jnp.int32(0)}, jnp.arange(64)
  found = method.drawn(jax.random.key(0), fresh, slots, 2)
  assert set(np.unique(found).tolist()) == {0.25, 0.5}
  assert set(np.unique(method.drawn(jax.random.key(0), fresh, slots, 1)).tolist()) == {0.25}
  shown = method.invent(jax.random.key(1), {}, {"images": pool}, 64)
  assert set(np.unique(shown).tolist()) == {0.25, 0.5}


def test_a_phase_goes_on_filling_the_pool_it_is_given():
  method, earlier = dataclasses.replace(INVERSION, pool=3), images(0.0)[None].repeat(3, 0)
  earlier = earlier.at[0].set(0.25)
  state = {**pooled.holding(earlier), "best": jnp.float32(jnp.inf)}
  state = method.kept(state, images(0.5), jnp.float32(1.0), {"round": 0})
  np.testing.assert_array_equal(state["images"][:, 0, 0, 0, 0], [0.25, 0.5, 0])

  def seen(state, rounds):
    found = method.drawn(jax.random.key(0), state, jnp.arange(64), rounds)
    return set(np.unique(found).tolist())

  assert seen(state, 1) == {0.25, 0.5}
  _, before = method.given({"pool": earlier}, state)
  assert seen(before, 2) == {0.25}  # whatever the round
  _, now = method.given({"pool": jnp.zeros_like(earlier)}, {**state, "given": jnp.int32(0)})
  np.testing.assert_array_equal(now["images"], state["images"])  # nothing was given


def test_a_full_pool_is_delivered_with_its_oldest_batch_first():
  method = dataclasses.replace(INVERSION, pool=3)
  state = pooled.holding(jnp.zeros((3, 3, 4, 4, 1)))
  student = {"student": small.Bound(small.tiny.network(), {})}
  delivered = []
  for step in range(4):
    state = {**state, "best": jnp.float32(jnp.inf)}
    state = method.kept(state, images(step + 1.0), jnp.float32(1.0), {"round": jnp.int32(step)})
    delivered.append(method.deliver(student, state)["pool"][:, 0, 0, 0, 0].tolist())
  assert delivered == [[1, 0, 0], [1, 2, 0], [1, 2, 3], [2, 3, 4]]


def test_students_may_see_the_pool_moved():
  pool = jax.random.uniform(jax.random.key(0), (2, 3, 8, 8, 1))
  state = {**pooled.holding(pool), "given": jnp.int32(2)}
  batch, key = {"round": jnp.int32(0), "slot": jnp.arange(3)}, jax.random.key(1)

  def seen(jitter):
    method = dataclasses.replace(INVERSION, jitter=jitter)
    return np.asarray(method.images("student", {}, state, batch, key))

  whole = np.asarray(pool).reshape(-1, 64)
  assert all((whole == image.ravel()).all(1).any() for image in seen(False))
  assert not any((whole == image.ravel()).all(1).any() for image in seen(True))


def test_a_bank_is_a_ring():
  bank = jnp.zeros((5, 1))
  for step in range(3):
    bank = cmi.remembered(bank, jnp.full((2, 1), step + 1.0), step)
  assert bank[:, 0].tolist() == [3, 1, 2, 2, 3]  # rows 4 and 0 are the third round's
  assert cmi.remembered(jnp.zeros((2, 1)), jnp.arange(3.0)[:, None], 0)[:, 0].tolist() == [0, 1]


def test_a_contrast_by_hand():
  anchors = jnp.eye(2)
  others = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
  both = [np.exp(2.0), 1.0, 1.0], [1.0, np.exp(2.0), np.exp(2.0)]
  for count in (3, 2):  # the last of the others is not there yet
    found = cmi.info_nce(anchors, others, jnp.arange(3) < count, 0.5)
    wanted = [-np.log(row[k] / sum(row[:count])) for k, row in enumerate(both)]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_a_generator_of_cmi_by_its_terms():
  method = dataclasses.replace(CONTRAST, statistics=3.0, adversarial=0.5, contrast=0.8)
  toy = small.Small(method)
  state, frozen = toy.begin()
  variables, memory = toy.program.bind({**frozen, **state.roles}), state.memory
  batch, memory = method.batch(jax.random.key(0), variables, memory, {}, jnp.int32(0))
  terms, aux = method.loss("generator", variables, memory, batch, None, jax.random.key(1), 0)
  images = method.made(variables)
  outputs = variables["teacher"](images, train=False, capture=True)[0]
  said = variables["student"](images, train=False)[0].logits
  plain = jax.nn.log_softmax(outputs.logits)
  np.testing.assert_allclose(terms["ce"][0], -plain[jnp.arange(8), batch["label"]], rtol=1e-5)
  gap = datafree.statistics_gap(variables["teacher"], outputs)
  np.testing.assert_allclose(terms["statistics"], 3 * gap, rtol=1e-5)
  same = outputs.logits.argmax(-1) == said.argmax(-1)
  apart = (jnp.exp(plain) * (plain - jax.nn.log_softmax(said))).sum(-1)
  np.testing.assert_allclose(terms["adversarial"][0], -0.5 * apart * same, rtol=1e-4, atol=1e-6)
  whole = sum(jnp.mean(t[0] if isinstance(t, tuple) else t) for t in terms.values())
  np.testing.assert_allclose(aux.state["best"], whole, rtol=1e-5)
  np.testing.assert_allclose(aux.state["embedding"], outputs.embedding, rtol=1e-5)
  np.testing.assert_array_equal(memory["bank"], 0)  # nothing was made yet
  _, later = method.batch(jax.random.key(0), variables, aux.state, {}, jnp.int32(1))
  np.testing.assert_allclose(later["bank"][:8], outputs.embedding, rtol=1e-5)


def test_total_variation_by_hand():
  ramp = jnp.arange(4.0).reshape(1, 4, 1, 1) * jnp.ones((1, 1, 3, 1))
  assert float(deep_inversion.variation(ramp)) == pytest.approx(1.0)
  assert float(deep_inversion.variation(images(0.3))) == 0


def test_a_window_of_the_least_size_shows_the_picture_itself():
  picture = jnp.asarray(np.random.default_rng(0).uniform(size=(4, 4, 2)).astype(np.float32))
  found = [np.asarray(ood.window(jax.random.key(k), picture, (4, 4), 1.0)) for k in range(6)]
  whole, mirrored = np.asarray(picture), np.asarray(picture)[:, ::-1]
  same = [np.allclose(f, whole, atol=1e-5) for f in found]
  other = [np.allclose(f, mirrored, atol=1e-5) for f in found]
  assert all(a != b for a, b in zip(same, other, strict=True)) and 0 < sum(same) < 6


def test_windows_stay_in_the_picture():
  picture = jnp.ones((9, 12, 1))
  found = jax.vmap(lambda k: ood.window(k, picture, (4, 4), 2.0))(
    jax.random.split(jax.random.key(0), 20)
  )
  np.testing.assert_allclose(found, 1, rtol=1e-6)  # outside it would be 0


def test_photographs_have_the_channels_of_the_images():
  grey, colour = (ood.photograph("flower", n) for n in (1, 3))
  assert grey.shape == (*colour.shape[:2], 1) and colour.min() >= 0 and colour.max() <= 1
  np.testing.assert_allclose(grey[..., 0], colour.mean(-1), rtol=1e-6)


def test_bad_input_is_refused():
  tiny = small.NETWORKS["teacher"]
  big = Network(tiny.module, (224, 224, 3), (0.5,) * 3, (0.25,) * 3)
  with pytest.raises(UserError, match="from a picture of only 427x640"):
    ood.Method().roles({"teacher": big, "student": big})
  with pytest.raises(UserError, match="choose china or flower"):
    ood.Method(picture="me")
  seer = Network(lookup.load("models", "vit")(), (32, 32, 3), (0.5,) * 3, (0.25,) * 3)
  for method in (cmi.Method(), deep_inversion.Method()):
    with pytest.raises(UserError, match="has none"):
      method.roles({"teacher": seer, "student": seer})
  with pytest.raises(UserError, match=r"cmi\.sharpness"):
    cmi.Method(sharpness=0.0)
  with pytest.raises(UserError, match=r"deep_inversion\.pool"):
    deep_inversion.Method(pool=0)


@pytest.mark.slow
def test_every_device_convolves_its_share_of_the_pools_images():
  toy = small.Small(CONTRAST, devices=4)
  state, frozen = toy.begin()
  whole = jax.jit(lambda s, f, x: update.one_round(toy.program, s, f, x))
  text = whole.lower(state, frozen, toy.stream.source(0)).compile().as_text()
  batches = {int(n) for n in re.findall(r"= f32\[(\d+),[\d,]+\]\S* convolution\(", text)}
  assert 2 in batches and 8 not in batches, batches


@pytest.mark.slow
@pytest.mark.parametrize("method", [INVERSION, CONTRAST], ids=["deep_inversion", "cmi"])
def test_a_killed_phase_ends_with_the_same_bytes(method, tmp_path):
  small.killed(small.Small(method), tmp_path / "cut", 4)
  whole, resumed = (small.Small(method).train(tmp_path / d) for d in ("whole", "cut"))
  assert checkpoint.digest(resumed) == checkpoint.digest(whole)
  pool = np.asarray(whole.memory["images"])
  assert pool.min() >= 0 and pool.max() <= 1 and len(np.unique(pool)) > 100
