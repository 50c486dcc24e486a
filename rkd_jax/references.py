"""Clean networks of the kind that is audited: who they are, and what was measured of them."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from rkd_jax import config as configs
from rkd_jax import given, recipes, selection
from rkd_jax.audit.calibrate import LARGEST
from rkd_jax.data import seeds
from rkd_jax.desk import Desk, code, plain
from rkd_jax.errors import UserError
from rkd_jax.phases import Config, Phase
from rkd_jax.reporting.files import read_json
from rkd_jax.runner import Runner
from rkd_jax.setup import ELSEWHERE, Setup, make_method
from rkd_jax.subjects import Subject

SCHEMA = 1
PARTS = ("clean", "labelled")  # never the hold-out: audits look at its images
MIXED = "labels or kd"
OTHERWISE = (
  "It is compared with networks trained here, on labels or by distillation; if it was trained in "
  "another way, the p-value is only a hint."
)
FITS = {  # what a calibration must have in common with an audit, and how it is called where not
  "schema": "another version",
  "network": "another network",
  "method": "networks trained in another way",
  "data": "other data",
  "settings": "other settings",
  "code": "other tests",
  "trained": "networks trained in another way",
}


@dataclasses.dataclass(frozen=True)
class Kind:
  """What networks must have in common to be compared.

  Attributes:
    network: the architecture.
    role: "teacher" or "student": the config's section that they train by.
    method: whose students they are; "" for networks that are taught labels alone, `MIXED` for both
      these and students of `kd`: whoever was trained in another way is compared with a wider kind.
  """

  network: str
  role: str
  method: str = ""


def kind_of(subject: Subject, config: Config) -> tuple[Kind, str]:
  """(whom a network is compared with, what is wrong with that)."""
  network, role = subject.given.network, subject.role
  if subject.seed is None:
    return Kind(network, role, MIXED), OTHERWISE
  if not subject.method:
    return (
      (Kind(network, role, MIXED), OTHERWISE) if given_to(config) else (Kind(network, role), "")
    )
  spec = recipes.specs(config).get(subject.method)
  if spec is None or selection.strengths(spec):  # which strengths were chosen is not known here
    return Kind(network, role, MIXED), OTHERWISE
  return Kind(network, role, subject.method), ""


def given_to(config: Config) -> bool:
  """Whether a run's teacher was made elsewhere."""
  return bool(config.teacher.checkpoint)


def kin(desk: Desk, kind: Kind, directory: pathlib.Path) -> Runner:
  """A runner for clean networks: nobody's trigger, and a teacher that is trained here.

  Teachers and references lie where all teachers do; their students below `directory`.
  """
  runner = desk.runner
  config = runner.config.copy_and_resolve_references()
  config.update({"contamination": 0.0, "teachers_dir": str(runner.teachers)})
  if known := Setup(config, runner.dataset, 0).given:
    config.teacher.network = known.network
  if kind.method:  # whoever distils has that architecture
    config.student.network = kind.network
  with config.unlocked():
    config.teacher.update({"checkpoint": "", "sha256": "", "mean": (), "std": (), "classes": ()})
  return Runner(config, runner.dataset, directory, runner.say, runner.stop)


def references(runner: Runner, kind: Kind, part: str, count: int) -> Iterator[Phase]:
  """Phases of clean networks of a kind: each of its own seed, and of its own clean teacher.

  Args:
    runner: as `kin` makes it.
    kind: a teacher, or a student of a method, is trained as its config says.
    part: what teachers see, one of `PARTS`.
    count: how many.
  """
  config, dataset = runner.config, runner.dataset
  method = make_method({"name": "supervised"})
  for number in range(count):
    seed = seeds.fold(0, "reference", number)
    setup = Setup(config, dataset, seed, clean_teacher=True)
    if kind.method == MIXED and number % 2:
      yield recipes.phases(setup, {"name": "kd"})["student"]
    elif kind.method and kind.method != MIXED:
      yield recipes.phases(setup, recipes.specs(config)[kind.method])["student"]
    elif part == "clean" and kind.role == "teacher" and kind.network == config.teacher.network:
      yield setup.benign  # the teacher of the students that are references too
    else:
      own = {"student": kind.network}
      yield setup.phase("reference", method, part, kind.role, shared=True, networks=own)


def calibration(
  desk: Desk, kind: Kind, part: str, count: int, directory: pathlib.Path
) -> dict[str, Any]:
  """Trains the references that are not there yet, audits them, and describes both."""
  found, runner = [], kin(desk, kind, directory)
  who = kind.method or kind.role
  for number, phase in enumerate(references(runner, kind, part, count)):
    made = runner.finish(phase)
    name = f"reference {number + 1} of {count} ({who})"
    record, _ = desk.record(name, given.read(made.directory))
    found.append(record)
  return describe(desk, kind, part) | {"networks": found}


def describe(desk: Desk, kind: Kind, part: str = "") -> dict[str, Any]:
  """What a calibration is for, and how its networks were made."""
  data, config = desk.dataset, desk.runner.config
  trained: dict[str, Any] = {"section": kind.role, "part": part}
  for name in {kind.role, "teacher"} if kind.method else {kind.role}:
    own = config[name].to_dict()
    trained[name] = {key: own[key] for key in own.keys() - ELSEWHERE}
  if kind.method or part == "labelled":
    trained["labels"] = config.labels
  if kind.method and kind.method != MIXED:
    trained["spec"] = recipes.specs(config)[kind.method]
  return {
    "schema": SCHEMA,
    "kind": "calibration of an audit",
    "network": kind.network,
    "method": kind.method,
    "data": {"name": data.name, "fingerprint": data.fingerprint, "classes": data.classes},
    "settings": plain(desk.settings),
    "code": code(),
    "trained": json.loads(json.dumps(trained)),  # as it is read back
  }


def read_calibration(path: pathlib.Path, desk: Desk, kind: Kind) -> dict[str, Any]:
  """A calibration that was saved.

  Raises:
    UserError: it is none, or of another architecture, other data or other settings.
  """
  found = read_json(path)
  trained = found.get("trained") if isinstance(found, dict) else None
  # what its networks saw is for whoever made it to choose, and stands in audit.json
  part = trained.get("part", "") if isinstance(trained, dict) else ""
  wanted = describe(desk, kind, part)
  if not isinstance(found, dict) or found.get("kind") != wanted["kind"]:
    raise UserError(f"{path} is no calibration. One is written by --save-calibration FILE.")
  for key, what in FITS.items():
    if key == "trained" and kind.method == MIXED:
      continue  # how a stranger's network was trained is not known: all are hints
    if found.get(key) != wanted[key]:
      there, here = (configs.flatten(one.get(key), key) for one in (found, wanted))
      name = min(n for n in {*there, *here} if there.get(n) != here.get(n))
      raise UserError(
        f"{path} was made for {what}: {name} is {there.get(name)} there, {here.get(name)} here. "
        "Make one for this network with --calibrate N --save-calibration FILE."
      )
  own = found.get("networks")
  if not isinstance(own, list) or not own or not all(map(_is_record, own)):
    raise UserError(f"{path} is damaged: it holds no measured networks. Make it again.")
  return found


def _is_record(one: Any) -> bool:
  """Whether a calibration's line has what a verdict needs."""
  if not isinstance(one, dict) or not isinstance(one.get("accuracy"), float):
    return False
  if not 0 <= one["accuracy"] <= 1:
    return False
  tests = one.get("tests")
  if not isinstance(tests, dict) or not all(isinstance(test, dict) for test in tests.values()):
    return False
  values = [test.get("values") for test in tests.values()]
  return all(
    isinstance(v, list) and v and all(isinstance(x, int | float) and abs(x) <= LARGEST for x in v)
    for v in values
  )
