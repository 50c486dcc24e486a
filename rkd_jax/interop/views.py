"""Arrays as views of storages: every offset, shape and stride is checked before it is believed."""

import math
from collections.abc import Callable

import numpy as np

from rkd_jax.interop import budget
from rkd_jax.interop.dtypes import native
from rkd_jax.interop.refusals import RefusedError, shown
from rkd_jax.interop.values import Storage, Tensor


class Storages:
  """The storages of one file, each read once, and the tensors over them.

  Args:
    load: (key, bytes) -> uint8[bytes] of a storage; raises `RefusedError`.
    big: whether numbers are big-endian.
  """

  def __init__(self, load: Callable[[str, int], np.ndarray], big: bool):
    self._load, self._big = load, big
    self._raw: dict[str, tuple[Storage, np.dtype, np.ndarray]] = {}
    self._views = budget.VIEWED  # bytes that tensors may yet take once they are copied

  def array(self, tensor: Tensor) -> np.ndarray:
    """The tensor's values: a read-only view. Raises `RefusedError` where it leaves its storage."""
    need = check_view(tensor)
    raw = self._bytes(tensor.storage, tensor.dtype)
    size = tensor.dtype.itemsize
    if (tensor.offset + need) * size > len(raw):
      raise RefusedError(
        f"a tensor of shape {shown(tensor.shape)} and strides {shown(tensor.strides)} at "
        f"{tensor.offset} leaves its storage of {len(raw) // size} elements: it was tampered with"
      )
    self._views -= math.prod(tensor.shape) * size
    if self._views < 0:
      raise RefusedError(
        f"its tensors are views, and over {budget.VIEWS} times larger than what they view",
        "Save copies of them: tensor.clone()",
      )
    if not need:
      return frozen(np.zeros(tensor.shape, tensor.dtype))
    strides = tuple(stride * size if n > 1 else 0 for n, stride in _axes(tensor))
    return frozen(np.ndarray(tensor.shape, tensor.dtype, raw.data, tensor.offset * size, strides))

  def _bytes(self, storage: Storage, dtype: np.dtype) -> np.ndarray:
    if storage.key not in self._raw:
      raw = self._load(storage.key, storage.numel * storage.dtype.itemsize)
      if dtype == np.bool_ and len(raw) and raw.max() > 1:
        raise RefusedError("a truth value that is neither 0 nor 1: it is damaged")
      if len(raw) % dtype.itemsize:
        raise RefusedError(
          f"a storage of {len(raw)} bytes, with elements of {dtype}: it is damaged"
        )
      raw = native(raw, dtype) if self._big else raw
      self._raw[storage.key] = storage, dtype, raw
      self._views += budget.VIEWS * len(raw)
    known, as_dtype, raw = self._raw[storage.key]
    if (storage.numel, storage.dtype, dtype) != (known.numel, known.dtype, as_dtype):
      raise RefusedError(f"the storage '{shown(storage.key)}' has two types or sizes")
    return raw


def _axes(tensor: Tensor) -> list[tuple[int, int]]:
  return list(zip(tensor.shape, tensor.strides, strict=True))


def check_view(tensor: Tensor) -> int:
  """How many elements the tensor reaches after its offset. Raises `RefusedError`."""
  if len(tensor.shape) != len(tensor.strides) or len(tensor.shape) > budget.DIMENSIONS:
    raise RefusedError(
      f"a tensor of {len(tensor.shape)} dimensions with {len(tensor.strides)} strides: it was "
      "tampered with"
    )
  if 0 in tensor.shape:
    if math.prod(n for n in tensor.shape if n) >= 2**60:
      raise RefusedError("an empty tensor with impossible dimensions: it was tampered with")
    return 0
  return 1 + sum((n - 1) * stride for n, stride in _axes(tensor))


def frozen(array: np.ndarray) -> np.ndarray:
  """The same array, read-only."""
  array.flags.writeable = False
  return array
