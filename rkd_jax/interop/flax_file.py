"""Flax's msgpack files (flax.serialization.to_bytes), read in place by a reader of our own."""

import math
import struct
from typing import Any

import numpy as np

from rkd_jax.interop import budget as limits
from rkd_jax.interop.budget import Budget
from rkd_jax.interop.dtypes import NAMED
from rkd_jax.interop.refusals import RefusedError, shown
from rkd_jax.interop.source import as_bytes
from rkd_jax.interop.tree import flatten
from rkd_jax.interop.views import frozen

_COST = 120  # bytes of a small object and what points to it
_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3  # Flax's own kinds
_CHUNKED = "__msgpack_chunked_array__"
_NUMBERS = {
  code: struct.Struct(form)
  for code, form in zip(range(0xCA, 0xD4), (">" + c for c in "fdBHIQbhiq"), strict=True)
}
# {code: (what, bytes of its length)}
_COUNTED = {
  **{0xC4 + i: ("bytes", 2**i) for i in range(3)},
  **{0xC7 + i: ("kind", 2**i) for i in range(3)},
  **{0xD9 + i: ("text", 2**i) for i in range(3)},
  **{0xDC + i: ("list", 2 + 2 * i) for i in range(2)},
  **{0xDE + i: ("map", 2 + 2 * i) for i in range(2)},
}


def is_flax(view: memoryview) -> bool:
  """Whether it begins with a map whose first key is text."""
  first = {0xDE: 3, 0xDF: 5}.get(view[0], 1 if 0x81 <= view[0] <= 0x8F else len(view))
  return first < len(view) and (0xA0 <= view[first] <= 0xBF or 0xD9 <= view[first] <= 0xDB)


def read(view: memoryview, budget: Budget) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """(arrays, metadata). Raises `RefusedError`."""
  reader = _Reader(view, budget)
  value = reader.value()
  if reader.at != len(view):
    raise RefusedError(f"{len(view) - reader.at:,} bytes follow its end")
  return flatten(value, _no_tensor, budget)


def _no_tensor(tensor: Any) -> np.ndarray:
  raise TypeError("Flax's files have no storages")


class _Reader:
  def __init__(self, view: memoryview, budget: Budget):
    self._view, self._budget, self.at = view, budget, 0

  def _take(self, size: int) -> memoryview:
    if size > len(self._view) - self.at:
      raise RefusedError(
        f"it is cut off: {len(self._view):,} bytes, but {self.at + size:,} or more are needed"
      )
    self.at += size
    return self._view[self.at - size : self.at]

  def value(self, depth: int = 0) -> Any:
    """The next value."""
    if depth > limits.DEPTH:
      raise RefusedError(f"containers within containers, more than {limits.DEPTH} deep")
    self._budget.spend(_COST)
    code = self._take(1)[0]
    if code <= 0x7F or code >= 0xE0:
      return code if code <= 0x7F else code - 256
    if code in (0xC0, 0xC2, 0xC3):
      return {0xC0: None, 0xC2: False, 0xC3: True}[code]
    if code in _NUMBERS:
      return _NUMBERS[code].unpack(self._take(_NUMBERS[code].size))[0]
    return self._counted(*self._count(code), depth)

  def _count(self, code: int) -> tuple[str, int]:
    if code in _COUNTED:
      what, width = _COUNTED[code]
      return what, int.from_bytes(self._take(width), "big")
    if code <= 0xBF:
      what = "map" if code <= 0x8F else "list" if code <= 0x9F else "text"
      return what, code & (0x1F if what == "text" else 0xF)
    if 0xD4 <= code <= 0xD8:
      return "kind", 1 << (code - 0xD4)
    raise RefusedError(f"byte 0x{code:02x} at {self.at - 1} is no msgpack: it is damaged")

  def _counted(self, what: str, count: int, depth: int) -> Any:
    if what == "map":
      return self._map(count, depth)
    if what == "list":
      return [self.value(depth + 1) for _ in range(count)]
    if what == "kind":
      return self._extension(self._take(1)[0], count, depth)
    data = self._take(count)
    return data if what == "bytes" else self._text(data)

  def _text(self, data: memoryview) -> str:
    self._budget.spend(4 * len(data))
    try:
      return str(data, "utf-8")
    except UnicodeDecodeError:
      raise RefusedError(f"text that is no UTF-8 before byte {self.at}: it is damaged") from None

  def _map(self, count: int, depth: int) -> Any:
    found: dict[str, Any] = {}
    for _ in range(count):
      key = self.value(depth + 1)
      if type(key) is not str or key in found:
        raise RefusedError(f"a key that is no text, or twice there, before byte {self.at}")
      found[key] = self.value(depth + 1)
    return _joined(found) if _CHUNKED in found else found

  def _extension(self, kind: int, count: int, depth: int) -> Any:
    end = self.at + count
    if end > len(self._view):
      self._take(count)
    if kind not in (_ARRAY, _SCALAR, _COMPLEX):
      raise RefusedError(f"msgpack's extension {kind}, which Flax does not write")
    parts = self.value(depth + 1)
    if self.at != end or type(parts) is not list:
      raise RefusedError(f"an array before byte {self.at} that is none: it is damaged")
    return _complex(parts) if kind == _COMPLEX else _array(parts)


def _complex(parts: list[Any]) -> complex:
  if len(parts) != 2 or not all(type(part) in (int, float) for part in parts):
    raise RefusedError("a complex number that is none: it is damaged")
  return complex(*parts)


def _array(parts: list[Any]) -> np.ndarray:
  """[shape, name of the type, bytes] as an array, not copied."""
  shape, name, data = parts if len(parts) == 3 else (None, None, None)
  name = bytes(name[:32]).decode("latin1") if isinstance(name, memoryview) else name
  if type(shape) is not list or not all(type(n) is int and n >= 0 for n in shape):
    raise RefusedError("an array without a shape: it is damaged")
  if type(name) is not str or name not in NAMED or not isinstance(data, memoryview):
    raise RefusedError(
      f"an array of type '{shown(name)}', which is not known", "Save it as float32"
    )
  dtype = NAMED[name]
  size, extent = math.prod(shape) * dtype.itemsize, math.prod(n for n in shape if n)
  if size != len(data) or len(shape) > limits.DIMENSIONS or extent >= 2**60:
    raise RefusedError(
      f"an array of {shown(shape)} {name} with {len(data)} bytes: it was tampered with"
    )
  raw = as_bytes(data)
  if dtype == np.bool_ and size and raw.max() > 1:
    raise RefusedError("a truth value that is neither 0 nor 1: it is damaged")
  return frozen(raw.view(dtype).reshape(shape))


def _joined(found: dict[str, Any]) -> np.ndarray:
  """An array that Flax split into pieces (over 2**30 bytes)."""
  shape, chunks = (_listed(found.get(key)) for key in ("shape", "chunks"))
  good = set(found) == {_CHUNKED, "shape", "chunks"} and all(
    type(n) is int and n >= 0 for n in shape
  )
  if not good or not chunks or not all(isinstance(chunk, np.ndarray) for chunk in chunks):
    raise RefusedError("an array in pieces without its pieces: it is damaged")
  one = {chunk.dtype for chunk in chunks}
  sizes = sum(chunk.size for chunk in chunks)
  if len(one) > 1 or sizes != math.prod(shape) or len(shape) > limits.DIMENSIONS:
    raise RefusedError("an array whose pieces do not make it up: it was tampered with")
  return frozen(np.concatenate([chunk.ravel() for chunk in chunks]).reshape(shape))


def _listed(value: Any) -> list[Any]:
  """Flax writes tuples as {"0": ..., "1": ...}."""
  if type(value) is dict:
    return [value[key] for key in map(str, range(len(value)))] if _counts(value) else []
  return value if type(value) is list else []


def _counts(value: dict[str, Any]) -> bool:
  return set(value) == set(map(str, range(len(value))))
