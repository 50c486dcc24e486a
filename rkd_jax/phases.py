"""A phase: a Method, which delivered network plays which role, and which data it sees.

Phases refer to each other, so a run is a graph of them. A phase's key is a hash of everything that
its result depends on; equal phases of several methods, or of several runs, are trained once.
"""

import dataclasses
import functools
import hashlib
import inspect
import json
import pathlib
import sys
from typing import TYPE_CHECKING, Any

import rkd_jax
from rkd_jax.methods.base import Method

if TYPE_CHECKING:
  from rkd_jax.given import Given

Config = Any  # a locked ml_collections.ConfigDict, whose own type says too little of its values


@dataclasses.dataclass(frozen=True)
class Delivery:
  """What a phase delivers under a name."""

  phase: "Phase"
  name: str

  def describe(self) -> list[str]:
    """What stands for it in the key of a phase."""
    return [self.phase.key, self.name]


@dataclasses.dataclass(frozen=True)
class Phase:
  """Attributes:
  name: says what it is ("teacher", "student"); its random numbers are drawn from (seed, name).
  method: how it trains.
  part: the data it sees, one of `data.parts.PARTS`.
  given: ((role, Delivery or Given), ...): where roles get their values.
  seed: of the run.
  settings: JSON of all else that its result depends on: how it trains, networks, data, poison.
  shared: whether other runs may want it too (teachers).
  """

  name: str
  method: Method
  part: str
  given: "tuple[tuple[str, Delivery | Given], ...]"
  seed: int
  settings: str
  shared: bool = False

  def __getitem__(self, name: str) -> Delivery:
    return Delivery(self, name)

  def setting(self, name: str) -> Any:
    """One entry of the settings: "train", "networks", ..."""
    return json.loads(self.settings)[name]

  @property
  def teacher(self) -> "Phase | Given | None":
    """The phase whose network teaches here, or is trained on here, or who gave it, if any."""
    given = dict(self.given)
    found = given.get("teacher") or given.get("student")
    return found.phase if isinstance(found, Delivery) else found

  @functools.cached_property
  def key(self) -> str:
    """Hex digest over everything that the result depends on."""
    text = json.dumps(self.describe(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

  def describe(self) -> dict[str, Any]:
    """The phase as plain values; phases it builds on by their keys."""
    return {
      "version": rkd_jax.__version__,
      "code": common_code(),
      "name": self.name,
      "method": describe_method(self.method),
      "part": self.part,
      "given": {role: ref.describe() for role, ref in self.given},
      "seed": self.seed,
      "settings": json.loads(self.settings),
    }


def describe_method(method: Method) -> dict[str, Any]:
  """{"name": module, "source": of its file, field: value, ...}, nested for plug-ins."""
  fields = {f.name: getattr(method, f.name) for f in dataclasses.fields(method) if f.init}
  plain = {
    name: describe_method(value) if isinstance(value, Method) else value
    for name, value in fields.items()
  }
  name = f"{type(method).__module__}.{type(method).__qualname__}"
  return {"name": name, "source": source_of(type(method)), **plain}


@functools.lru_cache
def source_of(part: type) -> str:
  """Short digest over the files that define a class and what it inherits from."""
  modules = {c.__module__ for c in part.__mro__ if c.__module__ in sys.modules}
  own = sorted(m for m in modules if m.split(".")[0] not in ("builtins", "flax", "typing"))
  texts = [inspect.getsource(sys.modules[module]) for module in own]
  return hashlib.sha256("".join(texts).encode()).hexdigest()[:8]


@functools.lru_cache
def common_code() -> str:
  """Short digest over the code that every phase runs, whatever its method, network or trigger."""
  root = pathlib.Path(rkd_jax.__file__).parent
  files = [*root.glob("training/*.py"), *root.glob("data/*.py")]
  files += [root / f for f in ("losses.py", "repeat.py", "implicit.py", "compiling.py")]
  files += [root / "backdoors" / f for f in ("base.py", "learned.py", "plans.py", "poison.py")]
  files += [root / f for f in ("networks.py", "evaluation/predictions.py")]
  files += [root / "methods" / f for f in ("inversion.py", "kd.py", "views.py")]
  files += [root / "adversarial" / f for f in ("ball.py", "pgd.py")]
  files += [
    root / "models" / f
    for f in ("connector.py", "generator.py", "layers.py", "network.py", "norm.py")
  ]
  text = "".join(file.read_text(encoding="utf-8") for file in sorted(files))
  return hashlib.sha256(text.encode()).hexdigest()[:8]
