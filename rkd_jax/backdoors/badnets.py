"""BadNets: a square patch in the bottom right corner (Gu et al. 2017, arXiv:1708.06733)."""

import jax
from flax import struct

from rkd_jax.backdoors import base
from rkd_jax.backdoors.base import setting
from rkd_jax.errors import UserError, check_range


@struct.dataclass
class Backdoor(base.Backdoor):
  """A patch of one grey level; 3x3, white and in the very corner as in BackdoorBench.

  Attributes:
    size: side in pixels.
    value: grey level in [0, 1], of all channels.
    margin: pixels between the patch and the right and bottom borders.
  """

  size: int = setting(3)
  value: float = setting(1.0)
  margin: int = setting(0)

  def trigger(self, images: jax.Array, keys: jax.Array, mode: base.Mode) -> jax.Array:
    height, width = images.shape[1:3]
    bottom, right = height - self.margin, width - self.margin
    patched = images.at[:, bottom - self.size : bottom, right - self.size : right].set(self.value)
    return self.stored(patched)

  def check(self, image_shape: tuple[int, int, int], classes: int) -> None:
    super().check(image_shape, classes)
    check_range("badnets.value", self.value, 0, 1)
    check_range("badnets.margin", self.margin, 0, min(image_shape[:2]))
    if not 1 <= self.size <= min(image_shape[:2]) - self.margin:
      raise UserError(
        f"badnets.size is {self.size} with a margin of {self.margin}; the images are only "
        f"{image_shape[0]}x{image_shape[1]}."
      )
