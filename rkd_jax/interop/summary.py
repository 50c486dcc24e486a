"""A checkpoint in numbers: what `inspect` shows."""

import math
from typing import Any

import numpy as np

from rkd_jax.interop.checkpoint import Checkpoint
from rkd_jax.interop.converted import describe
from rkd_jax.interop.dtypes import is_float
from rkd_jax.interop.recognition import recognised

_PIECE = 2**20  # elements that are looked at at once


def summary(checkpoint: Checkpoint) -> dict[str, Any]:
  """What is in it, as JSON has it. Reads every tensor once, a piece at a time."""
  tensors = checkpoint.tensors
  dtypes: dict[str, int] = {}
  known = recognised(checkpoint)
  for array in tensors.values():
    dtypes[array.dtype.name] = dtypes.get(array.dtype.name, 0) + 1
  return {
    "path": checkpoint.path,
    "kind": checkpoint.kind,
    "size": checkpoint.size,
    "sha256": checkpoint.sha256,
    "tensors": [
      {"name": name, "dtype": array.dtype.name, "shape": list(array.shape)}
      for name, array in tensors.items()
    ],
    "count": len(tensors),
    "dtypes": dtypes,
    "elements": sum(array.size for array in tensors.values()),
    "bytes": sum(array.nbytes for array in tensors.values()),
    "metadata": {name: _finite(value) for name, value in checkpoint.metadata.items()},
    "globals": list(checkpoint.globals),
    "non_finite": {name: n for name, array in tensors.items() if (n := non_finite(array))},
    "architecture": describe(known) if known else None,
    "recognised": known,
  }


def non_finite(array: np.ndarray) -> int:
  """How many of its elements are NaN or infinite."""
  if not is_float(array.dtype) or not array.size:
    return 0
  times = math.prod(n for n, step in zip(array.shape, array.strides, strict=True) if not step)
  once = array[tuple(slice(0, 1) if not step else slice(None) for step in array.strides)]
  return times * sum(int(np.count_nonzero(~np.isfinite(piece))) for piece in _pieces(once))


def _pieces(array: np.ndarray) -> Any:
  """Parts of at most `_PIECE` elements: an array of any strides is never copied whole."""
  if array.size <= _PIECE:
    yield array
  elif array.flags.c_contiguous:
    flat = array.reshape(-1)
    yield from (flat[i : i + _PIECE] for i in range(0, flat.size, _PIECE))
  else:
    for part in np.array_split(array, 2, axis=int(np.argmax(array.shape))):
      yield from _pieces(part)


def _finite(value: Any) -> Any:
  """JSON has no NaN and no infinity."""
  if isinstance(value, list):
    return [_finite(item) for item in value]
  return str(value) if isinstance(value, float) and not math.isfinite(value) else value
