"""What a config's method means: a name -> the phases that make its student.

A method without an entry here is one phase, so a new method stays one file. An entry of `RECIPES`
is a function of the `Setup` and the method's fields that returns {network's name: Phase} in order,
the last "student"; its keyword arguments with defaults are fields of its own. An entry of
`GROUNDWORK` makes what a method's students need beside a teacher (features to be detoxified first,
say), whatever wraps it.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from rkd_jax import lookup
from rkd_jax.errors import UserError, check_range, nearest
from rkd_jax.methods.base import Method, Plugin
from rkd_jax.phases import Config, Delivery, Phase
from rkd_jax.setup import Setup, Spec, make_method

Phases = dict[str, Phase]


def none(setup: Setup) -> Phases:
  """No teacher: supervised on the labelled part."""
  return {"student": setup.alone()}


def agreement(setup: Setup, *, rounds: int = 2, sure: float = 0.0, **fields: Any) -> Phases:
  """Witnesses from the labelled part, then rounds of agreement, each student the next witness.

  `within` and `seconds` are for the first round: a student that the teacher taught is asked alone,
  and for the first class.

  Args:
    rounds: how many, >= 1; the last one's student is the run's.
    sure: probability with which a round's student must say the class in the next, in [0, 1].
  """
  if rounds < 1:
    raise UserError(f"agreement.rounds is {rounds}; it must be at least 1.")
  check_range("agreement.sure", sure, 0, 1)
  spec = {"name": "agreement", **fields}
  later = {**spec, "within": 0.0, "seconds": 0, "sure": sure}
  phases, given = groundwork(setup, spec)
  method: Any = make_method(spec)
  alone = {role: setup.alone(number=n) for n, role in enumerate(method.witnesses, 1)}
  phases, asked = {**phases, **alone}, {role: phase["student"] for role, phase in alone.items()}
  for number in range(1, rounds + 1):
    # The last round's random numbers are those of every method's student: a paired comparison.
    name = "student" if number == rounds else f"round{number}"
    last = phases[name] = setup.student(name, method, {**given, **asked})
    asked, given["kept"] = {"witness": last["student"]}, last["keep"]
    method = make_method(later)
  return phases


def abd(
  setup: Setup, *, base: Any = "zskt", vaccine: Any = "vaccine",
  retrospection: Any = "retrospection", rounds: int = 20,
) -> Phases:  # fmt: skip
  """A vaccinated student, data-free, then the same trained on under self-retrospection.

  Args:
    base: the method that invents its images.
    vaccine: the plug-in of the first stage.
    retrospection: the plug-in of the second.
    rounds: of the second stage, >= 1.
  """
  if rounds < 1:
    raise UserError(f"abd.rounds is {rounds}; it must be at least 1.")
  method, last = (make_method({**stage, "base": base}) for stage in (vaccine, retrospection))
  first = setup.student("vaccinated", method, {})
  given = {name: first[name] for name in method.delivers if name != "vaccine"}
  given, train = {"teacher": setup.teacher, **given}, {**last.trains(), "steps": rounds}
  return {
    "vaccinated": first,
    "student": setup.phase("student", last, last.part, "student", given, train=train),
  }


# Repairs: the teacher first, then any method from the repaired one.


def trained_on(setup: Setup, name: str, method: Method, given: Any, epochs: int) -> Phase:
  """A phase on the labels whose student is the teacher itself: SGD .01, cosine."""
  sgd = {"name": "sgd", "learning_rate": 0.01, "schedule": "cosine", "warmup": 0.0}
  train, own = {"steps": 0, "epochs": epochs, "optimizer": sgd}, setup.teacher_network
  return setup.phase(
    name, method, "labelled", "labelled", {"student": setup.teacher, **given},
    train=train, networks={"student": own},
  )  # fmt: skip


def then(setup: Setup, repairs: Phases, base: Spec) -> Phases:
  """A method's phases, taught by the last of the repaired teachers."""
  *_, last = repairs.values()
  return {**repairs, **phases(dataclasses.replace(setup, repaired=last["student"]), base)}


def finetune(setup: Setup, *, base: Any = "kd", epochs: int = 100) -> Phases:
  """Plain fine-tuning of the teacher on the labels (BackdoorBench: 100 epochs).

  Args:
    base: the method that learns from the repaired teacher.
    epochs: of the fine-tuning.
  """
  repaired = trained_on(setup, "repaired", make_method({"name": "supervised"}), {}, epochs)
  return then(setup, {"repaired": repaired}, base)


def ft_sam(setup: Setup, *, base: Any = "kd", epochs: int = 100, radius: float = 2.0) -> Phases:
  """Fine-tuning with adaptive SAM (Zhu et al. 2023, FT-SAM): radius 2, label smoothing .1.

  Args:
    base: the method that learns from the repaired teacher.
    epochs: of the fine-tuning.
    radius: of the sharpness-aware steps, adaptive.
  """
  sam = {"name": "supervised", "sam": radius, "sam_adaptive": True, "smoothing": 0.1}
  return then(
    setup, {"repaired": trained_on(setup, "repaired", make_method(sam), {}, epochs)}, base
  )


def nad(setup: Setup, *, base: Any = "kd", epochs: int = 10, **fields: Any) -> Phases:
  """Neural attention distillation (Li et al. 2021): a fine-tuned copy teaches the teacher.

  Args:
    base: the method that learns from the repaired teacher.
    epochs: of the copy's fine-tuning, and of the distillation.
  """
  tutor = trained_on(setup, "tutor", make_method({"name": "supervised"}), {}, epochs)
  method, given = make_method({"name": "nad", **fields}), {"teacher": tutor["student"]}
  repaired = trained_on(setup, "repaired", method, given, epochs)
  return then(setup, {"tutor": tutor, "repaired": repaired}, base)


def bcu(setup: Setup, *, base: Any = "kd", ramp: int = 0, **fields: Any) -> Phases:
  """Backdoor cleansing with unlabeled data (Pang et al. 2023): a partly redrawn copy of the teacher
  is distilled from it on the pool.

  Args:
    base: the method that learns from the repaired teacher.
    ramp: rounds until the last temperature; 0: all of the phase's.
  """
  train = setup.config.student
  epoch = max(1, setup.dataset.pool_size // train.batch_size)
  ramp = ramp or train.steps or train.epochs * epoch
  repaired = setup.phase(
    "repaired", make_method({"name": "bcu", **fields, "ramp": ramp}), "pool", "student",
    {"teacher": setup.teacher}, train={"optimizer": {"learning_rate": 0.01}},
    networks={"student": setup.teacher_network},
  )  # fmt: skip
  return then(setup, {"repaired": repaired}, base)


def detoxified(setup: Setup, spec: Spec) -> tuple[Phases, dict[str, Delivery]]:
  """What turns the teacher's features into what robustkd's students are taught."""
  method, given, phases = make_method(spec["detox"]), {"teacher": setup.teacher}, {}
  if spec["detox"].get("inverted"):
    search = make_method({"name": "inversion", **configured(setup.config, "inversion")})
    phases["inversion"] = setup.phase("inversion", search, "labelled", "labelled", given)
    given = {**given, "suspect": phases["inversion"]["suspect"]}
  phases["detox"] = setup.phase("detox", method, "labelled", "labelled", given)
  return phases, {"mask": phases["detox"]["mask"]}


REPAIRS = {"finetune": finetune, "ft_sam": ft_sam, "nad": nad, "bcu": bcu}
PLAIN = {"none": none, "agreement": agreement, "abd": abd}
RECIPES: dict[str, Callable[..., Phases]] = {**PLAIN, **REPAIRS}
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


def is_method(name: str) -> bool:
  """Whether there is a method of the name, and not a recipe alone."""
  return "." in name or name in lookup.names("methods")


def is_plugin(name: str) -> bool:
  """Whether the method wraps another; one that is not there is none."""
  return is_method(name) and issubclass(lookup.load("methods", name), Plugin)


def nested(name: str) -> dict[str, str]:
  """{field: default} of the fields that hold a method in turn."""
  found = {}
  if name in RECIPES:
    parameters = inspect.signature(RECIPES[name]).parameters.values()
    found = {p.name: p.default for p in parameters if isinstance(p.default, str)}
  return {**found, **(lookup.load("methods", name).nested if is_method(name) else {})}


def fields(name: str) -> dict[str, Any]:
  """The fields that a method's name takes in a config, with their defaults; a recipe's own win."""
  recipe, own = {}, []
  if name in RECIPES:
    parameters = inspect.signature(RECIPES[name]).parameters.values()
    recipe = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
  if is_method(name):
    own = [f for f in dataclasses.fields(lookup.load("methods", name)) if f.init]
    own = [f for f in own if f.name != "target"]  # an attack's is `config.target`
  method = {f.name: f.default for f in own if f.default is not dataclasses.MISSING}
  return method | recipe | nested(name)


def specs(config: Config) -> dict[str, Spec]:
  """{label: Spec} of the methods that the config compares, bases and all."""
  if "name" in config.method:
    given = {config.method.name: config.method.to_dict()}
  else:
    given = {label: {"name": label} | configured(config, label) for label in config.methods}
  found = {label: resolved(config, spec) for label, spec in given.items()}
  for spec in found.values():
    if spec["name"] not in RECIPES and "student" not in make_method(without_grids(spec)).delivers:
      raise UserError(f"{spec['name']!r} trains no student, so it cannot be one of config.methods.")
  return found


def without_grids(spec: Spec) -> Spec:
  """The spec without the fields that hold several numbers where one belongs."""
  defaults = fields(spec["name"])
  return {
    field: without_grids(value) if isinstance(value, dict) and "name" in value else value
    for field, value in spec.items()
    if not (is_number(defaults.get(field)) and isinstance(value, tuple | list))
  }


def is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def configured(config: Config, label: str) -> Spec:
  return config.method[label].to_dict() if label in config.method else {}


def resolved(config: Config, spec: Spec, above: tuple[str, ...] = ()) -> Spec:
  """The spec with methods that are only named replaced by their own fields in the config."""
  name = spec["name"]
  if name not in names() and "." not in name:
    known = {*names(), *config.method}  # and the config's own, as rkd
    raise UserError(f"No method is called {name!r}. {nearest(name, known)}")
  if name in above:
    raise UserError(f"The method {name!r} wraps itself: {' around '.join((*above, name))}.")
  if above and name in RECIPES and above[-1] not in REPAIRS:
    raise UserError(
      f"{above[-1]!r} cannot wrap {name!r}, which is several phases; let {name!r} be the outer one."
    )
  spec = {field: single_number(value) for field, value in spec.items()}
  if is_method(name):
    section = functools.partial(configured, config)
    spec = lookup.load("methods", name).complete(spec, section)
  for field, default in nested(name).items():
    inner = spec.get(field) or default
    if isinstance(inner, str):
      inner = {"name": inner} | configured(config, inner)
    spec = spec | {field: resolved(config, inner, (*above, name))}
  return spec


def single_number(value: Any) -> Any:
  """A grid of one value is that value: how a command line says it of a key that holds a grid."""
  alone = isinstance(value, tuple | list) and len(value) == 1 and isinstance(value[0], int | float)
  return value[0] if alone else value


def told(spec: Spec) -> str:
  """What a method is, for people: what it is around, and its own file's first words."""
  names, inner = [spec["name"]], spec.get("base")
  while inner:
    names.append(inner["name"])
    inner = inner.get("base")
  part = RECIPES.get(spec["name"]) or inspect.getmodule(lookup.load("methods", spec["name"]))
  first = (inspect.getdoc(part) or "").partition("\n\n")[0].replace("\n", " ")
  return f"{' around '.join(names)}. {first}" if len(names) > 1 else first


def innermost(spec: Spec) -> Spec | None:
  """The method that all plug-ins are around; None where nothing is wrapped."""
  base = spec.get("base")
  return (innermost(base) or base) if base else None


def undefended(specs: Mapping[str, Spec], spec: Spec) -> str | None:
  """The label of the method that a student is compared with, to tell what its defence does.

  It is the method inside all plug-ins, without what would be a defence in itself (a term on
  variance); for others their namesake, else kd. None where that is not among the specs.
  """
  if inner := innermost(spec):
    own = lookup.load("methods", inner["name"]).plain if is_method(inner["name"]) else {}
    return same(specs, {**inner, **own})
  return same(specs, spec) or same(specs, {"name": "kd"}) if spec["name"] != "kd" else None


def same(specs: Mapping[str, Spec], spec: Spec) -> str | None:
  """The label of another entry that is this method, or else of the method as the config has it."""
  equal = [label for label, other in specs.items() if other == spec and other is not spec]
  bare = specs.get(spec["name"])
  named = [spec["name"]] if bare and bare["name"] == spec["name"] and bare is not spec else []
  return next(iter([*equal, *named]), None)
