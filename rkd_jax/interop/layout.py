"""A network's tensors as PyTorch has them: names, and axes in another order. Imports JAX."""

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from rkd_jax.errors import UserError
from rkd_jax.interop.converted import Difference
from rkd_jax.interop.families.base import AND
from rkd_jax.interop.refusals import shown

Shape = tuple[int, ...]
TO_OURS = {4: (2, 3, 1, 0), 2: (1, 0)}  # a kernel's axes: OIHW -> HWIO, [out, in] -> [in, out]
TO_THEIRS = {4: (3, 2, 0, 1), 2: (1, 0)}


@functools.lru_cache(maxsize=256)
def expected(network: str, classes: int, channels: int, side: int) -> dict[str, Shape]:
  """{"params/stage1_block0/conv1/kernel": its shape} of a network; nothing is computed.

  Raises:
    UserError: there is no such network.
  """
  import jax

  from rkd_jax import networks
  from rkd_jax.models.network import Network

  shape = (side, side, channels)
  module = networks.module(network, classes=classes)
  whole = Network(module, shape, (0.0,) * channels, (1.0,) * channels)
  tree = jax.eval_shape(whole.init, jax.random.key(0))
  flat: dict[tuple[str, ...], Any] = dict(traverse_util.flatten_dict(tree))
  return {"/".join(path): tuple(leaf.shape) for path, leaf in flat.items()}


def path_of(leaf: str) -> str:
  """ "params/conv/kernel" -> "conv/kernel", the two collections' paths in one."""
  return leaf.partition("/")[2]


def theirs(leaf: str, shape: Shape) -> Shape:
  """The shape that PyTorch's tensor of our leaf has."""
  axes = TO_THEIRS.get(len(shape)) if leaf.endswith("/kernel") else None
  return tuple(shape[axis] for axis in axes) if axes else shape


def ours(leaf: str, array: np.ndarray) -> np.ndarray:
  """PyTorch's tensor as our leaf, in C's order."""
  axes = TO_OURS.get(array.ndim) if leaf.endswith("/kernel") else None
  return np.ascontiguousarray(array.transpose(axes) if axes else array)


def compare(
  network: str,
  family: str,
  names: Mapping[str, str],
  wanted: Mapping[str, Shape],
  found: Mapping[str, Shape],
  turned: bool = True,
) -> Difference:
  """How the file's tensors differ from the network's.

  Args:
    names: {our leaf: its name in the file}.
    wanted: {our leaf: its shape}.
    found: {name in the file: shape}.
    turned: whether the file has PyTorch's axes, not ours.
  """
  shapes = {
    part: size
    for leaf, shape in wanted.items()
    for part, size in parts(names[leaf], theirs(leaf, shape) if turned else shape).items()
  }
  wrong = {n: (found[n], s) for n, s in shapes.items() if n in found and not same(found[n], s)}
  missing = tuple(name for name in shapes if name not in found)
  unexpected = tuple(name for name in found if name not in shapes)
  return Difference(network, family, missing, unexpected, wrong)


def parts(name: str, shape: Shape) -> dict[str, Shape]:
  """{name in the file: shape} of the tensors that make up one of this shape, by its rows."""
  names = name.split(AND)
  return {part: (shape[0] // len(names), *shape[1:]) if AND in name else shape for part in names}


def same(found: Shape, wanted: Shape) -> bool:
  """Whether the numbers are the same: a convolution over all that there is, is a dense layer."""
  dense = len(wanted) == 2 and len(found) == 4
  return (found[0], math.prod(found[1:])) == wanted if dense else found == wanted


def variables(
  names: Mapping[str, str],
  wanted: Mapping[str, Shape],
  tensors: Mapping[str, np.ndarray],
  turned: bool = True,
) -> dict[str, Any]:
  """{our leaf: name in the file} and {our leaf: its shape} -> our tree of variables; `turned`:
  whether the file has PyTorch's axes.

  Raises:
    UserError: a tensor is no floating-point one, or holds NaN or infinities.
  """
  flat = {}
  for leaf, name in names.items():
    arrays = [_checked(part, tensors[part]) for part in name.split(AND)]
    array = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    flat[leaf] = (
      ours(leaf, array.reshape(theirs(leaf, wanted[leaf])))
      if turned
      else array.reshape(wanted[leaf])
    )
  return traverse_util.unflatten_dict({tuple(leaf.split("/")): x for leaf, x in flat.items()})


def _checked(name: str, array: np.ndarray) -> np.ndarray:
  """The tensor as float32."""
  if array.dtype.kind in "iubc":
    raise UserError(
      f"The tensor {shown(name)!r} is {array.dtype.name}, where weights are floating-point "
      "numbers: a quantised network is not read. Ask its publisher for the float32 weights."
    )
  with np.errstate(over="ignore"):
    found = array.astype(np.float32)
  if not np.isfinite(found).all():
    raise UserError(
      f"The tensor {shown(name)!r} holds NaN or infinite values: the network answers nothing. "
      "Download the file again, or ask its publisher for another."
    )
  return found
