"""An audit: networks are measured, clean ones of their kind beside them, and judged."""

import dataclasses
import hashlib
import io
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rkd_jax import given, networks, recipes, selection
from rkd_jax.audit import calibrate, inversion, measure, mmbd, second, verdict
from rkd_jax.audit.measure import Images, Record, Settings
from rkd_jax.data import seeds
from rkd_jax.data.sources import Dataset
from rkd_jax.errors import UserError
from rkd_jax.given import Given
from rkd_jax.phases import Config, Phase, source_of
from rkd_jax.reporting.files import atomic_write, read_json, write_json
from rkd_jax.runner import Runner
from rkd_jax.setup import Setup, make_method
from rkd_jax.subjects import Subject

REFERENCE_PARTS = ("clean", "labelled")  # never the hold-out: audits look at its images
SCHEMA = 1
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


def images(dataset: Dataset, settings: Settings, pool: np.ndarray | None = None) -> Images:
  """The clean hold-out, as far as it is used, and images that may carry a trigger."""
  held = dataset.holdout
  rows = measure.balanced(held.labels, settings.images)
  return Images(np.asarray(held.images[rows]), held.labels[rows], pool)


class Desk:
  """Measures networks once: what is known of one is written down at once, and read the next time.

  Attributes:
    config, dataset, images, settings: of all networks.
  """

  def __init__(
    self, runner: Runner, dataset: Dataset, seen: Images, settings: Settings, folder: pathlib.Path
  ):
    self.runner, self.dataset, self.images = runner, dataset, seen
    self.settings, self.folder = settings, folder

  def record(self, name: str, found: Given) -> tuple[Record, pathlib.Path | None]:
    """(record, its inverted triggers) of a network."""
    digest = self._digest(found)
    path, arrays = (self.folder / f"{digest}.{kind}" for kind in ("json", "npz"))
    if not path.exists():
      self.runner.stop.check("between two audited networks")
      network = networks.build(self.runner.config, found.network, self.dataset, found.normalisation)
      tests = len(self.settings.tests)
      with self.runner.say.phase(f"audit {name}", 0, tests) as tick:
        count = iter(range(tests))
        made, triggers = measure.measure(
          network, found.variables(), self.images, self.settings, self.runner.mesh,
          lambda test: tick(next(count)),
        )  # fmt: skip
      if triggers:
        _save(arrays, triggers)
      write_json(path, made | {"network": found.network, "sha256": found.sha256})
    return read_json(path), arrays if arrays.exists() else None

  def _digest(self, found: Given) -> str:
    """Of all that a record depends on."""
    told = [found.describe(), found.network, found.normalisation, self.dataset.fingerprint]
    pool = self.images.pool
    told += [dataclasses.asdict(self.settings), code(), None if pool is None else _bytes(pool)]
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


def code() -> str:
  """Short digest over the code of the tests."""
  parts = (inversion.Settings, mmbd.Settings, measure.Settings)
  texts = [source_of(part) for part in parts] + [_source(second)]
  return hashlib.sha256("".join(texts).encode()).hexdigest()[:8]


def _source(module: Any) -> str:
  return pathlib.Path(module.__file__).read_text(encoding="utf-8")


def _bytes(array: np.ndarray) -> str:
  return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _save(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
  buffer = io.BytesIO()
  np.savez_compressed(buffer, allow_pickle=False, **arrays)  # type: ignore[arg-type]
  atomic_write(path, buffer.getvalue())


# Clean networks of the same kind.


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
    part: what teachers see, one of `REFERENCE_PARTS`.
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
  data, section = desk.dataset, desk.runner.config[kind.role]
  trained = {key: section[key] for key in ("epochs", "steps", "batch_size")}
  return {
    "schema": SCHEMA,
    "kind": "calibration of an audit",
    "network": kind.network,
    "method": kind.method,
    "data": {"name": data.name, "fingerprint": data.fingerprint, "classes": data.classes},
    "settings": plain(desk.settings),
    "code": code(),
    "trained": {"section": kind.role, "part": part, **trained},
  }


def plain(settings: Settings) -> dict[str, Any]:
  return {**dataclasses.asdict(settings), "tests": list(settings.tests)}


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
      raise UserError(
        f"{path} was made for {what}: {found.get(key)} there, {wanted[key]} here. Make "
        "one for this network with --calibrate N --save-calibration FILE."
      )
  own = found.get("networks")
  if not isinstance(own, list) or not own or not all(map(_is_record, own)):
    raise UserError(f"{path} is damaged: it holds no measured networks. Make it again.")
  return found


def _is_record(one: Any) -> bool:
  """Whether a calibration's line has what a verdict needs."""
  if not isinstance(one, dict) or not isinstance(one.get("accuracy"), float):
    return False
  tests = one.get("tests")
  if not isinstance(tests, dict) or not all(isinstance(test, dict) for test in tests.values()):
    return False
  values = [test.get("values") for test in tests.values()]
  return all(
    isinstance(v, list) and v and all(isinstance(x, int | float) for x in v) for v in values
  )


# The whole.


@dataclasses.dataclass(frozen=True)
class Plan:
  """How networks are judged.

  Attributes:
    alpha: accepted rate of false alarms, in (0, 1).
    count: clean reference networks that are trained for every kind; 0: none.
    part: what they are trained on, one of `REFERENCE_PARTS`.
    calibration: a file with references that were made before; None: none.
    save: where the references are written to; None: nowhere.
  """

  alpha: float = 0.05
  count: int = 20
  part: str = "clean"
  calibration: pathlib.Path | None = None
  save: pathlib.Path | None = None


def run(
  desk: Desk, subjects: Sequence[Subject], plan: Plan, directory: pathlib.Path, made: Record
) -> Record:
  """Audits networks one by one, and writes audit.json after each.

  Args:
    desk: measures them.
    subjects: whom.
    plan: how they are judged.
    directory: where audit.json, audit/ and the inverted triggers go.
    made: how: for audit.json.

  Returns:
    What audit.json holds.
  """
  data, kinds = desk.dataset, {}
  document = {
    "schema": SCHEMA,
    "made": made,
    "data": {"name": data.name, "fingerprint": data.fingerprint, "classes": list(data.class_names)},
    "settings": plain(desk.settings),
    "family": [test for test in measure.VERDICT if test in desk.settings.tests],
    "alpha": plan.alpha,
    "complete": False,
    "calibrations": [],
    "networks": [],
  }
  if plan.calibration:  # before anything is written
    for kind in {kind_of(subject, desk.runner.config)[0]: None for subject in subjects}:
      read_calibration(plan.calibration, desk, kind)
  for subject in subjects:
    kind, doubt = kind_of(subject, desk.runner.config)
    able = verdict.skilled(desk.record(subject.name, subject.given)[0])
    if kind not in kinds and able:  # nothing is trained for a network that knows too little
      kinds[kind] = _calibrated(desk, plan, kind, directory / "audit" / "references")
      document["calibrations"].append(_line(kinds[kind], kind))
    known = kinds[kind] if able else None
    entry = _entry(desk, subject, known, document, directory)
    entry["doubts"] += [doubt] if doubt and known else []
    document["networks"].append(entry)
    document["complete"] = len(document["networks"]) == len(subjects)
    write_json(directory / "audit.json", document)
  return document


def _calibrated(
  desk: Desk, plan: Plan, kind: Kind, directory: pathlib.Path
) -> dict[str, Any] | None:
  if plan.calibration:
    return read_calibration(plan.calibration, desk, kind)
  if not plan.count:
    return None
  found = calibration(desk, kind, plan.part, plan.count, directory)
  if plan.save:
    own = f"-{kind.method or kind.network}"
    path = plan.save
    path = path.with_name(f"{path.stem}{own}{path.suffix}") if path.exists() else path
    write_json(path, found)
    desk.runner.say.say(f"Calibration: {path}")
  return found


def _line(calibrated: Mapping[str, Any] | None, kind: Kind) -> dict[str, Any]:
  """How a kind of network was calibrated, for audit.json."""
  if calibrated is None:
    return {**dataclasses.asdict(kind), "count": 0}
  own = calibrated["networks"]
  accuracies = [one["accuracy"] for one in own]
  return {
    **dataclasses.asdict(kind),
    "count": len(own),
    "accuracy": [min(accuracies), max(accuracies)],
    "trained": calibrated["trained"],
  }


def _entry(
  desk: Desk, subject: Subject, calibrated: Mapping[str, Any] | None, document: Record,
  directory: pathlib.Path,
) -> Record:  # fmt: skip
  """One network's line of audit.json."""
  record, arrays = desk.record(subject.name, subject.given)
  family, judged, why = document["family"], None, "no clean reference network was asked for"
  if calibrated is not None:
    judged = calibrate.judge(calibrated["networks"], record, family)
  accuracies = [one["accuracy"] for one in (calibrated or {}).get("networks", [])]
  found = verdict.decide(
    record, judged, document["alpha"], document["data"]["classes"], accuracies, why
  )
  opinions = judged.opinions if judged else {}
  tests = {
    test: {**one, **(_opinion(opinions[test]) if test in opinions else {})}
    for test, one in record["tests"].items()
  }
  return {
    "name": subject.name,
    "seed": subject.seed,
    "role": subject.role,
    "network": subject.given.network,
    "path": subject.given.path,
    "sha256": subject.given.sha256,
    "accuracy": record["accuracy"],
    "images": record["images"],
    "verdict": found.word,
    "sentence": found.sentence,
    "doubts": list(found.doubts),
    "p": found.p,
    "suspect": found.suspect,
    "test": judged.test if judged else None,
    "references": judged.references if judged else 0,
    "tests": tests,
    "triggers": _copied(arrays, directory, subject.name),
  }


def _opinion(found: calibrate.Opinion) -> Record:
  return {"index": found.index, "suspect": found.suspect, "p": found.p}


def _copied(arrays: pathlib.Path | None, directory: pathlib.Path, name: str) -> str | None:
  """The inverted triggers under the network's name: the path in the folder."""
  if arrays is None:
    return None
  path = f"audit/{name.replace('/', '-')}.npz"
  atomic_write(directory / path, arrays.read_bytes())
  return path
