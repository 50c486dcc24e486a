"""Weights under the names that PyTorch's code has for them, as safetensors or a state dict."""

import io
import json
import math
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from rkd_jax import networks
from rkd_jax.errors import UserError
from rkd_jax.interop import layout
from rkd_jax.interop.families import ALL, Family, base
from rkd_jax.models.network import Network

State = dict[str, np.ndarray]  # {a name in PyTorch: float32 array, axes as there}
ALIGNED = 64  # bytes: where arrays begin, for whoever maps the file into memory


def state_dict(network: Network, variables: Any, wanted: str = "") -> tuple[Family, State]:
  """The variables by the names of a family whose code computes the same; the first that is known.

  Args:
    wanted: a part of the family's name, in any case; "": the first that has it.

  Raises:
    UserError: no family, or not this one, has such a network.
  """
  found = [named for family in ALL if (named := _named(network, variables, family))]
  same = [(family, state) for family, state, same in found if same]
  chosen = [(f, s) for f, s, _ in found if wanted and wanted.lower() in f.name.lower()] or same
  if not chosen or (wanted and wanted.lower() not in chosen[0][0].name.lower()):
    names = "; ".join(family.name for family, _, _ in found) or "none"
    what = f"have the name {wanted!r}" if wanted else "are read as the same network"
    raise UserError(
      f"No PyTorch names for this network {what}. Names that its tensors could have are {names}. "
      "Choose one with --names, or export another format."
    )
  return chosen[0]


def _named(network: Network, variables: Any, family: Family) -> tuple[Family, State, bool] | None:
  """The family's names for the network, and whether a reader takes them for the same network."""
  flat: dict[tuple[str, ...], Any] = dict(traverse_util.flatten_dict(variables))
  leaves = {"/".join(path): np.asarray(leaf) for path, leaf in flat.items()}
  try:
    names = base.tensors(family, map(layout.path_of, leaves))
  except KeyError:
    return None
  state = {}
  for leaf, array in leaves.items():
    parts = names[layout.path_of(leaf)].split(base.AND)  # what is one of ours and several of theirs
    state |= zip(parts, np.split(turned(leaf, array), len(parts)), strict=True)
  guesses = list(family.guess({name: array.shape for name, array in state.items()}))
  return (family, state, any(_is(network, guess) for guess in guesses)) if guesses else None


def _is(network: Network, name: str) -> bool:
  """Whether the name is that of this very network."""
  try:
    return networks.module(name, classes=network.classes) == network.module
  except UserError:  # a guess may be of a width or depth that there is none of
    return False


def turned(leaf: str, array: np.ndarray) -> np.ndarray:
  """Our leaf as PyTorch's tensor: the reverse of `layout.ours`."""
  axes = layout.TO_THEIRS.get(array.ndim) if leaf.endswith("/kernel") else None
  return np.array(array.transpose(axes) if axes else array, np.float32, order="C")


def safetensors(state: State, about: Mapping[str, str]) -> bytes:
  """The file's bytes: a length, a JSON header with `about` as its metadata, then the arrays."""
  header: dict[str, Any] = {"__metadata__": {"format": "pt", **about}}
  end = 0
  for name, array in state.items():
    begin, end = end, end + array.nbytes
    header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [begin, end]}
  text = json.dumps(header).encode()
  text += b" " * (-len(text) % 8)
  return b"".join([struct.pack("<Q", len(text)), text, *(a.tobytes() for a in state.values())])


def torch_zip(state: State) -> bytes:
  """The bytes of what `torch.save(state)` writes: `torch.load(..., weights_only=True)` reads it."""
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w") as file:
    _store(file, buffer, "state/data.pkl", _pickle(state))
    _store(file, buffer, "state/byteorder", b"little")
    for number, array in enumerate(state.values()):
      _store(file, buffer, f"state/data/{number}", array.astype("<f4").tobytes())
    _store(file, buffer, "state/version", b"3\n")
  return buffer.getvalue()


def _store(file: zipfile.ZipFile, buffer: io.BytesIO, name: str, data: bytes) -> None:
  """An entry whose data begin at a multiple of `ALIGNED`, as PyTorch's do; of no time."""
  entry = zipfile.ZipInfo(name)
  gap = -(buffer.tell() + 30 + len(name) + 4) % ALIGNED
  entry.extra = b"FB" + struct.pack("<H", gap) + b"Z" * gap
  file.writestr(entry, data)


def _pickle(state: State) -> bytes:
  """An ordered dict of `torch._utils._rebuild_tensor_v2(...)`, in the pickle protocol's opcodes."""
  empty = b"ccollections\nOrderedDict\n)R"
  parts = [b"\x80\x02", empty, b"("]
  for number, (name, array) in enumerate(state.items()):
    strides = [math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim)]
    storage = b"".join([
      b"(", _text("storage"), b"ctorch\nFloatStorage\n", _text(str(number)), _text("cpu"),
      _number(array.size), b"tQ",
    ])  # fmt: skip
    shape, steps = (b"(" + b"".join(map(_number, n)) + b"t" for n in (array.shape, strides))
    arguments = b"(" + storage + _number(0) + shape + steps + b"\x89" + empty + b"t"
    parts += [_text(name), b"ctorch._utils\n_rebuild_tensor_v2\n", arguments, b"R"]
  return b"".join([*parts, b"u."])


def _text(text: str) -> bytes:
  data = text.encode()
  return b"X" + struct.pack("<I", len(data)) + data


def _number(number: int) -> bytes:
  """As long as it must be: a storage may have more elements than four bytes count."""
  if number < 2**31:
    return b"J" + struct.pack("<i", number)
  data = number.to_bytes(8, "little")
  return b"\x8a\x08" + data
