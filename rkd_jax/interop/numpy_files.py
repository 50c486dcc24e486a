"""NumPy's .npy and .npz. What would need pickle is refused."""

import math
import re
from typing import Any

import numpy as np

from rkd_jax.interop.archive import Archive
from rkd_jax.interop.budget import DIMENSIONS, Budget
from rkd_jax.interop.refusals import AGAIN, RefusedError, shown
from rkd_jax.interop.views import frozen

MAGIC = b"\x93NUMPY"
_HEADER = re.compile(
  r"\{'descr': ('[^']{1,16}'|\[.*\]), 'fortran_order': (True|False), 'shape': \(([\d, L]*)\), \}\s*"
)
_NUMBERS = re.compile(r"[<>|=](b1|[iu][1248]|f[248]|c8|c16)")
_TEXT = re.compile(r"[<>|=][SU](\d{1,9})")
_LONGEST = 2**16  # bytes of a header


def is_npz(archive: Archive) -> bool:
  return bool(archive.entries) and all(name.endswith(".npy") for name in archive.entries)


def read_npz(archive: Archive, budget: Budget) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """(numbers by name, what their texts are). Raises `RefusedError`."""
  tensors, metadata = {}, {}
  for entry in archive.entries.values():
    name = entry.name.removesuffix(".npy")
    budget.spend(500)
    array = read_npy(archive.read(entry), name)
    if array.dtype.kind in "SU":
      metadata[name] = f"array of {array.dtype}{list(array.shape)}"
    else:
      tensors[name] = array
  return tensors, metadata


def read_npy(view: memoryview, name: str) -> np.ndarray:
  """One array, not copied unless it is big-endian. Raises `RefusedError`."""
  what = f"the array '{shown(name)}'"
  descr, fortran, shape, at = _header(view, what)
  text = _TEXT.fullmatch(descr)
  if not text and not _NUMBERS.fullmatch(descr):
    raise _odd(what, descr)
  if text and int(text[1]) == 0:
    raise RefusedError(f"{what} holds texts of no length: it is damaged")
  dtype = np.dtype(descr)
  size = math.prod(shape) * dtype.itemsize
  if size != len(view) - at:
    raise RefusedError(
      f"{what} should have {size:,} bytes, but has {len(view) - at:,}: it is cut off"
    )
  if math.prod(n for n in shape if n) >= 2**60:
    raise RefusedError(f"{what} has impossible dimensions: it was tampered with")
  flat = np.frombuffer(view[at:], dtype) if size else np.zeros(0, dtype)
  if dtype == np.bool_ and size and flat.view(np.uint8).max() > 1:
    raise RefusedError(f"{what} holds a truth value that is neither 0 nor 1: it is damaged")
  if not dtype.isnative and not text:
    flat = flat.astype(dtype.newbyteorder("="))
  array = flat.reshape(shape, order="F" if fortran else "C")
  return frozen(array)


def _odd(what: str, descr: str) -> RefusedError:
  if "O" in descr:
    return RefusedError(
      f"{what} holds Python objects, which NumPy reads with pickle and so could run code",
      "Save plain arrays of numbers",
    )
  if "V" in descr:
    return RefusedError(
      f"{what} is of type {shown(descr)}: NumPy keeps no name for bfloat16 and its like",
      "Save array.astype(numpy.float32), or use safetensors",
    )
  return RefusedError(f"{what} is of type {shown(descr)}, which is no number", "Save plain arrays")


def _header(view: memoryview, what: str) -> tuple[str, bool, tuple[int, ...], int]:
  """(type, is Fortran's order, shape, where its numbers begin)."""
  major, minor = (view[6], view[7]) if len(view) > 10 and view[:6] == MAGIC else (0, 0)
  if (major, minor) not in ((1, 0), (2, 0), (3, 0)):
    raise RefusedError(f"{what} is no array of NumPy's, or of a version that is not known", AGAIN)
  width = 2 if major == 1 else 4
  size = int.from_bytes(view[8 : 8 + width], "little")
  at = 8 + width + size
  if size > _LONGEST or at > len(view):
    raise RefusedError(f"{what} has a header of {size:,} bytes: it is cut off or tampered with")
  found = _HEADER.fullmatch(bytes(view[8 + width : at]).decode("latin1"))
  if not found:
    raise RefusedError(f"{what} has a header that NumPy does not write: it is damaged")
  sizes = [part.strip().removesuffix("L") for part in found[3].split(",") if part.strip()]
  if len(sizes) > DIMENSIONS or not all(part.isdecimal() and len(part) < 19 for part in sizes):
    raise RefusedError(f"{what} has the shape ({shown(found[3])}): it is damaged")
  return found[1].strip("'"), found[2] == "True", tuple(int(part) for part in sizes), at
