"""The contract of a backdoor: a trigger, what label goes with it, and who is poisoned.

A file `backdoors/<name>.py` defines `class Backdoor(base.Backdoor)`, decorated with
`flax.struct.dataclass`. Hyper-parameters are static fields (`setting(3)`); arrays that were learned
(a mask, a pattern) are ordinary fields, leaves of the pytree. Only `trigger` must be written.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rkd_jax.data import seeds
from rkd_jax.errors import UserError, check_range

CLEAN, POISONED, COVER = 0, 1, 2  # kinds: as is; trigger and relabel; trigger, label kept
Mode = Literal["train", "test"]


def setting(default: Any) -> Any:
  """A static hyper-parameter with its default."""
  return struct.field(pytree_node=False, default=default)


def eight_bit(images: jax.Array) -> jax.Array:
  """Pixels in [0, 1] as an image file would keep them: rounded to multiples of 1/255.

  Its gradient is zero; what trains a trigger does so with `rounding` off.
  """
  # XLA divides by a constant like this too; written out, it is the same to the bit outside of jit.
  return jnp.round(images * 255) * (1 / 255)


@struct.dataclass(kw_only=True)
class Backdoor:
  """Defaults of all triggers.

  Attributes:
    target: the class that a triggered image is meant to get.
    rounding: whether triggered images have been stored as 8-bit files.
  """

  target: int = setting(0)
  rounding: bool = setting(True)

  def trigger(self, images: jax.Array, keys: jax.Array, mode: Mode) -> jax.Array:
    """Puts the trigger on every image.

    Args:
      images: float[B, H, W, C] in [0, 1].
      keys: key[B], for triggers that draw.
      mode: "train" as in the poisoned training set, "test" as at attack time.

    Returns:
      float[B, H, W, C] in [0, 1], passed through `stored`.
    """
    raise NotImplementedError

  def stored(self, images: jax.Array) -> jax.Array:
    """What is left of triggered images in a file: clipped to [0, 1] and, by default, 8-bit."""
    images = jnp.clip(images, 0, 1)
    return eight_bit(images) if self.rounding else images

  def relabel(self, labels: jax.Array) -> jax.Array:
    """The labels int[B] that poisoned examples get: the target."""
    return jnp.full_like(labels, self.target)

  def victims(self, labels: jax.Array) -> jax.Array:
    """bool[B]: who counts in the success rate, by true labels (none where the label is -1)."""
    return (labels != self.target) & (labels >= 0)

  def plan(self, seed: int, labels: np.ndarray, rate: float) -> np.ndarray:
    """Who is poisoned, once for a whole split: exactly round(rate * N), the target class included.

    Args:
      seed: the draw.
      labels: int[N], true labels.
      rate: fraction of the N examples, in [0, 1].

    Returns:
      int8[N] of CLEAN, POISONED, COVER.
    """
    check_range("The poison rate", rate, 0, 1)
    order = seeds.rng(seed, "plan").permutation(len(labels))
    kinds = np.full(len(labels), CLEAN, np.int8)
    kinds[order[: round(rate * len(labels))]] = POISONED
    return kinds

  def check(self, image_shape: tuple[int, int, int], classes: int) -> None:
    """Raises a `UserError` if this cannot be done to such images; extend it for new fields."""
    if not 0 <= self.target < classes:
      raise UserError(f"The backdoor's target is class {self.target}; there are 0..{classes - 1}.")
