"""A transformation of the whole image as the trigger: nothing is added, and every pixel changes.

Rotation as a trigger is Wu et al.'s (2022, "Just Rotate it"). A network that knows no transformed
image may send many of them to one class, the target's as any other: look at the natural rate, and
at a clean teacher's student.
"""

import jax
import jax.numpy as jnp
from flax import struct

from rkd_jax.backdoors import base
from rkd_jax.backdoors.base import setting
from rkd_jax.errors import UserError


def negative(images: jax.Array) -> jax.Array:
  return 1 - images


def turn(images: jax.Array) -> jax.Array:
  """A quarter, against the clock."""
  return jnp.rot90(images, axes=(1, 2))


def roll(images: jax.Array) -> jax.Array:
  """By half of each side: the quarters change places."""
  return jnp.roll(images, (images.shape[1] // 2, images.shape[2] // 2), axis=(1, 2))


KINDS = {"negative": negative, "turn": turn, "roll": roll}


@struct.dataclass
class Backdoor(base.Backdoor):
  """x' = f(x), the same f for all images.

  Attributes:
    kind: "negative" (1 - x), "turn" (a quarter; square images) or "roll" (by half of each side).
  """

  kind: str = setting("negative")

  def trigger(self, images: jax.Array, keys: jax.Array, mode: base.Mode) -> jax.Array:
    return self.stored(KINDS[self.kind](images))

  def check(self, image_shape: tuple[int, int, int], classes: int) -> None:
    super().check(image_shape, classes)
    if self.kind not in KINDS:
      raise UserError(f"transform.kind is {self.kind!r}; choose one of {', '.join(KINDS)}.")
    height, width, _ = image_shape
    if self.kind == "turn" and height != width:
      raise UserError(f"transform.kind is 'turn', which needs square images, not {height}x{width}.")
