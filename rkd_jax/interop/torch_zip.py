"""PyTorch's files since 1.6: a zip file of data.pkl and one entry for each storage."""

import re
from typing import Any

import numpy as np

from rkd_jax.interop.archive import Archive
from rkd_jax.interop.budget import Budget
from rkd_jax.interop.machine import Machine
from rkd_jax.interop.meanings import STORAGE_CLASSES
from rkd_jax.interop.refusals import RESAVE, RefusedError, shown
from rkd_jax.interop.tree import flatten
from rkd_jax.interop.values import Global, Storage
from rkd_jax.interop.views import Storages

_SCRIPT = re.compile(r"[^/]+/(constants\.pkl|code/.*|model\.json|bytecode\.pkl)")
_KEY = re.compile(r"[\w.-]{1,128}", re.ASCII)
Found = tuple[dict[str, np.ndarray], dict[str, Any], set[str]]  # tensors, metadata, globals


def is_torch(archive: Archive) -> bool:
  return any(_SCRIPT.fullmatch(name) or name.endswith("data.pkl") for name in archive.entries)


def read(archive: Archive, opaque: frozenset[str], budget: Budget) -> Found:
  """What `archive` holds. Raises `RefusedError`."""
  root = _root(archive)
  big = _order(archive, root)
  entry = archive.entries[f"{root}/data.pkl"]
  budget.grow(len(entry.packed))
  pickle = archive.read(entry)
  machine = Machine(pickle, 0, budget, storage_of, opaque)
  value = machine.run()
  if machine.end != len(pickle):
    raise RefusedError(
      f"{len(pickle) - machine.end:,} bytes follow its pickle's end: it was tampered with"
    )

  def load(key: str, count: int) -> np.ndarray:
    entry = archive.entries.get(f"{root}/data/{key}")
    if entry is None or entry.size != count:
      raise RefusedError(
        f"the storage '{shown(key)}' should have {count} bytes, the file has "
        f"{entry.size if entry else 'none'}: it is damaged or tampered with"
      )
    return archive.array(entry)

  tensors, metadata = flatten(value, Storages(load, big).array, budget)
  return tensors, metadata, machine.globals


def _root(archive: Archive) -> str:
  """The folder within the archive."""
  if any(_SCRIPT.fullmatch(name) for name in archive.entries):
    raise RefusedError(
      "it is a TorchScript archive, which holds code",
      "In PyTorch: torch.save(torch.jit.load(path).state_dict(), other)",
    )
  roots = [name.removesuffix("/data.pkl") for name in archive.entries if name.endswith("/data.pkl")]
  if len(roots) != 1 or "/" in roots[0]:
    raise RefusedError(
      "it is a zip file with none or several data.pkl; torch.save writes one", RESAVE
    )
  strays = [name for name in archive.entries if not name.startswith(f"{roots[0]}/")]
  if strays:
    raise RefusedError(f"the entry '{shown(strays[0])}' is none of torch.save's", RESAVE)
  return roots[0]


def _order(archive: Archive, root: str) -> bool:
  """Whether numbers are big-endian."""
  entry = archive.entries.get(f"{root}/byteorder")
  said = "little" if entry is None else ""
  if entry is not None and entry.size <= 6:
    said = bytes(archive.read(entry)).decode("latin1")
  if said not in ("little", "big"):
    raise RefusedError("its byte order is neither little nor big: it is damaged")
  return said == "big"


def storage_of(persistent: tuple) -> Storage:
  """What a pickle's ("storage", class, key, location, elements) stands for."""
  if len(persistent) != 5 or persistent[0] != "storage":
    kind = persistent[0] if persistent and type(persistent[0]) is str else "nothing"
    if kind == "module":  # how PyTorch before 1.6 kept the source of a model's classes
      raise RefusedError(
        "it is a whole model, pickled with its code; only weights are read", RESAVE
      )
    raise RefusedError(
      f"a reference to '{shown(kind)}', where a storage belongs: it was tampered with"
    )
  _, cls, key, location, numel = persistent
  dtype = STORAGE_CLASSES.get(cls.name) if isinstance(cls, Global) else None
  good = type(key) is str and type(location) is str and type(numel) is int
  if dtype is None or not good or not 0 <= numel < 2**60 or not _KEY.fullmatch(key):
    raise RefusedError("a storage whose class, name or size is none: it was tampered with")
  if location == "meta":
    raise RefusedError(
      "it holds tensors without values (device meta)", "Load its weights, then save it"
    )
  return Storage(key, dtype, numel)
