"""Triggers and plans: in place and nowhere else, exact counts, 8-bit values."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from rkd_jax import lookup
from rkd_jax.backdoors import badnets, base, blended, poison
from rkd_jax.backdoors.base import CLEAN, COVER, POISONED
from rkd_jax.errors import UserError

KEYS = jax.random.split(jax.random.key(0), 6)
LEVEL = np.float32(1 / 255)  # uint8 images become floats by this factor
KINDS = jnp.array([CLEAN, POISONED, COVER] * 2, jnp.int8)


def picture(shape):
  return jnp.asarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8) * LEVEL)


@pytest.fixture
def images():
  return picture((6, 9, 8, 3))


@struct.dataclass
class Learned(base.Backdoor):
  """What a method delivers: mask float[H, W, 1], pattern float[H, W, C]."""

  mask: jax.Array
  pattern: jax.Array

  def trigger(self, images, keys, mode):
    del keys, mode
    return self.stored(images + self.mask[None] * (self.pattern[None] - images))


def test_badnets_patch_is_in_the_corner_and_nowhere_else(images):
  out = badnets.Backdoor().trigger(images, KEYS, "test")
  assert (out[:, 6:, 5:] == 1).all()
  assert np.array_equal(out[:, :6], images[:, :6]) and np.array_equal(
    out[:, :, :5], images[:, :, :5]
  )


def test_badnets_fields(images):
  out = badnets.Backdoor(size=2, value=0.5, margin=1).trigger(images, KEYS, "train")
  expected = np.array(images)
  expected[:, 6:8, 5:7] = 128 * LEVEL  # 127.5 as an 8-bit file keeps it
  assert np.array_equal(out, expected)
  exact = badnets.Backdoor(value=0.5, rounding=False).trigger(images, KEYS, "train")
  assert (exact[:, 6:, 5:] == 0.5).all()


def test_blended_by_hand(images):
  backdoor = blended.Backdoor(alpha=0.25, rounding=False)
  pattern = np.asarray(backdoor.pattern((9, 8, 3)))
  out = backdoor.trigger(images, KEYS, "test")
  np.testing.assert_allclose(out, 0.75 * np.asarray(images) + 0.25 * pattern[None], atol=1e-6)
  assert pattern.min() >= 0 and pattern.max() <= 1 and abs(pattern.mean() - 0.5) < 0.1


def test_blended_pattern_is_fixed_by_its_seed():
  pattern = blended.Backdoor().pattern((16, 16, 1))
  assert np.array_equal(pattern, blended.Backdoor(alpha=0.5).pattern((16, 16, 1)))
  assert not np.array_equal(pattern, blended.Backdoor(seed=1).pattern((16, 16, 1)))
  assert abs(np.asarray(pattern).std() - 12**-0.5) < 0.03  # uniform


@pytest.mark.parametrize("name", ["badnets", "blended"])
@pytest.mark.parametrize("shape", [(16, 16, 1), (9, 8, 3)])
def test_stored_values_are_eight_bit(name, shape):
  images = picture((6, *shape))
  backdoor = lookup.build("backdoors", name, {"target": 2})
  out = np.asarray(jax.jit(backdoor.trigger, static_argnums=2)(images, KEYS, "train"))
  levels = np.round(out * 255)
  assert out.dtype == np.float32 and levels.min() >= 0 and levels.max() <= 255
  assert np.array_equal(out, levels * LEVEL)
  assert not np.array_equal(out, images)


def test_eight_bit_leaves_eight_bit_images_alone():
  levels = jnp.arange(256, dtype=jnp.uint8).astype(jnp.float32) / 255
  assert np.array_equal(jax.jit(base.eight_bit)(levels), levels)
  assert np.array_equal(base.eight_bit(jnp.array([0.0019, 0.002, 1.0])) * 255, [0, 1, 255])


def test_stored_clips():
  assert np.array_equal(badnets.Backdoor().stored(jnp.array([-0.5, 1.5])), [0, 1])


def test_relabel_and_victims():
  backdoor = badnets.Backdoor(target=2)
  labels = jnp.array([0, 2, -1, 1], jnp.int32)
  assert backdoor.relabel(labels).tolist() == [2, 2, 2, 2]
  assert backdoor.victims(labels).tolist() == [True, False, False, True]


@pytest.mark.parametrize("rate, count", [(0, 0), (0.1, 110), (0.02, 22), (0.0149, 16), (1, 1100)])
def test_plan_counts_exactly(rate, count):
  kinds = badnets.Backdoor().plan(0, np.arange(1100) % 10, rate)
  assert kinds.dtype == np.int8 and kinds.shape == (1100,)
  assert (kinds == POISONED).sum() == count and (kinds == CLEAN).sum() == 1100 - count


def test_plan_is_a_function_of_its_seed():
  def plan(seed, rate=0.1):
    return badnets.Backdoor().plan(seed, np.zeros(500, np.int32), rate)

  assert np.array_equal(plan(3), plan(3)) and not np.array_equal(plan(3), plan(4))
  assert plan(3, 0.2)[plan(3) == POISONED].all()  # a higher rate poisons the same and more


def test_plan_takes_the_target_class_too():
  labels = np.arange(1000) % 10
  kinds = badnets.Backdoor(target=0).plan(0, labels, 0.5)
  assert 20 < (kinds[labels == 0] == POISONED).sum() < 80


def test_plan_errors():
  plan = badnets.Backdoor().plan
  for rate in (-0.1, 1.1, float("nan")):
    with pytest.raises(UserError, match=r"poison rate is .* between 0 and 1"):
      plan(0, np.zeros(4), rate)


@pytest.mark.parametrize("wrap", [lambda f: f, lambda f: jax.jit(f, static_argnames="mode")])
def test_apply_does_what_is_planned(images, wrap):
  backdoor = badnets.Backdoor(target=7)
  labels = jnp.array([3, 4, 5, -1, -1, -1], jnp.int32)
  out, new = wrap(poison.apply)(backdoor, images, labels, KINDS, KEYS, mode="test")
  triggered = np.asarray(backdoor.trigger(images, KEYS, "test"))
  expected = np.where(np.array([0, 1, 1, 0, 1, 1], bool)[:, None, None, None], triggered, images)
  assert np.array_equal(out, expected)
  assert new.tolist() == [3, 7, 5, -1, -1, -1] and new.dtype == jnp.int32


def learned(strength=1.0, **fields):
  mask = jnp.zeros((9, 8, 1)).at[2, 3].set(strength)
  return Learned(target=1, mask=mask, pattern=jnp.full((9, 8, 3), 0.6), **fields)


def test_learned_triggers_are_pytrees(images):
  assert len(jax.tree.leaves(learned())) == 2 and not jax.tree.leaves(badnets.Backdoor())
  labels = jnp.zeros(6, jnp.int32)
  apply = jax.jit(chex.assert_max_traces(poison.apply, n=1))
  out, _ = apply(learned(), images, labels, KINDS, KEYS)
  assert (out[KINDS != CLEAN][:, 2, 3] == 153 * LEVEL).all()
  apply(learned(0.5), images, labels, KINDS, KEYS)  # new values, the same program


def test_learned_triggers_under_vmap_and_grad(images):
  several = jax.tree.map(lambda *x: jnp.stack(x), learned(1.0), learned(0.0))
  out = jax.vmap(lambda b: b.trigger(images, KEYS, "train"))(several)
  assert np.array_equal(out[1], images) and not np.array_equal(out[0], images)

  def loss(backdoor):
    return backdoor.trigger(images, KEYS, "train").sum()

  gradient = jax.grad(loss)(learned(rounding=False))
  np.testing.assert_allclose(gradient.pattern[2, 3], 6.0, rtol=1e-6)


@pytest.mark.parametrize(
  "name, fields, message",
  [
    ("badnets", {"target": 10}, r"target is class 10; there are 0\.\.9"),
    ("badnets", {"target": -1}, "target is class -1"),
    ("badnets", {"size": 17}, "size is 17 with a margin of 0; the images are only 16x16"),
    ("badnets", {"size": 3, "margin": 14}, "margin of 14"),
    ("badnets", {"size": 0}, "size is 0"),
    ("badnets", {"margin": -1}, "margin is -1"),
    ("badnets", {"value": 1.5}, "value is 1.5"),
    ("blended", {"alpha": 1.5}, "alpha is 1.5"),
  ],
)
def test_check(name, fields, message):
  with pytest.raises(UserError, match=message):
    lookup.build("backdoors", name, fields).check((16, 16, 1), 10)


@pytest.mark.parametrize("name", ["badnets", "blended"])
def test_defaults_pass_the_check(name):
  lookup.build("backdoors", name, {}).check((16, 16, 1), 10)


def test_wrong_field_is_answered_by_the_right_one():
  with pytest.raises(UserError, match=r"no field 'alfa'. Did you mean 'alpha'"):
    lookup.build("backdoors", "blended", {"alfa": 0.2})
