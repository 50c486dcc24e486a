"""A phase: a Method, which delivered network plays which role, and which data it sees.

Phases refer to each other, so a run is a graph of them. A phase's key is a hash of everything that
its result depends on; equal phases of several methods, or of several runs, are trained once.
"""

import dataclasses
import hashlib
import inspect
import json
import sys
from collections.abc import Mapping
from typing import Any

import rkd_jax
from rkd_jax.methods.base import Method

Config = Any  # a locked ml_collections.ConfigDict, whose own type says too little of its values


@dataclasses.dataclass(frozen=True)
class Delivery:
  """What a phase delivers under a name."""

  phase: "Phase"
  name: str


@dataclasses.dataclass(frozen=True)
class Phase:
  """Attributes:
  name: says what it is ("teacher", "kd/student"); its random numbers are drawn from (seed, name).
  method: how it trains.
  part: the data it sees, one of `data.parts.PARTS`.
  section: the config section with its epochs, batch size, augmentation and optimiser.
  given: ((role, Delivery), ...): where roles get their values.
  seed: of the run.
  settings: JSON of all else that its result depends on (data, poison, section, networks).
  """

  name: str
  method: Method
  part: str
  section: str
  given: tuple[tuple[str, Delivery], ...]
  seed: int
  settings: str

  def __getitem__(self, name: str) -> Delivery:
    return Delivery(self, name)

  @property
  def key(self) -> str:
    """Hex digest over everything that the result depends on."""
    text = json.dumps(self.describe(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

  def describe(self) -> dict[str, Any]:
    """The phase as plain values; phases it builds on by their keys."""
    return {
      "version": rkd_jax.__version__,
      "name": self.name,
      "method": describe_method(self.method),
      "part": self.part,
      "given": {role: [ref.phase.key, ref.name] for role, ref in self.given},
      "seed": self.seed,
      "settings": json.loads(self.settings),
    }


def describe_method(method: Method) -> dict[str, Any]:
  """{"name": module, "source": hash of its file, field: value, ...}, nested for plug-ins."""
  fields: Mapping[str, Any] = {
    f.name: getattr(method, f.name) for f in dataclasses.fields(method) if f.init
  }
  module = sys.modules[type(method).__module__]
  source = hashlib.sha256(inspect.getsource(module).encode()).hexdigest()[:8]
  return {"name": module.__name__, "source": source} | {
    name: describe_method(value) if isinstance(value, Method) else value
    for name, value in fields.items()
  }
