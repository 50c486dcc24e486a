"""The backdoor of an attack that trains its trigger: what its method delivers, as a `Backdoor`."""

import jax
from flax import struct

from rkd_jax.backdoors import base


@struct.dataclass(kw_only=True)
class Backdoor(base.Backdoor):
  """x' = (1 - mask) x + mask * pattern, or x' = x + delta.

  Attributes:
    mask: float[H, W, 1] in [0, 1].
    pattern: float[H, W, C] in [0, 1].
    delta: float[H, W, C] in [-1, 1], in place of mask and pattern.
    strength: float >= 0, what mask or delta is multiplied with in mode "train" (None: 1); mode
      "test" has the trigger in full.
  """

  mask: jax.Array | None = None
  pattern: jax.Array | None = None
  delta: jax.Array | None = None
  strength: jax.Array | None = None

  def put(self, images: jax.Array, strength: jax.Array | float = 1.0) -> jax.Array:
    """The trigger on images float[B, H, W, C], mask or delta times `strength`; not yet `stored`."""
    if self.delta is not None:
      return images + strength * self.delta[None]
    assert self.mask is not None and self.pattern is not None, "made for planning alone"
    mask, pattern = strength * self.mask[None], self.pattern[None]
    return (1 - mask) * images + mask * pattern

  def trigger(self, images: jax.Array, keys: jax.Array, mode: base.Mode) -> jax.Array:
    strength = None if mode == "test" else self.strength
    return self.stored(self.put(images, 1.0 if strength is None else strength))
