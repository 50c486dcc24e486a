"""What a config's method means: a name -> the phases that make its student.

A method without an entry here is one phase, so a new method stays one file. An entry of `RECIPES`
is a function of the `Setup` and the method's fields that returns {network's name: Phase} in order,
the last "student"; its keyword arguments with defaults are fields of its own. An entry of
`GROUNDWORK` makes what a method's students need beside a teacher (features to be detoxified first,
say), whatever wraps it.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from rkd_jax import lookup
from rkd_jax.errors import UserError, nearest
from rkd_jax.methods.base import Plugin
from rkd_jax.phases import Config, Delivery, Phase
from rkd_jax.setup import Setup, Spec, make_method

Phases = dict[str, Phase]
FINETUNE = {"steps": 0, "batch_size": 64, "optimizer": {"learning_rate": 0.01}}


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


# Repairs: the teacher first, then any method from the repaired one.


def finetuned(setup: Setup, name: str, epochs: int, **supervised: Any) -> Phase:
  """The teacher trained on with the defender's labels."""
  method, train = make_method({"name": "supervised", **supervised}), {**FINETUNE, "epochs": epochs}
  given, own = {"student": setup.teacher}, {"student": setup.config.teacher.network}
  return setup.phase(name, method, "labelled", "labelled", given, train=train, networks=own)


def then(setup: Setup, repairs: Phases, base: Spec) -> Phases:
  """A method's phases, taught by the last of the repaired teachers."""
  *_, last = repairs.values()
  return {**repairs, **phases(dataclasses.replace(setup, repaired=last["student"]), base)}


def finetune(setup: Setup, *, base: Any = "kd", epochs: int = 100) -> Phases:
  """Plain fine-tuning of the teacher on the labels (BackdoorBench: SGD .01, cosine, 100 epochs)."""
  return then(setup, {"repaired": finetuned(setup, "repaired", epochs)}, base)


def ft_sam(setup: Setup, *, base: Any = "kd", epochs: int = 100, radius: float = 2.0) -> Phases:
  """Fine-tuning with adaptive SAM (Zhu et al. 2023, FT-SAM): radius 2, label smoothing .1."""
  sam = {"sam": radius, "sam_adaptive": True, "smoothing": 0.1}
  return then(setup, {"repaired": finetuned(setup, "repaired", epochs, **sam)}, base)


def nad(setup: Setup, *, base: Any = "kd", epochs: int = 10, **fields: Any) -> Phases:
  """Neural attention distillation (Li et al. 2021): a fine-tuned copy teaches the teacher."""
  tutor = finetuned(setup, "tutor", epochs)
  method, train = make_method({"name": "nad", **fields}), {**FINETUNE, "epochs": epochs}
  own = {"student": setup.config.teacher.network}
  given = {"teacher": tutor["student"], "student": setup.teacher}
  repaired = setup.phase("repaired", method, "labelled", "labelled", given, False, train, own)
  return then(setup, {"tutor": tutor, "repaired": repaired}, base)


def bcu(setup: Setup, *, base: Any = "kd", **fields: Any) -> Phases:
  """Backdoor cleansing with unlabeled data (Pang et al. 2023): a partly redrawn copy of the teacher
  is distilled from it on the pool."""
  method, own = make_method({"name": "bcu", **fields}), {"student": setup.config.teacher.network}
  given, train = {"teacher": setup.teacher}, {"optimizer": {"learning_rate": 0.01}}
  repaired = setup.phase("repaired", method, "pool", "student", given, train=train, networks=own)
  return then(setup, {"repaired": repaired}, base)


def detoxified(setup: Setup, spec: Spec) -> tuple[Phases, dict[str, Delivery]]:
  """What turns the teacher's features into what robustkd's students are taught."""
  method, roles = make_method(spec["detox"]), {"teacher": setup.teacher}
  phases = {}
  if method.inverted:  # type: ignore[attr-defined]
    search = make_method({"name": "inversion", **given(setup.config, "inversion")})
    steps = {"steps": search.steps, "batch_size": search.batch_size}  # type: ignore[attr-defined]
    suspects = setup.phase("inversion", search, "labelled", "labelled", roles, train=steps)
    phases, roles = {"inversion": suspects}, {**roles, "suspect": suspects["suspect"]}
  steps = {"steps": method.steps}  # type: ignore[attr-defined]
  phases["detox"] = setup.phase("detox", method, "labelled", "labelled", roles, train=steps)
  return phases, {"mask": phases["detox"]["mask"]}


REPAIRS = {"finetune": finetune, "ft_sam": ft_sam, "nad": nad, "bcu": bcu}
RECIPES: dict[str, Callable[..., Phases]] = {"none": none, "agreement": agreement, **REPAIRS}
# name -> (setup, fields) -> (phases, {role: Delivery} for whoever uses the method)
GROUNDWORK: dict[str, Callable[[Setup, Spec], tuple[Phases, dict[str, Delivery]]]] = {
  "robustkd": detoxified
}


def single(setup: Setup, spec: Spec) -> Phases:
  """What most methods are: their groundwork, and one phase."""
  phases, given = groundwork(setup, spec)
  return {**phases, "student": setup.student("student", make_method(spec), given)}


def groundwork(setup: Setup, spec: Spec) -> tuple[Phases, dict[str, Delivery]]:
  """What must be there before a student of this spec, its bases' groundwork first."""
  phases, given = groundwork(setup, spec["base"]) if spec.get("base") else ({}, {})
  if spec["name"] in GROUNDWORK:
    more, roles = GROUNDWORK[spec["name"]](setup, spec)
    phases, given = {**phases, **more}, {**given, **roles}
  return phases, given


def phases(setup: Setup, spec: Spec) -> Phases:
  """The phases of a method's resolved spec."""
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


def nested(name: str) -> dict[str, str]:
  """{field: default} of the fields that hold a method in turn."""
  if name in REPAIRS:
    return {"base": "kd"}
  own = "." in name or name in lookup.names("methods")
  return dict(lookup.load("methods", name).nested) if own else {}


def fields(name: str) -> dict[str, Any]:
  """The fields that a method's name takes in a config, with their defaults."""
  found = {}
  if name in RECIPES:
    parameters = inspect.signature(RECIPES[name]).parameters.values()
    found = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
  if "." in name or name in lookup.names("methods"):
    own = [f for f in dataclasses.fields(lookup.load("methods", name)) if f.init]
    own = [f for f in own if f.name != "target"]  # an attack's is `config.target`
    found |= {f.name: f.default for f in own if f.default is not dataclasses.MISSING}
  return found | nested(name)


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
  """The spec with methods that are only named replaced by their own fields in the config."""
  name = spec["name"]
  if name not in names() and "." not in name:
    raise UserError(f"No method is called {name!r}. {nearest(name, names())}")
  if name in above:
    raise UserError(f"The method {name!r} wraps itself: {' around '.join((*above, name))}.")
  if "." in name or name in lookup.names("methods"):
    spec = lookup.load("methods", name).complete(spec)
  for field, default in nested(name).items():
    inner = spec.get(field) or default
    if isinstance(inner, str):
      inner = {"name": inner} | given(config, inner)
    spec = spec | {field: resolved(config, inner, (*above, name))}
  return spec


def innermost(spec: Spec) -> Spec | None:
  """The undefended method that a plug-in is compared with; None where nothing is wrapped."""
  base = spec.get("base")
  return (innermost(base) or base) if base else None
