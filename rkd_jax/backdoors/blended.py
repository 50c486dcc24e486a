"""Blended injection: one fixed noise image mixed into the whole picture (Chen et al. 2017,
arXiv:1712.05526, "random pattern")."""

import jax
import jax.numpy as jnp
from flax import struct

from rkd_jax.backdoors import base
from rkd_jax.backdoors.base import setting
from rkd_jax.data import seeds
from rkd_jax.errors import check_range


@struct.dataclass
class Backdoor(base.Backdoor):
  """x' = (1 - alpha) x + alpha p, p an image of uniform noise.

  Attributes:
    alpha: how much of the pattern, in [0, 1].
    seed: draws the pattern.
  """

  alpha: float = setting(0.2)
  seed: int = setting(0)

  def pattern(self, image_shape: tuple[int, ...]) -> jax.Array:
    """p, float32[H, W, C] in [0, 1], of 8-bit values."""
    noise = seeds.rng(self.seed, "blended").integers(0, 256, image_shape, "uint8")
    return jnp.asarray(noise).astype(jnp.float32) * (1 / 255)  # a constant of bytes in the program

  def trigger(self, images: jax.Array, keys: jax.Array, mode: base.Mode) -> jax.Array:
    pattern = self.pattern(images.shape[1:]).astype(images.dtype)
    return self.stored((1 - self.alpha) * images + self.alpha * pattern[None])

  def check(self, image_shape: tuple[int, int, int], classes: int) -> None:
    super().check(image_shape, classes)
    check_range("blended.alpha", self.alpha, 0, 1)
