"""An audit: networks are measured, clean ones of their kind beside them, and judged."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from rkd_jax.audit import calibrate, measure, verdict
from rkd_jax.audit.measure import Record
from rkd_jax.desk import Desk, plain
from rkd_jax.references import SCHEMA, Kind, calibration, kind_of, read_calibration
from rkd_jax.reporting.files import atomic_write, write_json
from rkd_jax.subjects import Subject


@dataclasses.dataclass(frozen=True)
class Plan:
  """How networks are judged.

  Attributes:
    alpha: accepted rate of false alarms, in (0, 1).
    count: clean reference networks that are trained for every kind; 0: none.
    part: what they are trained on, one of `references.PARTS`.
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
