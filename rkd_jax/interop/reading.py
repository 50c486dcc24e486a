"""A path to a checkpoint: what the file is decides how it is read, never its suffix."""

import os
import pathlib
from collections.abc import Iterable
from typing import Any

from rkd_jax.errors import UserError
from rkd_jax.interop import (
  flax_file,
  numpy_files,
  phase,
  safetensors,
  sharded,
  sniff,
  torch_legacy,
  torch_zip,
)
from rkd_jax.interop.archive import Archive
from rkd_jax.interop.budget import Budget
from rkd_jax.interop.checkpoint import Checkpoint
from rkd_jax.interop.refusals import RESAVE, RefusedError
from rkd_jax.interop.source import Source

_Read = tuple[
  str, dict[str, Any], dict[str, Any], Iterable[str]
]  # kind, tensors, metadata, globals


def read(path: str | os.PathLike, *, sha256: str = "", opaque: Iterable[str] = ()) -> Checkpoint:
  """Reads a stranger's checkpoint as data; nothing in it is run.

  PyTorch's files (zip and legacy), safetensors (one file, or a *.index.json with its parts),
  .npz, .npy, Flax's msgpack, and folders of finished phases. Arrays stay in the file until they are
  read, so it takes no more memory than they do.

  Args:
    path: of the file, or of a folder with one checkpoint.
    sha256: what the file's digest must be, in hex; "": whatever it is.
    opaque: classes, such as "models.Settings", that a pickle may name; their objects are noted by
      name with what they hold, never made.

  Raises:
    RefusedError: if it is no checkpoint, damaged, asks for code, costs more than it may, or is
      another file than `sha256` says.
    UserError: if it cannot be opened.
  """
  path = os.path.expanduser(os.fspath(path))
  found = _read(path, frozenset(opaque))
  if sha256 and sha256.lower() != found.sha256:
    raise RefusedError(
      f"{path}: it has sha256 {found.sha256}, but {sha256} was asked for",
      "It is another file than the one you mean",
    )
  return found


def _read(path: str, opaque: frozenset[str], whole: bool = True) -> Checkpoint:
  folder = pathlib.Path(path)
  if os.path.isdir(path) and whole:
    if not phase.is_phase(folder):
      return _read(sharded.index_in(folder), opaque)
    try:
      return phase.read(path)
    except RefusedError as error:
      raise error.of(path) from None
  try:
    source = Source(path)
    if whole and sharded.is_index(source.view):
      return sharded.read(source, lambda part: _read(part, opaque, whole=False))
    kind, tensors, metadata, names = _contents(source, opaque)
  except RefusedError as error:
    raise error.of(path) from None
  return Checkpoint(kind, path, source.size, source.sha256, tensors, metadata, tuple(sorted(names)))


def _contents(source: Source, opaque: frozenset[str]) -> _Read:
  view, budget = source.view, Budget()
  head = bytes(view[:8])
  if safetensors.is_safetensors(view):  # first: its length may begin as other files do
    return "safetensors", *safetensors.read(view), ()
  if head.startswith(b"PK\3\4"):
    return _zip(view, opaque, budget)
  if head.startswith(numpy_files.MAGIC):
    return "npy", {"arr_0": numpy_files.read_npy(view, "arr_0")}, {}, ()
  if head[:1] == b"\x80":
    return _pickle(view, opaque, budget)
  sniff.refuse_foreign(view)
  if flax_file.is_flax(view):
    return "flax msgpack", *flax_file.read(view, budget), ()
  _refuse_calls(view)
  raise sniff.unknown(view)


def _zip(view: memoryview, opaque: frozenset[str], budget: Budget) -> _Read:
  archive = Archive(view)
  if torch_zip.is_torch(archive):
    return "torch zip", *torch_zip.read(archive, opaque, budget)
  if numpy_files.is_npz(archive):
    return "npz", *numpy_files.read_npz(archive, budget), ()
  raise sniff.refuse_zip(list(archive.entries))


def _pickle(view: memoryview, opaque: frozenset[str], budget: Budget) -> _Read:
  if torch_legacy.is_legacy(view):
    return "torch legacy", *torch_legacy.read(view, opaque, budget)
  raise RefusedError("it is a pickle, but none of torch.save's", RESAVE)


def _refuse_calls(view: memoryview) -> None:
  """Names the code that a pickle without a header (protocols 0 and 1) asks for."""
  try:
    torch_legacy.is_legacy(view)
  except RefusedError as error:
    if error.globals:
      raise
  except UserError:
    pass
