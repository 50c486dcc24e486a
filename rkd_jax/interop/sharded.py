"""A checkpoint in several files, with a *.index.json that says which tensor is where."""

import hashlib
import pathlib
import re
from collections.abc import Callable, Mapping

import numpy as np

from rkd_jax.errors import UserError
from rkd_jax.interop import strict_json
from rkd_jax.interop.checkpoint import Checkpoint
from rkd_jax.interop.refusals import AGAIN, RefusedError, shown
from rkd_jax.interop.source import Source

_PART = re.compile(r"[\w][\w.\-+ ]{0,254}")
_PARTS = 10_000


def is_index(view: memoryview) -> bool:
  return bytes(view[:64]).lstrip()[:1] == b"{" and view[8:9] != b"{"


def read(source: Source, part: Callable[[str], Checkpoint]) -> Checkpoint:
  """Reads the parts beside the index.

  Args:
    source: the index.
    part: reads the file of one part.

  Raises:
    UserError: if it is no index, a part is missing, or parts and index differ.
  """
  index = strict_json.parse(source.view, "index")
  places = index.get("weight_map")
  if type(places) is not dict or not all(type(file) is str for file in places.values()):
    raise RefusedError(
      "it is JSON, but no index of a checkpoint's parts ('weight_map' is missing)",
      "Name the checkpoint, or its *.index.json",
    )
  files = sorted(set(places.values()))
  for name in files:
    if not _PART.fullmatch(name) or len(files) > _PARTS:
      raise RefusedError(
        f"the part '{shown(name)}' is not the name of a file beside the index", AGAIN
      )
  parts = {name: _part(source.path, name, part) for name in files}
  kinds = {found.kind.split()[0] for found in parts.values()}
  if len(kinds) != 1 or not kinds <= {"torch", "safetensors"}:
    raise RefusedError("its parts are not all of PyTorch's, or of safetensors'", AGAIN)
  return Checkpoint(
    kind=f"{kinds.pop()} index",
    path=source.path,
    size=source.size + sum(found.size for found in parts.values()),
    sha256=_sha256(source, parts),
    tensors=_tensors(places, parts),
    metadata={
      f"{name}/{key}": v for name, part in parts.items() for key, v in part.metadata.items()
    },
    globals=tuple(sorted({name for found in parts.values() for name in found.globals})),
  )


def _part(index: str, name: str, part: Callable[[str], Checkpoint]) -> Checkpoint:
  path = pathlib.Path(index).parent / name
  if not path.is_file():
    raise RefusedError(f"its part '{shown(name)}' is missing", "Download all parts into one folder")
  return part(str(path))


def _tensors(places: Mapping[str, str], parts: Mapping[str, Checkpoint]) -> dict[str, np.ndarray]:
  """By name, in the index's order."""
  there = {(name, file) for file, part in parts.items() for name in part.tensors}
  if odd := there ^ set(places.items()):
    name, file = min(odd)
    raise RefusedError(
      f"the tensor '{shown(name)}' is in the index or in '{shown(file)}', not in both"
    )
  return {name: parts[file].tensors[name] for name, file in places.items()}


def _sha256(source: Source, parts: Mapping[str, Checkpoint]) -> str:
  own = pathlib.Path(source.path).name
  lines = [(source.sha256, own), *((parts[name].sha256, name) for name in sorted(parts))]
  return hashlib.sha256("".join(f"{sha}  {name}\n" for sha, name in lines).encode()).hexdigest()


def index_in(folder: pathlib.Path) -> str:
  """The one checkpoint of a folder: its index, or its only safetensors file."""
  for pattern in ("*.index.json", "*.safetensors"):
    found = sorted(folder.glob(pattern))
    if len(found) == 1:
      return str(found[0])
    if found:
      break
  raise UserError(
    f"{folder} is a folder, and holds no phase (done.json, final/) and no one *.index.json or "
    "*.safetensors. Name the checkpoint's file."
  )
