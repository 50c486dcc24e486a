"""Which networks of a run, or which file, an audit is about, and what is known beside them."""

import dataclasses
import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

from rkd_jax import config as configs
from rkd_jax import given, strangers
from rkd_jax.data.sources import Dataset
from rkd_jax.errors import UserError, nearest
from rkd_jax.finished import Phase, Run
from rkd_jax.given import Given
from rkd_jax.phases import Config

POOL = 500  # images of the pool that are looked at


@dataclasses.dataclass(frozen=True)
class Subject:
  """A network that is audited.

  Attributes:
    name: for people and files: "seed0/teacher", "seed0/kd".
    role: "teacher" or "student": the section of the config that its references train by.
    given: where its arrays lie, its architecture and its pixels.
    seed: of the run; None where it belongs to none.
    method: of a run's student, the label; "" for a teacher or a file.
  """

  name: str
  role: str
  given: Given
  seed: int | None = None
  method: str = ""


def of_run(
  run: Run, wanted: Sequence[int], methods: Sequence[str], controls: bool
) -> list[Subject]:
  """The teachers and students of a finished run, by its manifest.

  Args:
    run: whose.
    wanted: seeds; (): the first.
    methods: whose students; (): all that had a teacher. "teacher" alone: no student.
    controls: the clean teacher, its students and those without a teacher too.

  Raises:
    UserError: the run has no such seed or method, or its networks are gone.
  """
  own = [run.seed(seed) for seed in wanted or (None,)]
  known = [*run.methods(), "teacher"]
  for method in methods:
    if method not in known:
      raise UserError(f"The run has no method {method!r}. {nearest(method, known)}")
  kinds = ("poisoned", "clean") if controls else ("poisoned",)
  labels = [label for label in run.methods() if label in methods or not methods]
  found: dict[str, Subject] = {}
  for seed, kind in itertools.product(own, kinds):
    for phase in run.teachers(seed, kind):
      _add(found, run, phase, seed, "")
  for seed, kind, label in itertools.product(own, kinds, labels):
    for phase in run.students(seed, label, kind):
      if controls or phase["name"] == "student":  # else it never met a teacher
        _add(found, run, phase, seed, label)
  if not found:
    raise UserError(f"{run.directory} holds no network of what was asked for. Look at its phases/.")
  return list(found.values())


def _add(found: dict[str, Subject], run: Run, phase: Phase, seed: int, method: str) -> None:
  """The network of a phase, once: one without a teacher belongs to every teacher's story."""
  path = str(run.folder(phase))
  if any(one.given.path == path for one in found.values()):
    return
  clean, key = phase.get("teacher") == "clean", str(phase["key"])
  name = f"seed{seed}/{method or 'teacher'}" + ("-clean" if clean else "")
  name = f"{name}-{key[:8]}" if name in found else name  # it is not known which was chosen
  network = given.read(path, str(phase.get("sha256") or ""))
  found[name] = Subject(name, "student" if method else "teacher", network, seed, method)


def of_file(config: Config, dataset: Dataset) -> list[Subject]:
  """The network that `config.teacher.checkpoint` names."""
  return [Subject("network", "teacher", strangers.find(config.teacher, dataset))]


def config_for(path: str, data: str, **changes: Any) -> Config:
  """A config whose given teacher is this file or folder, on this data.

  `changes`: {"teacher.mean": value, ...}, where they are not empty.
  """
  made = configs.default()
  fixed = {"teacher.checkpoint": path, "data.name": data, "backdoor": "unknown"}
  fixed |= {"contamination": 0.0, "seeds": (0,), "methods": ("none",)}
  found = {key: value for key, value in changes.items() if value not in (None, "", (), 0)}
  made.update_from_flattened_dict(fixed | found)
  if pathlib.Path(path).joinpath("done.json").exists():  # our own say what they are
    made.teacher.network = given.read(path).network
  configs.check(made)
  return made
