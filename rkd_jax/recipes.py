"""What a config's method means: a name -> the phases that make its student.

A method without an entry here is one phase, so a new method stays one file. An entry of `RECIPES`
is a function of the `Setup` and the method's fields that returns {network's name: Phase} in order,
the last "student"; its keyword arguments with defaults are fields of its own. An entry of
`GROUNDWORK` makes what a method's students need beside a teacher (features to be detoxified first,
say), whatever wraps it.
"""

import dataclasses
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from rkd_jax import lookup
from rkd_jax.data.sources import Dataset
from rkd_jax.errors import UserError, nearest
from rkd_jax.methods.base import Method, Plugin
from rkd_jax.networks import Networks
from rkd_jax.phases import Config, Delivery, Phase, source_of

Spec = dict[str, Any]  # {"name": ..., field: value, "base": Spec}
Phases = dict[str, Phase]


@dataclasses.dataclass(frozen=True)
class Setup:
  """One seed's story: makes phases of it.

  Attributes:
    config: the run's.
    dataset: what it is about.
    seed: whose teacher, plans, orders and students these are.
    clean_teacher: the control: a teacher trained without poison, all else the same.
  """

  config: Config
  dataset: Dataset
  seed: int
  clean_teacher: bool = False

  def phase(
    self,
    name: str,
    method: Method,
    part: str,
    section: str,
    given: Mapping[str, Delivery] | None = None,
    shared: bool = False,
    train: Mapping[str, Any] | None = None,
    networks: Mapping[str, str] | None = None,
  ) -> Phase:
    """A phase trained as the config's `section` says.

    Args:
      shared: whether other runs may want it too.
      train: what differs from the section.
      networks: {role: architecture} that differ: whoever trains a teacher trains it as "student".
    """
    config = self.config
    names = {r: config[r].network for r in ("teacher", "student")} | config.networks.to_dict()
    found = Networks(config, self.dataset, {**names, **(networks or {})})
    method.roles(found)
    settings = {
      "data": self.dataset.fingerprint,
      "train": {**config[section].to_dict(), **(train or {}), "network": None, "poison": None},
      "networks": found.asked,
      "models": {role: source_of(type(found[role].module)) for role in found.asked},
      "precision": [config.dtype, config.bn_group],
      "labels": config.labels if part in ("pool", "labelled") else None,
      "poison": self.poison(part),
    }
    deliveries = tuple(sorted((given or {}).items()))
    text = json.dumps(settings, sort_keys=True)
    return Phase(name, method, part, deliveries, self.seed, text, shared)

  def poison(self, part: str) -> dict[str, Any] | None:
    """The trigger that is in a part of the data, and how much of it."""
    config = self.config
    rate = {"poisoned": config.teacher.poison, "pool": config.contamination}.get(part, 0)
    if not rate:
      return None
    fields = config.trigger.get(config.backdoor, ConfigDict()).to_dict()
    source = None if self.learned else source_of(lookup.load("backdoors", config.backdoor))
    made_by = self.poisoned_teacher().key if self.learned else None
    named = {"name": config.backdoor, "source": source, "target": config.target}
    return {**named, "rate": rate, "fields": fields, "made_by": made_by}

  @property
  def learned(self) -> bool:
    """Whether the backdoor's trigger is trained with its teacher (a method that delivers both)."""
    return not lookup.defines("backdoors", self.config.backdoor)

  def poisoned_teacher(self) -> Phase:
    name, own = self.config.backdoor, {"student": self.config.teacher.network}
    if not self.learned:
      method = make_method({"name": "supervised"})
      return self.phase("teacher", method, "poisoned", "teacher", shared=True, networks=own)
    fields = self.config.method.get(name, ConfigDict()).to_dict()
    attack = make_method({"name": name, "target": self.config.target} | fields)
    if "trigger" not in attack.delivers:
      raise UserError(f"{name!r} is no backdoor. {nearest(name, [*lookup.names('backdoors')])}")
    return self.phase("teacher", attack, "clean", "teacher", shared=True)

  def teacher_phase(self) -> Phase:
    if not self.clean_teacher:
      return self.poisoned_teacher()
    method, own = make_method({"name": "supervised"}), {"student": self.config.teacher.network}
    return self.phase("teacher", method, "clean", "teacher", shared=True, networks=own)

  @property
  def teacher(self) -> Delivery:
    phase = self.teacher_phase()
    return phase["teacher" if "teacher" in phase.method.delivers else "student"]

  def alone(self, part: str = "labelled") -> Phase:
    """A student that never meets a teacher: the baseline, and the first witness."""
    section = "labelled" if part == "labelled" else "student"
    return self.phase(f"alone-{part}", make_method({"name": "supervised"}), part, section)

  def student(self, name: str, method: Method, given: Mapping[str, Delivery]) -> Phase:
    """A student of the teacher, on the data that its method wants."""
    return self.phase(name, method, method.part, "student", {"teacher": self.teacher, **given})


def none(setup: Setup) -> Phases:
  """No teacher: supervised on the labelled part."""
  return {"student": setup.alone()}


def agreement(setup: Setup, *, rounds: int = 2, **fields: Any) -> Phases:
  """A witness from the labelled part, then rounds of agreement, each student the next witness."""
  if rounds < 1:
    raise UserError(f"agreement.rounds is {rounds}; it must be at least 1.")
  spec = {"name": "agreement", **fields}
  phases, given = groundwork(setup, spec)
  method = make_method(spec)
  last = phases["witness"] = setup.alone()
  for number in range(1, rounds + 1):
    given["witness"] = last["student"]
    # The last round's random numbers are those of every method's student: a paired comparison.
    name = "student" if number == rounds else f"round{number}"
    last = phases[name] = setup.student(name, method, given)
    given["kept"] = last["keep"]
  return phases


def single(setup: Setup, spec: Spec) -> Phases:
  """What most methods are: their groundwork, and one phase."""
  phases, given = groundwork(setup, spec)
  return {**phases, "student": setup.student("student", make_method(spec), given)}


RECIPES: dict[str, Callable[..., Phases]] = {"none": none, "agreement": agreement}
# name -> (setup, fields) -> (phases, {role: Delivery} for whoever uses the method)
GROUNDWORK: dict[str, Callable[[Setup, Spec], tuple[Phases, dict[str, Delivery]]]] = {}


def groundwork(setup: Setup, spec: Spec) -> tuple[Phases, dict[str, Delivery]]:
  """What must be there before a student of this spec, its bases' groundwork first."""
  phases, given = groundwork(setup, spec["base"]) if spec.get("base") else ({}, {})
  if spec["name"] in GROUNDWORK:
    more, roles = GROUNDWORK[spec["name"]](setup, spec)
    phases, given = {**phases, **more}, {**given, **roles}
  return phases, given


def phases(setup: Setup, spec: Spec) -> Phases:
  """The phases of a method's spec."""
  if spec["name"] not in RECIPES:
    return single(setup, spec)
  rest = {field: value for field, value in spec.items() if field != "name"}
  recipe = RECIPES[spec["name"]]
  try:
    call = inspect.signature(recipe).bind(setup, **rest)
  except TypeError as error:
    raise UserError(f"The method {spec['name']!r} does not take these fields: {error}.") from error
  return recipe(*call.args, **call.kwargs)


def names() -> list[str]:
  """Everything that `config.methods` may name."""
  return sorted({*RECIPES, *lookup.names("methods")})


def is_plugin(name: str) -> bool:
  """Whether the method wraps another; one that is not there is none."""
  known = "." in name or name in lookup.names("methods")
  return known and issubclass(lookup.load("methods", name), Plugin)


def make_method(spec: Mapping[str, Any]) -> Method:
  """{"name": ..., field: value, "base": {...}} -> the Method, its base made likewise."""
  fields = {field: value for field, value in spec.items() if field != "name"}
  if "base" in fields or is_plugin(spec["name"]):
    fields["base"] = make_method(fields.get("base") or {"name": "kd"})
  return lookup.build("methods", spec["name"], fields)


def fields(name: str) -> dict[str, Any]:
  """The fields that a method's name takes in a config, with their defaults."""
  found = {}
  if name in RECIPES:
    parameters = inspect.signature(RECIPES[name]).parameters.values()
    found = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
  if name in lookup.names("methods"):
    own = [f for f in dataclasses.fields(lookup.load("methods", name)) if f.init]
    found |= {f.name: f.default for f in own if f.default is not dataclasses.MISSING}
    found |= {"base": "kd"} if is_plugin(name) else {}
  return found


def specs(config: Config) -> dict[str, Spec]:
  """{label: Spec} of the methods that the config compares, bases and all."""
  if "name" in config.method:
    return {config.method.name: resolved(config, config.method.to_dict())}
  return {
    label: resolved(config, {"name": label} | given(config, label)) for label in config.methods
  }


def given(config: Config, label: str) -> Spec:
  return config.method[label].to_dict() if label in config.method else {}


def resolved(config: Config, spec: Spec, above: tuple[str, ...] = ()) -> Spec:
  """The spec with a base that is named replaced by that method's own fields in the config."""
  name = spec["name"]
  if name not in names() and "." not in name:
    raise UserError(f"No method is called {name!r}. {nearest(name, names())}")
  if name in above:
    raise UserError(f"The method {name!r} wraps itself: {' around '.join((*above, name))}.")
  base = spec.get("base") or ("kd" if is_plugin(name) else None)
  if isinstance(base, str):
    base = {"name": base} | given(config, base)
  return spec | ({"base": resolved(config, base, (*above, name))} if base else {})


def innermost(spec: Spec) -> Spec | None:
  """The undefended method that a plug-in is compared with; None where nothing is wrapped."""
  base = spec.get("base")
  return (innermost(base) or base) if base else None
