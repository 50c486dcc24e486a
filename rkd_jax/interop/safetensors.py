"""Safetensors: a length, a JSON header, and the tensors' bytes one after the other."""

import math
from typing import Any

import numpy as np

from rkd_jax.interop import strict_json
from rkd_jax.interop.budget import DIMENSIONS, HEADER, NAME
from rkd_jax.interop.dtypes import SAFETENSORS
from rkd_jax.interop.refusals import AGAIN, RefusedError, shown
from rkd_jax.interop.source import as_bytes
from rkd_jax.interop.views import frozen

Found = tuple[dict[str, np.ndarray], dict[str, Any]]


def is_safetensors(view: memoryview) -> bool:
  """Whether it begins as one does, whole or cut off."""
  return len(view) > 8 and view[8:9] == b"{" and int.from_bytes(view[:8], "little") <= 100_000_000


def read(view: memoryview) -> Found:
  """(tensors, metadata). Raises `RefusedError`."""
  size = int.from_bytes(view[:8], "little")
  if size > HEADER:
    raise RefusedError(f"its header has {size:,} bytes; {HEADER:,} at most are read", AGAIN)
  if 8 + size > len(view):
    raise RefusedError(
      f"it is cut off within its header: {len(view):,} bytes of {8 + size:,} or more"
    )
  header = strict_json.parse(view[8 : 8 + size], "header")
  metadata = header.pop("__metadata__", {})
  if type(metadata) is not dict or not all(type(text) is str for text in metadata.values()):
    raise RefusedError("its metadata is not text by name: it is damaged")
  data, places = view[8 + size :], {}
  tensors = {name: _tensor(name, entry, data, places) for name, entry in header.items()}
  _check_places(places, len(data))
  return tensors, metadata


def _tensor(name: str, entry: Any, data: memoryview, places: dict) -> np.ndarray:
  what = f"the tensor '{shown(name)}'"
  try:
    kind, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    good = set(entry) == {"dtype", "shape", "data_offsets"} and type(kind) is str
  except (KeyError, TypeError, ValueError):
    kind, shape, begin, end, good = "", [], 0, 0, False
  good = good and type(shape) is list and all(_is_size(n) for n in (*shape, begin, end))
  if not good or len(shape) > DIMENSIONS or len(name) > NAME:
    raise RefusedError(f"{what} has no proper type, shape or place: it is damaged")
  if kind not in SAFETENSORS:
    raise RefusedError(
      f"{what} is of type '{shown(kind)}', which NumPy has not", "Save it as float32"
    )
  dtype = SAFETENSORS[kind]
  if not begin <= end or end - begin != math.prod(shape) * dtype.itemsize:
    raise RefusedError(
      f"{what} of {shown(shape)} {kind} has {end - begin} bytes: it was tampered with"
    )
  if end > len(data):
    raise RefusedError(
      f"it is cut off: {what} ends at {end:,}, but only {len(data):,} bytes are there"
    )
  places[name] = begin, end
  raw = as_bytes(data[begin:end])
  if dtype == np.bool_ and len(raw) and raw.max() > 1:
    raise RefusedError(f"{what} holds a truth value that is neither 0 nor 1: it is damaged")
  if math.prod(n for n in shape if n) >= 2**60:
    raise RefusedError(f"{what} has impossible dimensions: it was tampered with")
  return frozen(raw.view(dtype).reshape(shape))


def _is_size(value: Any) -> bool:
  return type(value) is int and 0 <= value < 2**60


def _check_places(places: dict[str, tuple[int, int]], size: int) -> None:
  """No bytes of two tensors, and none of nobody's, as the format asks."""
  last = 0
  for name, (begin, end) in sorted(places.items(), key=lambda item: item[1]):
    if begin != last:
      raise RefusedError(f"the tensor '{shown(name)}' overlaps another, or a hole is before it")
    last = end
  if last != size:
    raise RefusedError(f"{size - last:,} bytes follow its last tensor")
