"""What a checkpoint holds, whoever wrote it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """Attributes:
  kind: "torch zip", "torch legacy", "torch index", "safetensors", "safetensors index", "npz",
    "npy", "flax msgpack", or "phase" (a folder of this package).
  path: as given.
  size: in bytes, of all files.
  sha256: of the file, in hex. Of several files: of the lines "<sha256>  <name>\\n" that sha256sum
    prints for the index and then its parts, by name. Of a phase: of its arrays, as in done.json.
  tensors: {name: array}, read-only, in the file's order. A name within containers is their keys,
    joined by "/"; a list's keys are its positions. Arrays of one storage share memory. Most are
    mapped from the file, which must not change while they are in use.
  metadata: {name: number, text, truth, None, or a list of them}, all else that it holds.
  globals: the functions and classes that its pickle names, sorted; none of them was called.
  """

  kind: str
  path: str
  size: int
  sha256: str
  tensors: Mapping[str, np.ndarray]
  metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  globals: tuple[str, ...] = ()
