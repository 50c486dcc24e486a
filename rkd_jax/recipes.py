"""What a config's method means: a name -> the phases that make its student.

A method without a recipe here is a recipe of one phase on the pool, so a new method stays one
file. A recipe takes the `Setup` and its method's fields, and returns {network's name: Phase} in
order; the last is "student". Keyword arguments with defaults are fields of the recipe itself.
"""

import dataclasses
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from rkd_jax import lookup
from rkd_jax.errors import UserError, nearest
from rkd_jax.methods.base import Method, Plugin
from rkd_jax.phases import Config, Delivery, Phase

Phases = dict[str, Phase]


@dataclasses.dataclass(frozen=True)
class Setup:
  """One seed's story: makes phases of it.

  Attributes:
    config: the run's.
    fingerprint: of the data.
    seed: whose teacher, plans, orders and students these are.
    clean_teacher: the control: a teacher trained without poison, all else the same.
  """

  config: Config
  fingerprint: str
  seed: int
  clean_teacher: bool = False

  def phase(
    self,
    name: str,
    method: Method,
    part: str,
    section: str,
    given: Mapping[str, Delivery] | None = None,
  ) -> Phase:
    """A phase trained as the config's `section` says."""
    config = self.config
    settings = {
      "data": config.data.to_dict() | {"fingerprint": self.fingerprint, "data_dir": None},
      "train": config[section].to_dict(),
      "networks": self.networks(section),
      "precision": [config.dtype, config.bn_group],
      "labels": config.labels if part in ("pool", "labelled") else None,
    }
    if part == "poisoned" or (part == "pool" and config.contamination):
      settings["backdoor"] = {
        "name": config.backdoor,
        "fields": config.trigger.get(config.backdoor, ConfigDict()).to_dict(),
        "target": config.target,
        "contamination": config.contamination if part == "pool" else None,
        "made_by": self.poisoned_teacher().key if part == "pool" and self.learned else None,
      }
    deliveries = tuple(sorted((given or {}).items()))
    text = json.dumps(settings, sort_keys=True)
    return Phase(name, method, part, section, deliveries, self.seed, text)

  def networks(self, section: str) -> dict[str, str]:
    """{role: architecture's name} that a phase of this section may use.

    Whoever trains a teacher trains it as the role "student" (or, for an attack, as "teacher").
    """
    teacher, student = self.config.teacher.network, self.config.student.network
    extra = self.config.networks.to_dict() if section != "teacher" or self.learned else {}
    own = {"student": teacher if section == "teacher" else student, "teacher": teacher}
    return {**own, **extra}

  @property
  def learned(self) -> bool:
    """Whether the backdoor's trigger is trained with its teacher (a method that delivers both)."""
    return self.config.backdoor not in lookup.names("backdoors")

  def poisoned_teacher(self) -> Phase:
    if not self.learned:
      return self.phase("teacher", make_method({"name": "supervised"}), "poisoned", "teacher")
    fields = self.config.method.get(self.config.backdoor, ConfigDict()).to_dict()
    attack = make_method({"name": self.config.backdoor, "target": self.config.target} | fields)
    if "trigger" not in attack.delivers:
      known = [*lookup.names("backdoors"), "adba"]
      raise UserError(
        f"{self.config.backdoor!r} is no backdoor. {nearest(self.config.backdoor, known)}"
      )
    return self.phase("teacher", attack, "clean", "teacher")

  def teacher_phase(self) -> Phase:
    if self.clean_teacher:
      return self.phase("teacher", make_method({"name": "supervised"}), "clean", "teacher")
    return self.poisoned_teacher()

  @property
  def teacher(self) -> Delivery:
    phase = self.teacher_phase()
    return phase["teacher" if "teacher" in phase.method.delivers else "student"]

  def supervised(self, part: str = "labelled") -> Phase:
    """A student that never meets the teacher: the baseline, and the first witness."""
    section = "labelled" if part == "labelled" else "student"
    return self.phase(f"none/{part}", make_method({"name": "supervised"}), part, section)

  def student(self, name: str, method: Method, **given: Delivery) -> Phase:
    """A student distilled on the pool."""
    return self.phase(name, method, "pool", "student", {"teacher": self.teacher, **given})


def none(setup: Setup) -> Phases:
  """No teacher: supervised on the labelled part."""
  return {"student": setup.supervised()}


def agreement(setup: Setup, *, rounds: int = 2, **fields: Any) -> Phases:
  """A witness from the labelled part, then rounds of agreement, each student the next witness."""
  if rounds < 1:
    raise UserError(f"agreement.rounds is {rounds}; it must be at least 1.")
  method = make_method({"name": "agreement", **fields})
  phases = {"witness": setup.supervised()}
  last = phases["witness"]
  for number in range(1, rounds + 1):
    given = {"witness": last["student"]} | ({"kept": last["keep"]} if number > 1 else {})
    # The last round's random numbers are those of every method's student: a paired comparison.
    final = number == rounds
    last = setup.student("student" if final else f"round{number}", method, **given)
    phases["student" if final else f"round{number}"] = last
  return phases


RECIPES: dict[str, Callable[..., Phases]] = {"none": none, "agreement": agreement}


def names() -> list[str]:
  """Everything that `config.methods` may name."""
  return sorted({*RECIPES, *lookup.names("methods")})


def make_method(spec: Mapping[str, Any]) -> Method:
  """{"name": ..., field: value, "base": {...}} -> the Method, its base made likewise."""
  spec = dict(spec)
  name = spec.pop("name")
  if "base" in spec:
    base = spec["base"]
    spec["base"] = make_method({"name": base} if isinstance(base, str) else base)
  elif is_plugin(name):
    spec["base"] = make_method({"name": "kd"})
  return lookup.build("methods", name, spec)


def is_plugin(name: str) -> bool:
  """Whether the method wraps another; one that is not there is none."""
  known = "." in name or name in lookup.names("methods")
  return known and issubclass(lookup.load("methods", name), Plugin)


def fields(name: str) -> dict[str, Any]:
  """The fields that a method's name takes in a config, with their defaults."""
  recipe = RECIPES.get(name)
  found = {}
  if recipe:
    parameters = inspect.signature(recipe).parameters.values()
    found = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
  if name in lookup.names("methods"):
    part = lookup.load("methods", name)
    found |= {
      f.name: f.default
      for f in dataclasses.fields(part)
      if f.init and f.name != "base" and f.default is not dataclasses.MISSING
    }
    if issubclass(part, Plugin):
      found["base"] = "kd"
  return found


def specs(config: Config) -> dict[str, dict[str, Any]]:
  """{label: {"name": ..., fields}} of the methods that the config compares, bases filled in."""
  if "name" in config.method:
    return {config.method.name: resolved(config, config.method.to_dict())}
  found = {}
  for label in config.methods:
    given = config.method[label].to_dict() if label in config.method else {}
    found[label] = resolved(config, {"name": label} | given)
    name = found[label]["name"]
    if name not in names() and "." not in name:
      raise UserError(f"No method is called {name!r}. {nearest(name, names())}")
  return found


def resolved(config: Config, spec: dict[str, Any]) -> dict[str, Any]:
  """The spec with a base that is named replaced by that method's own fields in the config."""
  base = spec.get("base") or ("kd" if is_plugin(spec["name"]) else None)
  if isinstance(base, str):
    given = config.method[base].to_dict() if base in config.method else {}
    base = {"name": base} | given
  return spec | ({"base": resolved(config, base)} if base else {})


def phases(setup: Setup, spec: Mapping[str, Any]) -> Phases:
  """The phases of a method's spec."""
  rest = {field: value for field, value in spec.items() if field != "name"}
  if spec["name"] in RECIPES:
    recipe = RECIPES[spec["name"]]
    try:
      return recipe(setup, **rest)
    except TypeError as error:
      raise UserError(
        f"The method {spec['name']!r} does not take these fields: {error}."
      ) from error
  return {"student": setup.student("student", make_method(spec))}


def base_of(spec: Mapping[str, Any]) -> str | None:
  """The name of the innermost base: the undefended method that a plug-in is compared with."""
  base = spec.get("base")
  while base and base.get("base"):
    base = base["base"]
  return base["name"] if base else None
