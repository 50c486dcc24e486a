"""BadNets with a chequered patch in the bottom right corner (Gu et al. 2017, arXiv:1708.06733)."""

import jax
import jax.numpy as jnp
from flax import struct

from rkd_jax.backdoors import base
from rkd_jax.backdoors.base import setting
from rkd_jax.errors import UserError


@struct.dataclass
class Backdoor(base.Backdoor):
  """A patch of white and black pixels in turn, its corners white; 3x3 as in ABD's experiments.

  Attributes:
    size: side in pixels.
  """

  size: int = setting(3)

  def trigger(self, images: jax.Array, keys: jax.Array, mode: base.Mode) -> jax.Array:
    place = jnp.arange(self.size)
    white = ((place[:, None] + place[None]) % 2 == 0).astype(images.dtype)[None, :, :, None]
    return self.stored(images.at[:, -self.size :, -self.size :].set(white))

  def check(self, image_shape: tuple[int, int, int], classes: int) -> None:
    super().check(image_shape, classes)
    if not 1 <= self.size <= min(image_shape[:2]):
      raise UserError(
        f"badnets_grid.size is {self.size}; the images are {image_shape[0]}x{image_shape[1]}."
      )
