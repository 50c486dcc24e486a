"""Perturbed views of a batch, for methods that ask a network to answer alike.

Every view has one strength; at 0 it is the image itself, to the bit, so a grid of strengths may
start there. Pixels stay in [0, 1].
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def random_blend(key: jax.Array, images: jax.Array, amplitude: float) -> jax.Array:
  """(1 - a) x + a u: a ~ U(0, amplitude) per example, u one uniform pattern for the whole batch.

  Soft-Randomization (Arani et al. 2019) with a shared pattern in place of Gaussian noise.

  Args:
    images: float[B, H, W, C] in [0, 1].
    amplitude: in [0, 1].
  """
  strength, pattern = jax.random.split(key)
  a = jax.random.uniform(strength, (images.shape[0], 1, 1, 1), maxval=amplitude)
  u = jax.random.uniform(pattern, (1, *images.shape[1:]))
  return (1 - a) * images + a * u


def occlude(key: jax.Array, images: jax.Array, share: float) -> jax.Array:
  """A rectangle of every image shows the same place of the image before it in the batch.

  Area ~ U(0, share) of the image, height to width (relative to the image's) log-uniform in
  [1/2, 2], centre uniform over the image: all as drawn, then rounded down and clipped at the
  border. CutMix (Yun et al. 2019, arXiv:1905.04899) with the label left to the caller, in place of
  the black square of Cutout (DeVries and Taylor 2017, arXiv:1708.04552) and the noise of Random
  Erasing (Zhong et al. 2017, arXiv:1708.04896).

  Args:
    images: float[B, H, W, C] in [0, 1].
    share: largest share of the area, in [0, 1].
  """
  # Another image rather than noise: a mark that always has one place then also appears on images
  # whose answer is another, and no network can tell the rectangle by its texture.
  batch, height, width, _ = images.shape
  area, aspect, row, column = jax.random.uniform(key, (4, batch, 1))
  scale, stretch = jnp.sqrt(share * area), jnp.exp2(aspect - 0.5)
  # A centre near the border covers the corners as often as CutMix does; a rectangle that lies
  # wholly inside hardly ever would.
  rows = _inside(row, scale * stretch, height)
  columns = _inside(column, scale / stretch, width)
  hidden = rows[:, :, None, None] & columns[:, None, :, None]
  return jnp.where(hidden, jnp.roll(images, 1, axis=0), images)


def _inside(centre: jax.Array, share: jax.Array, size: int) -> jax.Array:
  """bool[B, size]: the floor(share * size) pixels around centre * size; both float[B, 1]."""
  length = jnp.floor(share * size)
  low = jnp.floor(centre * size) - length // 2
  places = jnp.arange(size, dtype=low.dtype)[None]
  return (places >= low) & (places < low + length)


def warp(key: jax.Array, images: jax.Array, pixels: float) -> jax.Array:
  """Every image moved by a smooth random field of its own, of at most `pixels` in each direction.

  U(-pixels, pixels) on a 4x4 grid, interpolated linearly; images are sampled bilinearly, and go on
  beyond the border as they are there. As in WaNet (Nguyen and Tran 2021, arXiv:2102.10369), whose
  one field is fixed.

  Args:
    images: float[B, H, W, C] in [0, 1].
    pixels: largest displacement, >= 0.
  """
  batch, height, width, _ = images.shape
  grid = pixels * jax.random.uniform(key, (batch, 4, 4, 2), minval=-1.0)
  field = jax.image.resize(grid, (batch, height, width, 2), "linear")
  return jax.vmap(_sample)(images, field).astype(images.dtype)


def _sample(image: jax.Array, field: jax.Array) -> jax.Array:
  """image float[H, W, C] at every pixel's place plus field float[H, W, 2] (rows, columns)."""
  height, width, _ = image.shape
  rows = jnp.clip(jnp.arange(height)[:, None] + field[..., 0], 0, height - 1)
  columns = jnp.clip(jnp.arange(width)[None, :] + field[..., 1], 0, width - 1)
  top, left = jnp.floor(rows).astype(int), jnp.floor(columns).astype(int)
  bottom, right = jnp.minimum(top + 1, height - 1), jnp.minimum(left + 1, width - 1)
  down, across = (rows - top)[..., None], (columns - left)[..., None]

  def between(row):
    a, b = (image.at[row, at].get(mode="promise_in_bounds") for at in (left, right))
    return a + across * (b - a)  # never leaves [0, 1], and is `a` where `across` is 0

  upper, lower = between(top), between(bottom)
  return upper + down * (lower - upper)


def warped_blend(key: jax.Array, images: jax.Array, amplitude: float) -> jax.Array:
  """A random blend of the warped image; moved by at most amplitude / 4 of the shorter side.

  Args:
    images: float[B, H, W, C] in [0, 1].
    amplitude: largest share of the pattern, in [0, 1].
  """
  bend, blend = jax.random.split(key)
  pixels = amplitude / 4 * min(images.shape[1:3])
  return random_blend(blend, warp(bend, images, pixels), amplitude)


def shift(images: jax.Array, perturbation: jax.Array) -> jax.Array:
  """images + perturbation float[H, W, C], clipped to [0, 1]."""
  return jnp.clip(images + perturbation[None], 0, 1)


def ascend(
  loss: Callable[[jax.Array], jax.Array], perturbation: jax.Array, step: float, radius: float
) -> jax.Array:
  """One sign-gradient ascent step on a universal perturbation, kept in its l_inf ball."""
  moved = perturbation + step * jnp.sign(jax.grad(loss)(perturbation))
  return jnp.clip(moved, -radius, radius)
