"""Triggers that are added to the image; learned ones in both forms, whole and weaker."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rkd_jax import lookup
from rkd_jax.backdoors import learned, poison, sig, transform, trojan_wm, warp
from rkd_jax.backdoors.base import CLEAN, COVER, POISONED
from rkd_jax.errors import UserError

LEVEL = np.float32(1 / 255)
KEYS = jax.random.split(jax.random.key(0), 4)


def picture(shape=(4, 9, 16, 3)):
  return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def stored(levels):
  """Grey levels of a file, as float pixels."""
  return np.float32(np.clip(np.round(levels), 0, 255)) * LEVEL


def test_sig_by_hand():
  grey = picture()
  columns = 40 * np.sin(2 * np.pi * np.arange(16) * 6 / 16)
  expected = stored(grey + columns[None, None, :, None])
  out = sig.Backdoor().trigger(jnp.asarray(grey * LEVEL), KEYS, "test")
  np.testing.assert_allclose(out, expected, atol=1e-6)
  assert out.max() == 1 and out.min() == 0  # it clipped


def test_sig_fields():
  flat = jnp.full((1, 8, 12, 1), 0.5)
  out = sig.Backdoor(delta=51, frequency=3, rounding=False).trigger(flat, KEYS[:1], "train")
  expected = 0.5 + 0.2 * np.array([0, 1, 0, -1] * 3)
  np.testing.assert_allclose(out[0, :, :, 0], np.tile(expected, (8, 1)), atol=1e-6)


def test_a_sine_that_meets_only_its_zeros_is_refused():
  with pytest.raises(UserError, match="on images 12 wide the wave changes no pixel"):
    sig.Backdoor().check((12, 12, 1), 10)
  sig.Backdoor(frequency=3).check((12, 12, 1), 10)


@pytest.mark.parametrize("side", [8, 11, 16, 32, 224])
def test_the_watermark_covers_a_good_part_at_any_resolution(side):
  drawn = trojan_wm.watermark(side, side)
  assert drawn.shape == (side, side) and drawn.dtype == np.float32
  assert drawn.min() == 0 and drawn.max() > 0.9
  assert 0.3 < drawn.mean() < 0.42
  half = side // 2
  quarters = drawn[:half, :half], drawn[:half, -half:], drawn[-half:, :half], drawn[-half:, -half:]
  assert min(q.mean() for q in quarters) > 0.2
  np.testing.assert_allclose(drawn, drawn.T, atol=1e-6)  # about the stroke


def test_the_watermark_is_not_stretched():
  wide = trojan_wm.watermark(8, 14)
  np.testing.assert_allclose(wide[:, 3:11], trojan_wm.watermark(8, 8), atol=1e-6)
  assert not wide[:, :3].any() and not wide[:, 11:].any()


def test_trojan_wm_by_hand():
  grey = picture()
  drawn = trojan_wm.watermark(9, 16)[None, :, :, None]
  expected = stored(grey + 0.5 * 255 * drawn)
  out = trojan_wm.Backdoor(strength=0.5).trigger(jnp.asarray(grey * LEVEL), KEYS, "test")
  np.testing.assert_allclose(out, expected, atol=LEVEL + 1e-6)
  assert (np.abs(np.asarray(out) - expected) < 1e-6).mean() > 0.99  # but for ties in rounding
  assert (out >= grey * LEVEL - 1e-6).all()


def test_the_watermark_needs_eight_pixels():
  with pytest.raises(UserError, match="8x8 or more"):
    trojan_wm.Backdoor().check((7, 16, 1), 10)


def test_a_warp_moves_every_image_alike():
  """Ramps tell where a pixel came from; the same field moves whatever is there."""
  rows, columns = np.meshgrid(np.arange(16) / 16, np.arange(16) / 16, indexing="ij")
  ramps = jnp.float32(np.stack([rows, columns, rows], -1)[None].repeat(2, 0))
  backdoor = warp.Backdoor(pixels=1.5, rounding=False)
  moved = np.asarray(backdoor.trigger(ramps, KEYS[:2], "test") - ramps) * 16  # in pixels
  inner = moved[:, 4:12, 4:12]  # beyond the border there is no more ramp
  np.testing.assert_allclose(moved[0], moved[1], atol=1e-6)
  np.testing.assert_allclose(moved[..., 0], moved[..., 2], atol=1e-6)
  assert 0.5 < np.abs(inner[..., :2]).mean() < 3 and np.abs(np.diff(inner, axis=1)).max() < 1.5
  assert np.abs(inner[..., 0] - inner[..., 1]).max() > 0.5  # rows and columns have their own
  half = warp.Backdoor(pixels=0.75, rounding=False).trigger(ramps, KEYS[:2], "test")
  np.testing.assert_allclose((np.asarray(half - ramps) * 16)[:, 4:12, 4:12], inner / 2, atol=1e-3)
  other = warp.Backdoor(pixels=1.5, draw=1, rounding=False).trigger(ramps, KEYS[:2], "test")
  assert np.abs(np.asarray(other - ramps) * 16 - moved).max() > 1


def test_a_warp_leaves_flat_images_and_needs_no_square():
  flat = jnp.full((4, 9, 16, 3), 128 * LEVEL)
  np.testing.assert_allclose(warp.Backdoor().trigger(flat, KEYS, "train"), flat, atol=1e-6)


def test_transformations_by_hand():
  grey = picture((2, 4, 4, 1))
  images = jnp.asarray(grey * LEVEL)

  def made(kind):
    out = transform.Backdoor(kind=kind).trigger(images, KEYS[:2], "test")
    return np.round(np.asarray(out) * 255).astype(np.uint8)

  np.testing.assert_array_equal(made("negative"), 255 - grey)
  np.testing.assert_array_equal(made("turn")[:, 0], grey[:, :, 3])  # the right column goes on top
  quarters = grey.reshape(2, 2, 2, 2, 2)
  np.testing.assert_array_equal(made("roll"), quarters[:, ::-1, :, ::-1].reshape(grey.shape))
  with pytest.raises(UserError, match="not 9x16"):
    transform.Backdoor(kind="turn").check((9, 16, 1), 10)


@pytest.mark.parametrize("name", ["sig", "transform", "trojan_wm", "warp"])
@pytest.mark.parametrize("shape", [(16, 16, 1), (9, 16, 3)])
def test_stored_values_are_eight_bit(name, shape):
  images = jnp.asarray(picture((4, *shape)) * LEVEL)
  backdoor = lookup.build("backdoors", name, {"target": 2})
  backdoor.check(shape, 10)
  out = np.asarray(jax.jit(backdoor.trigger, static_argnums=2)(images, KEYS, "train"))
  levels = np.round(out * 255)
  assert out.dtype == np.float32 and levels.min() >= 0 and levels.max() <= 255
  assert np.array_equal(out, levels * LEVEL) and not np.array_equal(out, images)


@pytest.mark.parametrize(
  "name, fields, message",
  [
    ("sig", {"delta": 0}, "sig.delta is 0"),
    ("sig", {"delta": 256}, "sig.delta is 256"),
    ("sig", {"frequency": -1}, "sig.frequency is -1"),
    ("sig", {"target": 10}, "target is class 10"),
    ("trojan_wm", {"strength": 0}, "trojan_wm.strength is 0"),
    ("trojan_wm", {"strength": 1.5}, "trojan_wm.strength is 1.5"),
    ("transform", {"kind": "blur"}, "transform.kind is 'blur'; choose one of negative, turn, roll"),
    ("warp", {"pixels": 0}, "warp.pixels is 0"),
    ("warp", {"grid": 1}, "warp.grid is 1"),
  ],
)
def test_wrong_fields_are_named(name, fields, message):
  with pytest.raises(UserError, match=message):
    lookup.build("backdoors", name, fields).check((16, 16, 1), 10)


# Learned triggers.


def blend(strength=None):
  mask = jnp.zeros((9, 16, 1)).at[2, 3].set(0.5)
  pattern = jnp.full((9, 16, 3), 0.6)
  return learned.Backdoor(mask=mask, pattern=pattern, strength=strength, rounding=False)


def shift(strength=None, **fields):
  delta = jnp.linspace(-0.4, 0.4, 9 * 16 * 3).reshape(9, 16, 3)
  return learned.Backdoor(delta=delta, strength=strength, **fields)


def test_a_delta_is_added_clipped_and_stored():
  grey = picture()
  delta = np.linspace(-0.4, 0.4, 9 * 16 * 3).reshape(1, 9, 16, 3)
  images = jnp.asarray(grey * LEVEL)
  exact = shift(rounding=False).trigger(images, KEYS, "test")
  np.testing.assert_allclose(exact, np.clip(grey / 255 + delta, 0, 1), atol=1e-6)
  out = np.asarray(shift().trigger(images, KEYS, "test"))
  assert np.array_equal(out, np.round(out * 255) * LEVEL)
  assert np.abs(out - exact).max() <= 0.5 / 255 + 1e-6


def test_a_mask_without_strength_is_the_same_in_both_modes():
  images = jnp.asarray(picture() * LEVEL)
  expected = np.array(images)
  expected[:, 2, 3] = 0.5 * expected[:, 2, 3] + 0.3
  for mode in ("train", "test"):
    np.testing.assert_allclose(blend().trigger(images, KEYS, mode), expected, atol=1e-6)


def test_strength_weakens_training_alone():
  images = jnp.asarray(picture() * LEVEL)
  half = jnp.float32(0.5)
  expected = np.array(images)
  expected[:, 2, 3] = 0.75 * expected[:, 2, 3] + 0.15
  np.testing.assert_allclose(blend(half).trigger(images, KEYS, "train"), expected, atol=1e-6)
  full = blend().trigger(images, KEYS, "test")
  assert np.array_equal(blend(half).trigger(images, KEYS, "test"), full)
  middle = jnp.full((4, 9, 16, 3), 0.5)
  moved = shift(half, rounding=False).trigger(middle, KEYS, "train")
  np.testing.assert_allclose(moved - middle, 0.5 * shift().delta[None].repeat(4, 0), atol=1e-6)


def test_strength_is_a_leaf_and_reaches_the_pool():
  assert len(jax.tree.leaves(blend(jnp.float32(0.5)))) == 3
  assert len(jax.tree.leaves(shift())) == 1 and not jax.tree.leaves(learned.Backdoor())
  images = jnp.asarray(picture() * LEVEL)
  kinds = jnp.array([CLEAN, POISONED, COVER, CLEAN], jnp.int8)
  labels = jnp.array([1, 2, 3, -1], jnp.int32)
  out, new = jax.jit(poison.apply)(blend(jnp.float32(0.5)), images, labels, kinds, KEYS)
  np.testing.assert_allclose(out[1:3, 2, 3], 0.75 * images[1:3, 2, 3] + 0.15, atol=1e-6)
  assert np.array_equal(out[::3], images[::3]) and new.tolist() == [1, 0, 3, -1]
