"""A finished run, opened again: its data, its trigger, its networks' folders. Trains nothing."""

import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from rkd_jax import config as configs
from rkd_jax import evidence, experiment
from rkd_jax.errors import UserError, nearest
from rkd_jax.evaluation import recount
from rkd_jax.evaluation.predictions import Questions
from rkd_jax.evaluation.protocol import Answers, Truth
from rkd_jax.reporting import results
from rkd_jax.reporting.files import read_json
from rkd_jax.reporting.page import mapping, mappings
from rkd_jax.reporting.progress import Reporter
from rkd_jax.runner import Runner
from rkd_jax.setup import Setup
from rkd_jax.training.loop import StopSignal

Phase = Mapping[str, Any]  # a phase's line in the manifest


class Run:
  """One seed of a finished run.

  Attributes:
    directory: its workdir.
    manifest: of results.json.
    seed: which one.
    config: as it was.
    dataset: the same images, by their fingerprint.
  """

  def __init__(self, directory: pathlib.Path, seed: int | None = None):
    """Args:
      seed: None: the first.

    Raises:
      UserError: it is no finished run, has no such seed, or its data have changed.
    """
    self.directory = directory
    self.manifest, _ = results.read(directory / "results.json")
    seeds = list(self.manifest.get("seeds") or [])
    self.seed = seeds[0] if seed is None and seeds else seed
    if self.seed not in seeds:
      raise UserError(f"{directory} has no seed {seed}; it has {', '.join(map(str, seeds))}.")
    self.config = restored(mapping(self.manifest.get("config")))
    self.dataset = experiment.load(self.config, Reporter(quiet=True))
    made = mapping(self.manifest.get("data")).get("fingerprint")
    if self.dataset.fingerprint != made:
      raise UserError(
        f"{directory} was made from other images: {self.dataset.name!r} has changed since. Bring "
        "back the old ones, or export the folder of the phase, where nothing is measured."
      )
    self.runner = Runner(self.config, self.dataset, directory, Reporter(quiet=True), StopSignal())

  @functools.cached_property
  def truth(self) -> Truth:
    """The test set's classes, and where the trigger leads."""
    arrays = self.predictions
    return Truth(arrays["labels"], arrays["goals"])

  @functools.cached_property
  def predictions(self) -> Mapping[str, np.ndarray]:
    return evidence.read_arrays(self.directory / recount.saved(int(self.seed or 0)))

  def questions(self) -> dict[str, Questions]:
    """{"clean", "triggered"}: the test set as networks see it.

    Raises:
      UserError: the trigger was trained, and is no longer there.
    """
    test, batch, mesh = self.dataset.test.images, self.config.eval_batch, self.runner.mesh
    backdoor = self._backdoor()
    return {
      "clean": Questions(mesh, test, batch),
      "triggered": Questions(mesh, test, batch, backdoor),
    }

  def _backdoor(self) -> Any:
    seed = int(self.seed or 0)
    made_by = Setup(self.config, self.dataset, seed).trigger
    if made_by and not (self.runner.directory(made_by.phase) / "done.json").is_file():
      raise UserError(
        f"The trigger of {self.config.backdoor!r} was trained, and is not in "
        f"{self.runner.directory(made_by.phase)}: the run was made elsewhere, or by other code. "
        "Start the run's command again, then export."
      )
    return self.runner.backdoor(seed)

  def calibration(self, count: int) -> np.ndarray:
    """uint8[n, H, W, C]: clean images that the defender has, labelled ones first, then hold-out."""
    parts = self.runner.parts(int(self.seed or 0))
    rows = parts.rows("labelled+holdout").image
    return np.asarray(rows[np.arange(min(count, len(rows)))])

  def reported(self, name: str) -> Answers | None:
    """What the run itself saved of a network's answers; None where it was not asked."""
    known = self.predictions
    return recount.answers(known, name) if f"{name}:clean" in known else None

  def student(self, method: str) -> tuple[Phase, str]:
    """The phase of a method's last network, and the method's label.

    `method`: "": the last one whose student had a teacher.
    """
    compared = [c for c in mappings(self.manifest.get("comparisons")) if c["seed"] == self.seed]
    labels = [str(one["label"]) for one in compared if "/" not in str(one["label"])]
    taught = [str(one["label"]) for one in compared if mapping(one["networks"]).get("student")]
    label = method or next(reversed(taught or labels), "")
    if label not in labels:
      raise UserError(f"{self.directory} has no method {label!r}. {nearest(label, labels)}")
    found = self._phases(label)
    students = [phase for phase in found if phase["name"] == "student"] or found[-1:]
    students = [one for one in students if self._chosen(one, label)]
    if not students:
      raise UserError(
        f"results.json does not say which phase {label}'s student is: it was made by an older "
        "version. Name the folder of the phase instead."
      )
    return students[-1], label

  def _phases(self, label: str) -> list[Phase]:
    """What a method needed beside the given or poisoned teacher."""
    by_key = {str(p.get("key")): p for p in mappings(self.manifest.get("phases"))}
    own = (self.seed, label, "poisoned")
    return [
      by_key[key]
      for one in mappings(self.manifest.get("costs"))
      if (one.get("seed"), one.get("method"), one.get("teacher")) == own
      for key in map(str, one.get("phases") or ())
      if key in by_key
    ]

  def _chosen(self, phase: Phase, label: str) -> bool:
    """Whether the phase's strengths are those that were chosen."""
    own = (self.seed, label, "poisoned")
    choices = [
      one
      for one in mappings(self.manifest.get("selection"))
      if (one.get("seed"), one.get("method"), one.get("teacher")) == own
    ]
    method = read_json(self.folder(phase) / "done.json")["phase"]["method"] if choices else {}
    return all(_field(method, str(one["strength"])) == one["chosen"] for one in choices)

  def teacher(self) -> Phase:
    """The phase of the teacher that students learned from."""
    found = [
      phase
      for phase in mappings(self.manifest.get("phases"))
      if phase.get("name") == "teacher"
      and (phase.get("teacher"), phase.get("seed")) in (("poisoned", self.seed), ("given", 0))
    ]
    if not found:
      raise UserError(f"{self.directory}: results.json names no teacher of seed {self.seed}.")
    return found[-1]

  def folder(self, phase: Phase) -> pathlib.Path:
    """Where a phase's arrays lie; a `UserError` where they are gone."""
    key = str(phase["key"])
    near = os.fspath(self.directory.absolute().parent / "teachers")
    own = self.directory / "phases" / f"seed{phase['seed']}" / f"{phase['name']}-{key[:8]}"
    places = [own, pathlib.Path(self.config.teachers_dir or near) / key]
    for place in places:
      if (place / "done.json").is_file():
        return place
    raise UserError(
      f"The network's folder is gone: there is neither {' nor '.join(map(str, places))}. Start the "
      "run's command again, which makes it."
    )


def is_run(path: pathlib.Path) -> bool:
  return (path / "results.json").is_file()


def restored(plain: Mapping[str, Any]) -> Any:
  """A config from the manifest's plain values; keys that are newer have their defaults."""
  return ConfigDict(_joined(configs.default().to_dict(), plain))


def _joined(default: Any, plain: Any) -> Any:
  if isinstance(plain, Mapping):
    old = default if isinstance(default, Mapping) else {}
    return {**old, **{key: _joined(old.get(key), value) for key, value in plain.items()}}
  return tuple(plain) if isinstance(plain, list) else plain


def _field(spec: Any, path: str) -> Any:
  """A field of nested methods, as "base.amplitude"."""
  for name in path.split("."):
    spec = mapping(spec).get(name)
  return spec
