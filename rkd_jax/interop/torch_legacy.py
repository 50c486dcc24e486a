"""PyTorch's files before 1.6: pickles one after the other, then the storages' bytes."""

import dataclasses
from typing import Any

import numpy as np

from rkd_jax.interop.budget import Budget
from rkd_jax.interop.machine import Machine
from rkd_jax.interop.refusals import RefusedError, shown
from rkd_jax.interop.source import as_bytes
from rkd_jax.interop.torch_zip import Found, storage_of
from rkd_jax.interop.tree import flatten
from rkd_jax.interop.values import Storage
from rkd_jax.interop.views import Storages

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001


@dataclasses.dataclass(frozen=True)
class _Window:
  """Part of another storage, in elements."""

  root: Storage
  offset: int


class _References:
  """The storages that the pickle refers to."""

  def __init__(self):
    self.roots: dict[str, Storage] = {}
    self.windows: dict[str, _Window] = {}

  def note(self, persistent: tuple) -> Storage:
    """As `storage_of`, of ("storage", class, key, location, elements, window or None)."""
    if len(persistent) == 5 or (len(persistent) == 6 and persistent[5] is None):
      root = storage_of(persistent[:5])
      return self._same(root)
    root = self._same(storage_of(persistent[:5]))
    key, offset, numel = _window(persistent)
    if offset + numel > root.numel:
      raise RefusedError("a storage that is part of another leaves it: it was tampered with")
    name = f"{key}:{root.key}"  # no file has such a key
    if self.windows.setdefault(name, _Window(root, offset)).offset != offset:
      raise RefusedError("a storage that is two parts of another: it was tampered with")
    return Storage(name, root.dtype, numel)

  def _same(self, storage: Storage) -> Storage:
    known = self.roots.setdefault(storage.key, storage)
    if (known.numel, known.dtype) != (storage.numel, storage.dtype):
      raise RefusedError(f"the storage '{shown(storage.key)}' has two types or sizes")
    return known


def _window(persistent: tuple) -> tuple[str, int, int]:
  try:
    key, offset, numel = persistent[5]
    if type(key) is str and type(offset) is int and type(numel) is int and min(offset, numel) >= 0:
      return key, offset, numel
  except (IndexError, TypeError, ValueError):
    pass
  raise RefusedError("a storage whose class, name or size is none: it was tampered with")


def is_legacy(view: memoryview) -> bool:
  """Whether it begins with torch.save's number. Raises `RefusedError` for damaged pickles."""
  machine = Machine(view)
  value = machine.run()
  return type(value) is int and value == MAGIC


def read(view: memoryview, opaque: frozenset[str], budget: Budget) -> Found:
  """What the file holds. Raises `RefusedError`."""
  version, at = _run(view, _run(view, 0, budget)[1], budget)
  if type(version) is not int or version != VERSION:
    raise RefusedError(f"its format has version {shown(version)}; {VERSION} is the only one known")
  system, at = _run(view, at, budget)
  references = _References()
  machine = Machine(view, at, budget, references.note, opaque)
  value = machine.run()
  keys, at = _run(view, machine.end, budget)
  big = type(system) is dict and system.get("little_endian", True) is False
  found = _locate(view, at, keys, references.roots, big)

  def load(key: str, count: int) -> np.ndarray:
    window = references.windows.get(key)
    start = window.offset * window.root.dtype.itemsize if window else 0
    return found[window.root.key if window else key][start : start + count]

  tensors, metadata = flatten(value, Storages(load, big).array, budget)
  return tensors, metadata, machine.globals


def _run(view: memoryview, at: int, budget: Budget) -> tuple[Any, int]:
  machine = Machine(view, at, budget)
  return machine.run(), machine.end


def _locate(
  view: memoryview, at: int, keys: Any, storages: dict[str, Storage], big: bool
) -> dict[str, np.ndarray]:
  """{key: its bytes}: each is preceded by its number of elements; nothing may follow the last."""
  if type(keys) is not list or not all(type(key) is str for key in keys):
    raise RefusedError("its list of storages is none: it is damaged")
  if sorted(keys) != sorted(storages):
    raise RefusedError("its list of storages is not what its tensors need: it was tampered with")
  found = {}
  for key in keys:
    numel = int.from_bytes(view[at : at + 8], "big" if big else "little")
    end = at + 8 + numel * storages[key].dtype.itemsize
    if end > len(view):
      raise RefusedError(f"it is cut off: it has {len(view):,} bytes, and needs {end:,} or more")
    if numel != storages[key].numel:
      raise RefusedError(f"the storage '{shown(key)}' is of another size than its tensors say")
    found[key] = as_bytes(view[at + 8 : end])
    at = end
  if at != len(view):
    raise RefusedError(f"{len(view) - at:,} bytes follow its last storage")
  return found
