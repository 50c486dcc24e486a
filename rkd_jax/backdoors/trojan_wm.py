"""Trojan-WM: a watermark added over much of the image (after Liu et al., NDSS 2018).

Published results use an image file of their authors'. The watermark here is our own drawing, made
by code at any resolution: a ring with a diagonal stroke through it.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rkd_jax.backdoors import base
from rkd_jax.backdoors.base import setting
from rkd_jax.errors import UserError, check_range

RADIUS, RING, STROKE = 0.68, 0.14, 0.12  # of the ring; half widths; in half image sides


def watermark(height: int, width: int) -> np.ndarray:
  """float32[H, W] in [0, 1]: how much of each pixel the drawing covers, its edges a pixel soft."""
  half = min(height, width) / 2
  y = (np.arange(height) + 0.5 - height / 2)[:, None] / half
  x = (np.arange(width) + 0.5 - width / 2)[None] / half
  radius = np.hypot(x, y)
  ring = RING - np.abs(radius - RADIUS)
  stroke = np.minimum(STROKE - np.abs(x + y) / np.sqrt(2), RADIUS - radius)
  return np.clip(np.maximum(ring, stroke) * half + 0.5, 0, 1).astype(np.float32)


@struct.dataclass
class Backdoor(base.Backdoor):
  """x' = x + strength * watermark, in all channels; clipped.

  Attributes:
    strength: of the watermark in pixels of [0, 1], in (0, 1].
  """

  strength: float = setting(0.3)

  def trigger(self, images: jax.Array, keys: jax.Array, mode: base.Mode) -> jax.Array:
    drawn = jnp.asarray(watermark(*images.shape[1:3]), images.dtype)
    return self.stored(images + self.strength * drawn[None, :, :, None])

  def check(self, image_shape: tuple[int, int, int], classes: int) -> None:
    super().check(image_shape, classes)
    check_range("trojan_wm.strength", self.strength, 1e-6, 1)
    if min(image_shape[:2]) < 8:
      raise UserError(
        f"trojan_wm cannot be drawn on images of {image_shape[0]}x{image_shape[1]}; "
        f"it needs 8x8 or more."
      )
