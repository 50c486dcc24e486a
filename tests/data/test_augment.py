"""Augmentation: by-hand pixels, ranges, and the same draws whatever the batch or the devices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy import stats

from rkd_jax.data.augment import Augment, apply
from rkd_jax.errors import UserError


def keys(size, seed=0):
  return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(size))


def batch_of(images):
  size = len(images)
  return {
    "image": jnp.asarray(images, jnp.float32),
    "label": jnp.arange(size, dtype=jnp.int32) % 3 - 1,
    "index": jnp.arange(size, dtype=jnp.int32),
  }


@pytest.fixture(scope="module")
def batch():
  # No pixel is zero, so that padding and cutouts can be told from the image.
  return batch_of(np.random.default_rng(0).uniform(0.1, 1, (64, 8, 10, 3)))


def changed(augment, batch, seed=0):
  return np.asarray(jax.jit(apply, static_argnums=0)(augment, keys(64, seed), batch)["image"])


def test_nothing_is_nothing(batch):
  assert Augment().identity and not Augment(flip=True).identity
  assert apply(Augment(), keys(64), batch)["image"] is batch["image"]


def test_flip_flips_half(batch):
  images = np.asarray(batch["image"])
  out = changed(Augment(flip=True), batch)
  flipped = (out == images[:, :, ::-1]).all((1, 2, 3))
  kept = (out == images).all((1, 2, 3))
  assert (flipped ^ kept).all() and 20 < flipped.sum() < 44


@pytest.mark.parametrize("pad", ["constant", "reflect"])
def test_crop_is_a_window_of_the_padded_image(batch, pad):
  out = changed(Augment(crop=2, pad=pad), batch)
  padded = np.pad(np.asarray(batch["image"]), ((0, 0), (2, 2), (2, 2), (0, 0)), mode=pad)
  windows = np.lib.stride_tricks.sliding_window_view(padded, (8, 10), axis=(1, 2))
  windows = np.moveaxis(windows, 3, 5)  # [B, 5, 5, 8, 10, C]
  hits = (windows == out[:, None, None]).all((3, 4, 5))
  assert (hits.sum((1, 2)) == 1).all()
  assert hits.sum(0).any(1).all() and hits.sum(0).any(0).all()  # every offset occurs


def test_cutout_is_a_clipped_square(batch):
  out = changed(Augment(cutout=4), batch)
  for image, before in zip(out, np.asarray(batch["image"]), strict=True):
    black = (image == 0).all(-1)
    rows, columns = black.any(1), black.any(0)
    assert np.array_equal(black, rows[:, None] & columns[None, :])
    assert 2 <= rows.sum() <= 4 and 2 <= columns.sum() <= 4
    assert (np.diff(np.flatnonzero(rows)) == 1).all() and (
      np.diff(np.flatnonzero(columns)) == 1
    ).all()
    assert np.array_equal(image[~black], before[~black])


def test_mixup_by_hand(batch):
  out = jax.jit(apply, static_argnums=0)(Augment(mixup=0.4), keys(64), batch)
  weight = np.asarray(out["mix_weight"])
  assert weight.dtype == np.float32 and (weight >= 0).all() and (weight <= 1).all()
  assert np.asarray(out["mix_label"]).tolist() == np.roll(np.asarray(batch["label"]), 1).tolist()
  images, own = np.asarray(batch["image"]), weight[:, None, None, None]
  expected = own * images + (1 - own) * np.roll(images, 1, axis=0)
  np.testing.assert_allclose(out["image"], expected, atol=1e-6)
  assert out["label"] is not out["mix_label"] and np.array_equal(out["label"], batch["label"])


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_mixup_follows_the_beta_distribution(alpha):
  # Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1)).
  one = batch_of(np.full((4000, 1, 1, 1), 0.5))
  weight = np.asarray(apply(Augment(mixup=alpha), keys(4000), one)["mix_weight"])
  assert abs(weight.mean() - 0.5) < 0.03 and abs(weight.var() - 1 / (8 * alpha + 4)) < 0.01
  assert stats.kstest(weight, stats.beta(alpha, alpha).cdf).pvalue > 0.01


@pytest.mark.parametrize(
  "augment",
  [
    Augment(flip=True),
    Augment(crop=3),
    Augment(cutout=3),
    Augment(flip=True, crop=2, pad="reflect", cutout=3),
  ],
)
def test_same_draws_whatever_the_batch(batch, augment):
  def images(rows):
    part = jax.tree.map(lambda x: x[rows], batch)
    return np.asarray(jax.jit(apply, static_argnums=0)(augment, keys(64)[rows], part)["image"])

  whole = images(np.arange(64))
  assert np.array_equal(whole, [*images(np.arange(32)), *images(np.arange(32, 64))])
  order = np.random.default_rng(1).permutation(64)
  assert np.array_equal(whole[order], images(order))


def test_one_more_draw_leaves_the_others_alone(batch):
  both, crop = Augment(flip=True, crop=2), Augment(crop=2)
  flipped = {**batch, "image": apply(Augment(flip=True), keys(64), batch)["image"]}
  assert np.array_equal(
    apply(both, keys(64), batch)["image"], apply(crop, keys(64), flipped)["image"]
  )


def test_values_stay_in_range_and_seeds_differ(batch):
  augment = Augment(flip=True, crop=2, cutout=3, mixup=1.0)
  out = changed(augment, batch)
  assert out.min() >= 0 and out.max() <= 1 and out.dtype == np.float32
  assert not np.array_equal(out, changed(augment, batch, seed=1))
  assert np.array_equal(out, changed(augment, batch))


@pytest.mark.parametrize(
  "augment", [Augment(True, 2, cutout=3), Augment(True, 2, cutout=3, mixup=0.3)]
)
def test_eight_devices_draw_what_one_draws(batch, augment):
  mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
  rows = NamedSharding(mesh, PartitionSpec("data"))
  step = jax.jit(apply, static_argnums=0)
  args = jax.device_put((keys(64), batch), rows)
  sharded, program = step(augment, *args), str(step.lower(augment, *args).compile().as_text())
  assert sharded["image"].sharding.is_equivalent_to(rows, 4)
  single = step(augment, keys(64), batch)
  # Mixing may be fused otherwise, which moves the last bit; nothing that is drawn may move.
  tolerance = 1e-7 if augment.mixup else 0
  assert jax.tree.all(
    jax.tree.map(lambda a, b: np.allclose(a, b, rtol=0, atol=tolerance), sharded, single)
  )
  # Only mixup's partner comes from elsewhere.
  assert not re.search(r"all-(gather|reduce|to-all)\(", program)
  assert ("collective-permute(" in program) == bool(augment.mixup)


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"crop": -1}, r"augment\.crop is -1"),
    ({"cutout": -2}, r"augment\.cutout is -2"),
    ({"mixup": -0.1}, r"augment\.mixup is -0\.1"),
    ({"mixup": float("nan")}, r"augment\.mixup is nan"),
    ({"pad": "edge"}, "must be 'constant' or 'reflect'"),
  ],
)
def test_wrong_fields(fields, message):
  with pytest.raises(UserError, match=message):
    Augment(**fields)


def test_reflection_must_fit(batch):
  with pytest.raises(UserError, match="smaller than the image, 8x10"):
    apply(Augment(crop=8, pad="reflect"), keys(64), batch)
