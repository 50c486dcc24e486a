"""SIG: a sine wave added along the columns (Barni, Kallas & Tondi 2019, arXiv:1902.11237).

The paper poisons images of the target class alone and keeps their labels. Who is poisoned is the
plan's business, not the trigger's.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rkd_jax.backdoors import base
from rkd_jax.backdoors.base import setting
from rkd_jax.errors import UserError, check_range


@struct.dataclass
class Backdoor(base.Backdoor):
  """x' = x + delta/255 sin(2 pi j frequency / W), j = 0..W-1 the column; clipped.

  Attributes:
    delta: amplitude in grey levels, in (0, 255].
    frequency: periods across the image, > 0.
  """

  delta: float = setting(40.0)
  frequency: float = setting(6.0)

  def wave(self, width: int) -> np.ndarray:
    """What is added to a row of pixels in [0, 1]: float32[W], the same in all rows and channels."""
    phase = 2 * np.pi * self.frequency * np.arange(width) / width
    return (self.delta / 255 * np.sin(phase)).astype(np.float32)

  def trigger(self, images: jax.Array, keys: jax.Array, mode: base.Mode) -> jax.Array:
    wave = jnp.asarray(self.wave(images.shape[2]), images.dtype)
    return self.stored(images + wave[None, None, :, None])

  def check(self, image_shape: tuple[int, int, int], classes: int) -> None:
    super().check(image_shape, classes)
    check_range("sig.delta", self.delta, 1e-6, 255)
    check_range("sig.frequency", self.frequency, 1e-6, 1e6)
    if np.abs(self.wave(image_shape[1])).max() < 0.5 / 255:
      raise UserError(
        f"sig.frequency is {self.frequency} and sig.delta {self.delta}: on images "
        f"{image_shape[1]} wide the wave changes no pixel (its columns meet the sine's zeros)."
      )
