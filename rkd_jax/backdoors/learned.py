"""The backdoor of an attack that trains its trigger: what its method delivers, as a `Backdoor`."""

import jax
from flax import struct

from rkd_jax.backdoors import base


@struct.dataclass(kw_only=True)
class Backdoor(base.Backdoor):
  """x' = (1 - mask) x + mask * pattern.

  Attributes:
    mask: float[H, W, 1] in [0, 1].
    pattern: float[H, W, C] in [0, 1].
  """

  mask: jax.Array | None = None
  pattern: jax.Array | None = None

  def trigger(self, images: jax.Array, keys: jax.Array, mode: base.Mode) -> jax.Array:
    assert self.mask is not None and self.pattern is not None, "made for planning alone"
    mask, pattern = self.mask[None], self.pattern[None]
    return self.stored((1 - mask) * images + mask * pattern)
