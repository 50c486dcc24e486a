"""What flows through a translated graph: tensors that know where their axes lie, and constants.

JAX's images are [B, H, W, C], ONNX's are [B, C, H, W]. Rather than turn every tensor, one is left
as it lies, and what is said of its axes is translated: no network of convolutions needs a turn.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rkd_jax.errors import UserError

Lengths = tuple[int | None, ...]
BATCH = None  # the length of the axis that is free
_FREE = 2_147_483_647  # stands for it in products: a prime that no other length is


@dataclasses.dataclass(frozen=True)
class Tensor:
  """Attributes:
  name: in the graph.
  shape: as JAX has it, the free axis as None.
  order: which of those axes each axis in the graph is.
  """

  name: str
  shape: Lengths
  order: tuple[int, ...]

  def lies(self) -> Lengths:
    """Its shape in the graph."""
    return tuple(self.shape[axis] for axis in self.order)


@dataclasses.dataclass(frozen=True)
class Constant:
  """Attributes:
  array: its values; an axis may have length 1 there where the shape has more.
  shape: as JAX has it.
  """

  array: np.ndarray
  shape: Lengths

  @property
  def whole(self) -> bool:
    """Whether its array has all its values."""
    return self.array.shape == self.shape


Value = Tensor | Constant


def constant(array: Any) -> Constant:
  array = np.asarray(array)
  return Constant(array, array.shape)


def plain(rank: int) -> tuple[int, ...]:
  """The order of a tensor that lies as JAX has it."""
  return tuple(range(rank))


def tensor(value: Value) -> Tensor:
  if isinstance(value, Constant):
    raise unknown("something on a constant that depends on the number of images")
  return value


def first_order(values: Sequence[Value], rank: int) -> tuple[int, ...]:
  """The order that most need not turn for: the first tensor's."""
  return next((v.order for v in values if isinstance(v, Tensor) and v.order), plain(rank))


def regrouped(value: Tensor, shape: Lengths) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """How a tensor must lie to be given another shape, and how it lies then.

  Axes that are joined or cut must be neighbours in their order; it stays as it lies where that is
  so already.

  Returns:
    (order before, order after).
  """
  groups = _groups(value.shape, shape)
  lies = [axis for axis in value.order if value.shape[axis] != 1]
  starts = [lies.index(before[0]) for before, _ in groups]
  near = all(
    lies[start : start + len(before)] == list(before)
    for (before, _), start in zip(groups, starts, strict=True)
  )
  order = value.order if near else plain(len(value.shape))
  ranked = sorted(zip(starts, groups, strict=True)) if near else list(enumerate(groups))
  after = [axis for _, (_, axes) in ranked for axis in axes]
  for axis, length in enumerate(shape):
    if length == 1:  # beside the axis that it follows: a pile of halves can then be joined in place
      after.insert(after.index(axis - 1) + 1 if axis else 0, axis)
  return order, tuple(after)


def _groups(old: Lengths, new: Lengths) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
  """The axes (but those of length 1) that are joined or cut together, before and after."""
  left, right = ([a for a, n in enumerate(shape) if n != 1] for shape in (old, new))
  groups = []
  while left or right:
    before, after = [left.pop(0)], [right.pop(0)]
    while (a := size(old, before)) != (b := size(new, after)):
      (before if a < b else after).append((left if a < b else right).pop(0))
    groups.append((tuple(before), tuple(after)))
  return groups


def size(shape: Lengths, axes: Sequence[int]) -> int:
  """The product of these axes' lengths."""
  return math.prod(_FREE if shape[axis] is BATCH else shape[axis] or 0 for axis in axes)


def unknown(what: str) -> UserError:
  return UserError(
    f"The network computes {what}, which is not translated to ONNX. Export it with "
    "--format stablehlo, which takes everything that JAX has."
  )
