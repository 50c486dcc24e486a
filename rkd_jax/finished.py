"""A finished run, opened again: its config, its data, its networks' folders. Trains nothing."""

import functools
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from rkd_jax import config as configs
from rkd_jax import evidence, experiment, lookup
from rkd_jax.backdoors.base import CLEAN, Backdoor
from rkd_jax.data.sources import Dataset
from rkd_jax.errors import UserError, nearest
from rkd_jax.evaluation import recount
from rkd_jax.evaluation.predictions import Questions
from rkd_jax.evaluation.protocol import Answers, Truth
from rkd_jax.phases import Config
from rkd_jax.reporting import results
from rkd_jax.reporting.files import read_json
from rkd_jax.reporting.page import mapping, mappings
from rkd_jax.reporting.progress import Reporter
from rkd_jax.runner import Runner
from rkd_jax.setup import Setup
from rkd_jax.training.loop import StopSignal

Phase = Mapping[str, Any]  # a phase's line in the manifest
RESULTS = "results.json"


class Run:
  """A run whose results.json is there.

  Attributes:
    directory: its workdir.
    manifest: of results.json.
    seeds: all that it has.
    config: as it was, but for what was changed; keys that are newer have their defaults.
  """

  def __init__(
    self,
    directory: pathlib.Path,
    changes: Mapping[str, Any] | None = None,
    advice: str = "run it again",
    say: Reporter | None = None,
    stop: StopSignal | None = None,
  ):
    """Args:
      directory: holds results.json and phases/; teachers lie where the config says, or beside it.
      changes: {"data.data_dir": value, ...}, of the config; "" and None change nothing.
        "teachers_dir" is one more place where teachers may lie.
      advice: what else can be done where the images have changed.
      say, stop: of the runner; None: it says nothing, and is not stopped.

    Raises:
      UserError: it is no finished run.
    """
    self.directory, self._advice = directory, advice
    self.manifest, _ = results.read(directory / RESULTS)
    self.seeds = [int(seed) for seed in self.manifest.get("seeds") or ()]
    self.config = restored(mapping(self.manifest.get("config")), changes or {})
    self._say, self._stop = say or Reporter(quiet=True), stop or StopSignal()
    self._predictions: dict[int, Mapping[str, np.ndarray]] = {}

  @functools.cached_property
  def dataset(self) -> Dataset:
    """The same images; a `UserError` where they have changed."""
    dataset = experiment.load(self.config, self._say)
    then = mapping(self.manifest.get("data")).get("fingerprint")
    if dataset.fingerprint != then:
      raise UserError(
        f"{self.directory} was made from other images: {dataset.name!r} has the fingerprint "
        f"{dataset.fingerprint[:16]} now, {str(then)[:16]} then. Bring back the old ones, or "
        f"{self._advice}."
      )
    return dataset

  @functools.cached_property
  def runner(self) -> Runner:
    return Runner(self.config, self.dataset, self.directory, self._say, self._stop)

  def seed(self, wanted: int | None = None) -> int:
    """One of its seeds; the first where none is wanted."""
    if wanted is None and self.seeds:
      return self.seeds[0]
    if wanted not in self.seeds:
      known = ", ".join(map(str, self.seeds))
      raise UserError(f"The run has no seed {wanted}; it has {known} ({self.directory}).")
    return wanted

  # What its networks are shown.

  def questions(self, seed: int) -> dict[str, Questions]:
    """{"clean", "triggered"}: the test set as networks see it.

    Raises:
      UserError: the trigger was trained, and is no longer there.
    """
    test, batch, mesh = self.dataset.test.images, self.config.eval_batch, self.runner.mesh
    backdoor = self._backdoor(seed)
    return {
      "clean": Questions(mesh, test, batch),
      "triggered": Questions(mesh, test, batch, backdoor),
    }

  def _backdoor(self, seed: int) -> Backdoor:
    made_by = Setup(self.config, self.dataset, seed).trigger
    if made_by and not (self.runner.directory(made_by.phase) / "done.json").is_file():
      raise UserError(
        f"The trigger of {self.config.backdoor!r} was trained, and is not in "
        f"{self.runner.directory(made_by.phase)}: the run was made elsewhere, or by other code. "
        "Start the run's command again, then export."
      )
    return self.runner.backdoor(seed)

  def calibration(self, seed: int, count: int) -> np.ndarray:
    """uint8[n, H, W, C]: clean images that the defender has, labelled ones first, then hold-out."""
    rows = self.runner.parts(seed).rows("labelled+holdout").image
    return np.asarray(rows[np.arange(min(count, len(rows)))])

  def pool(self, seed: int, count: int) -> np.ndarray | None:
    """uint8[n, H, W, C]: the first images of the unlabelled pool, with the trigger where it was.

    None where there are none, or where a trained trigger would have to be made anew.
    """
    config = self.config
    if config.backdoor in ("none", "unknown"):
      return unlabelled(self.dataset, count)
    if not lookup.defines("backdoors", config.backdoor) or config.plan == "boundary":
      return None
    parts = self.runner.parts(seed)
    rows = np.setdiff1d(np.arange(len(parts.pool_labels)), parts.labelled)[:count]
    found = np.array(parts.pool_images[rows])
    triggered = np.flatnonzero(parts.contaminated[rows] != CLEAN)
    if len(triggered):
      backdoor = self.runner.backdoor(seed)
      seen = Questions(self.runner.mesh, parts.pool_images, config.eval_batch, backdoor)
      found[triggered] = seen.pixels(rows[triggered])
    return found

  # What they answered.

  def predictions(self, seed: int) -> Mapping[str, np.ndarray]:
    if seed not in self._predictions:
      self._predictions[seed] = evidence.read_arrays(self.directory / recount.saved(seed))
    return self._predictions[seed]

  def truth(self, seed: int) -> Truth:
    """The test set's classes, and where the trigger leads."""
    arrays = self.predictions(seed)
    return Truth(arrays["labels"], arrays["goals"])

  def reported(self, seed: int, name: str) -> Answers | None:
    """What the run itself saved of a network's answers; None where it was not asked."""
    known = self.predictions(seed)
    return recount.answers(known, name) if f"{name}:clean" in known else None

  # Its networks.

  def methods(self) -> list[str]:
    """The labels of what it compared, in order."""
    return list(dict.fromkeys([*self._compared(), *map(_method, self._lines("costs"))]))

  def _compared(self, taught: bool = False) -> list[str]:
    """Of the manifest's comparisons. `taught`: only methods whose student had a teacher."""
    labels = {
      str(one["label"]): bool(mapping(one["networks"]).get("student"))
      for one in self._lines("comparisons")
    }
    return [name for name, had in labels.items() if "/" not in name and (had or not taught)]

  def student(self, seed: int, method: str = "") -> tuple[Phase, str]:
    """The phase of a method's last network, and the method's label.

    `method`: "": the last one whose student had a teacher.

    Raises:
      UserError: there is no such method, or it is not known which phase that is.
    """
    known = self.methods()
    label = method or next(reversed(self._compared(taught=True) or known), "")
    if label not in known:
      raise UserError(f"The run has no method {label!r}. {nearest(label, known)}")
    found = self.students(seed, label)
    if len(found) != 1:
      raise UserError(
        f"{RESULTS} does not say which phase {label}'s student is: it was made by an older "
        "version, or what was chosen stands in another phase. Name the folder of the phase instead."
      )
    return found[0], label

  def students(self, seed: int, method: str, teacher: str = "poisoned") -> list[Phase]:
    """The phases of a method's last network, of the poisoned (or given) or of the clean teacher.

    Where strengths were tried, it is the one with those that were chosen; several, where the
    student's method does not say which it has.
    """
    whose = seed, method, teacher
    keys = [str(key) for line in self._lines("costs", whose) for key in line.get("phases") or ()]
    phases = {str(phase.get("key")): phase for phase in self._lines("phases")}
    found = [phases[key] for key in keys if key in phases]
    students = [phase for phase in found if phase["name"] == "student"] or found[-1:]
    choices = self._lines("selection", whose)
    return [phase for phase in students if self._chosen(phase, choices)]

  def _chosen(self, phase: Phase, choices: list[Mapping[str, Any]]) -> bool:
    """Whether no strength of the phase's method is another than what was chosen."""
    spec = read_json(self.folder(phase) / "done.json")["phase"]["method"] if choices else {}
    found = ((_field(spec, str(one["strength"])), one["chosen"]) for one in choices)
    return all(value in (None, chosen) for value, chosen in found)

  def teachers(self, seed: int, teacher: str = "poisoned") -> Iterator[Phase]:
    """The phases of teachers: the poisoned (or given) one, or the clean one."""
    wanted = {(teacher, seed), *([("given", 0)] if teacher == "poisoned" else [])}
    wanted |= {("clean", seed)} if self.config.backdoor == "none" else set()
    for phase in self._lines("phases"):
      if phase.get("name") == "teacher" and (phase.get("teacher"), phase.get("seed")) in wanted:
        yield phase

  def teacher(self, seed: int) -> Phase:
    """The phase of the teacher that students learned from."""
    found = list(self.teachers(seed))
    if not found:
      raise UserError(f"{self.directory}: {RESULTS} names no teacher of seed {seed}.")
    return found[-1]

  def folder(self, phase: Phase) -> pathlib.Path:
    """Where a phase's arrays lie; a `UserError` where they are gone."""
    key = str(phase["key"])
    own = self.directory / "phases" / f"seed{phase['seed']}" / f"{phase['name']}-{key[:8]}"
    near = pathlib.Path(os.path.normpath(self.directory / os.pardir / "teachers"))
    named = self.config.teachers_dir, mapping(self.manifest.get("config")).get("teachers_dir")
    folders = [near, *(pathlib.Path(name) for name in named if name)]
    places = list(dict.fromkeys([own, *(folder / key for folder in folders)]))
    for place in places:
      if (place / "done.json").is_file():
        return place
    raise UserError(
      f"The folder of {phase['name']}, seed {phase['seed']}, is gone: there is neither "
      f"{' nor '.join(map(str, places))}. Start the run's command again, which makes it, or copy "
      "the run's phases/ and its teachers from where they are."
    )

  def _lines(self, name: str, whose: tuple[int, str, str] | None = None) -> list[Mapping[str, Any]]:
    """Of the manifest; of one seed, method and kind of teacher."""
    found = mappings(self.manifest.get(name))
    own = ("seed", "method", "teacher")
    return [line for line in found if whose in (None, tuple(map(line.get, own)))]


def is_run(path: pathlib.Path) -> bool:
  return (path / RESULTS).is_file()


def unlabelled(dataset: Dataset, count: int) -> np.ndarray | None:
  """uint8[n, H, W, C]: the first of the images that came without labels; None where none did."""
  more = dataset.unlabelled
  return None if more is None else np.asarray(more[: min(count, len(more))])


def restored(plain: Mapping[str, Any], changes: Mapping[str, Any] | None = None) -> Config:
  """A config from the manifest's plain values; keys that are newer have their defaults.

  `changes`: {"data.data_dir": value, ...}; "" and None change nothing.
  """
  made = ConfigDict(_over(configs.default().to_dict(), plain))
  for path, value in (changes or {}).items():
    if value not in ("", None):
      made.update_from_flattened_dict({path: value})
  configs.normalise(made)
  return made


def _over(default: Any, plain: Any) -> Any:
  """JSON's values over a config's; lists become tuples."""
  if isinstance(plain, Mapping):
    old = default if isinstance(default, Mapping) else {}
    return {**old, **{key: _over(old.get(key), value) for key, value in plain.items()}}
  return tuple(_over(None, value) for value in plain) if isinstance(plain, list) else plain


def _method(line: Mapping[str, Any]) -> str:
  return str(line.get("method"))


def _field(spec: Any, path: str) -> Any:
  """A field of nested methods, as "base.amplitude"; None where there is none."""
  for name in path.split("."):
    spec = mapping(spec).get(name)
  return spec
