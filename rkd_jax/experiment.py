"""A run: for every seed and method its phases, then predictions, cells, results and the report."""

import fcntl
import json
import pathlib
import platform
import subprocess
import sys
from importlib import metadata
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import rkd_jax
from rkd_jax import config as configs
from rkd_jax import recipes
from rkd_jax.data import sources
from rkd_jax.errors import UserError
from rkd_jax.evaluation import protocol
from rkd_jax.evaluation.predictions import Split
from rkd_jax.evaluation.protocol import Answers, Student, Truth
from rkd_jax.phases import Phase
from rkd_jax.reporting import report, results
from rkd_jax.reporting.files import atomic_write, read_json, write_json
from rkd_jax.reporting.progress import Reporter
from rkd_jax.runner import Finished, Runner

SHOWN = 8  # test images in the report


def run(
  config: ConfigDict, workdir: pathlib.Path, name: str = "config", quiet: bool = False
) -> pathlib.Path:
  """Runs a config to its report, going on from whatever the workdir already holds.

  Args:
    config: as `configs/<name>.py` makes it.
    workdir: made if it is not there; refused if another config made it.
    quiet: say nothing but warnings.

  Returns:
    The path of report.html; results.json lies beside it.
  """
  configs.check(config)
  say = Reporter(quiet)
  data = config.data
  dataset = sources.load(
    data.name, data.data_dir or None, data.split_seed, amount(data.holdout), amount(data.test)
  )
  claim(workdir, config)
  with only_run(workdir):
    runner = Runner(config, dataset, workdir, say)
    seeds_parts(runner)
    cells = []
    for seed in config.seeds:
      cells += Story(runner, seed).cells()
    manifest = make_manifest(runner, name)
    results.write(workdir / "results.json", manifest, cells)
    path = report.write(workdir)
    say.say(f"Report: {path}")
    return path


def seeds_parts(runner: Runner) -> None:
  """Makes every seed's plans now, so that what is wrong with them is said before any training."""
  for seed in runner.config.seeds:
    runner.parts(seed)
  for role in ("teacher", "student"):
    configs.network(runner.config, runner.config[role].network, runner.dataset)


def amount(value: float) -> float | int:
  """A config's hold-out or test: a count from 1 on, a fraction below."""
  return int(value) if value >= 1 else value


class Story:
  """One seed: its teachers, its students, what they answer."""

  def __init__(self, runner: Runner, seed: int):
    self.runner, self.seed, self.config = runner, seed, runner.config
    self.specs = recipes.specs(self.config)
    position = list(self.config.seeds).index(seed)
    wanted = self.config.clean_teacher_seeds
    self.control = wanted < 0 or position < wanted
    self.images = runner.dataset.test.images
    self.test = Split(runner.mesh, self.images, self.config.eval_batch)

  def setup(self, clean_teacher: bool = False) -> recipes.Setup:
    return recipes.Setup(self.config, self.runner.dataset.fingerprint, self.seed, clean_teacher)

  def phases(self, label: str, clean_teacher: bool = False) -> dict[str, Phase]:
    return recipes.phases(self.setup(clean_teacher), self.specs[label])

  def cells(self) -> list[results.Cell]:
    """Runs what is not done yet and measures it."""
    kinds = (False, True) if self.control else (False,)
    done = {
      (label, clean): {net: self.runner.finish(p) for net, p in self.phases(label, clean).items()}
      for clean in kinds
      for label in self.specs
    }
    teachers = {
      "clean" if clean else "poisoned": self.runner.finish(self.setup(clean).teacher_phase())
      for clean in kinds
    }
    # The trigger's natural rate on networks that never met a teacher: few labels, and all.
    alone = self.runner.finish(self.setup().supervised()) if self.config.labels else None
    taught = self.config.all_labels_control and self.config.labels < 1
    everything = self.runner.finish(self.setup().supervised("clean")) if taught else None
    self.backdoor = self.runner.backdoor(self.seed)
    self.triggered = Split(self.runner.mesh, self.images, self.config.eval_batch, self.backdoor)
    self.answers: dict[str, Answers] = {}
    truth = self.truth()
    students = {label: self.student(label, done) for label in self.specs}
    if everything:
      fields = {
        "method": "none",
        "base": None,
        "labels": 1.0,
        "threat": None,
        "contamination": None,
      }
      students["none/all"] = Student(fields, {"student": self.ask("none/all/student", everything)})
    teachers = {kind: self.ask(f"teacher/{kind}", phase) for kind, phase in teachers.items()}
    natural = self.ask("none/student", alone) if alone else None
    common = {
      "dataset": self.runner.dataset.name, "backdoor": self.config.backdoor,
      "seed": self.seed, "teacher_seed": self.seed,
    }  # fmt: skip
    self.save(truth, students)
    return protocol.seed_cells(truth, common, teachers, students, natural, self.pool())

  def truth(self) -> Truth:
    labels = self.runner.dataset.test.labels
    return Truth(labels, np.asarray(self.backdoor.relabel(jax.numpy.asarray(labels))))

  def pool(self) -> tuple[np.ndarray, np.ndarray]:
    """bool[M] each: which pool images carry the trigger, and which do not belong to its target."""
    labels = self.runner.dataset.train.labels
    return self.runner.parts(self.seed).contaminated > 0, labels != self.config.target

  def student(self, label: str, done: dict[tuple[str, bool], dict[str, Finished]]) -> Student:
    spec, config = self.specs[label], self.config
    has_pool = spec["name"] != "none"
    fields = {
      "method": label, "base": recipes.base_of(spec), "labels": config.labels,
      "threat": ("contaminated" if config.contamination else "clean") if has_pool else None,
      "contamination": config.contamination if has_pool else None,
    }  # fmt: skip
    asked = {
      clean: {
        net: self.ask(f"{label}/{net}" + "/clean_teacher" * clean, f) for net, f in nets.items()
      }
      for (name, clean), nets in done.items()
      if name == label
    }
    kept = {
      net: np.asarray(f.deliver("keep"))
      for net, f in done[label, False].items()
      if "keep" in f.phase.method.delivers
    }
    undefended = self.undefended(spec)
    return Student(fields, asked[False], asked.get(True, {}), undefended, kept)

  def undefended(self, spec: dict[str, Any]) -> str | None:
    """The label of plain distillation of the same base; for the others, of kd."""
    wanted = recipes.base_of(spec) or "kd"
    return next((label for label, other in self.specs.items() if other["name"] == wanted), None)

  def ask(self, name: str, network: Finished) -> Answers:
    if name not in self.answers:
      self.answers[name] = Answers(network.predict(self.test), network.predict(self.triggered))
    return self.answers[name]

  def save(self, truth: Truth, students: dict[str, Student]) -> None:
    """predictions/seed<k>.npz: all that this seed's cells are computed from; for the first, examples."""
    arrays = {"labels": truth.labels, "goals": truth.goals}
    for name, answers in self.answers.items():
      arrays |= {f"{name}:clean": answers.clean, f"{name}:triggered": answers.triggered}
    for label, student in students.items():
      arrays |= {f"{label}/{network}:kept": keep for network, keep in student.kept.items()}
    arrays["pool:triggered"], arrays["pool:victims"] = self.pool()
    save_arrays(self.runner.workdir / "predictions" / f"seed{self.seed}.npz", arrays)
    if self.seed == self.config.seeds[0]:
      self.save_examples(truth)

  def save_examples(self, truth: Truth) -> None:
    """The first victims of each class in turn, as images, with what everybody says of them."""
    classes = np.unique(truth.labels[truth.victims])
    rows = np.array([np.flatnonzero(truth.labels == k)[0] for k in classes])[:SHOWN]
    pixels = {"clean": self.images[rows], "triggered": self.triggered.pixels()[rows]}
    arrays = {**pixels, "labels": truth.labels[rows]}
    for name, answers in self.answers.items():
      if name == "teacher/poisoned" or name.endswith("/student"):
        shown = "teacher" if name.startswith("teacher") else name.removesuffix("/student")
        arrays[f"pred/{shown}/clean"] = answers.clean[rows]
        arrays[f"pred/{shown}/triggered"] = answers.triggered[rows]
    save_arrays(self.runner.workdir / "examples.npz", arrays)


def save_arrays(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
  """An .npz without pickles, whole or not at all, the same bytes for the same arrays."""
  import io

  buffer = io.BytesIO()
  np.savez_compressed(buffer, allow_pickle=False, **arrays)  # type: ignore[arg-type]
  path.parent.mkdir(parents=True, exist_ok=True)
  atomic_write(path, buffer.getvalue())


def claim(workdir: pathlib.Path, config: ConfigDict) -> None:
  """Marks the workdir as this config's; refuses one that another config made."""
  path, new = workdir / "config.json", json.loads(json.dumps(config.to_dict()))
  if not path.exists():
    try:
      workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise UserError(
        f"Cannot make the workdir {workdir}: {error.strerror}. Choose another with --workdir."
      ) from error
    write_json(path, new)
    return
  different = configs.differences(read_json(path), new)
  if different:
    raise UserError(
      f"{workdir} was made from another config:\n  " + "\n  ".join(different[:10])
      + "\nChoose another --workdir (or leave it out), or use the old values."
    )  # fmt: skip


class only_run:  # noqa: N801 (reads as a phrase: `with only_run(workdir):`)
  """Holds the workdir's lock; a second run in it is told so instead of mixing with the first."""

  def __init__(self, workdir: pathlib.Path):
    self.workdir = workdir

  def __enter__(self) -> None:
    self.file = open(self.workdir / ".lock", "w")
    try:
      fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise UserError(
        f"Another run is at work in {self.workdir}. Wait for it, or choose another."
      ) from error

  def __exit__(self, *_) -> None:
    self.file.close()


def make_manifest(runner: Runner, name: str) -> dict[str, Any]:
  """All that is needed to read the results and to make them again."""
  dataset, done = runner.dataset, list(runner.finished())
  return {
    "config_name": name,
    "config": json.loads(json.dumps(runner.config.to_dict())),
    "command": " ".join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]),
    "git": git_revision(),
    "versions": {"rkd_jax": rkd_jax.__version__, "python": platform.python_version()}
    | {p: metadata.version(p) for p in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")},
    "devices": [str(d.device_kind) for d in runner.mesh.devices.flat],
    "seeds": list(runner.config.seeds),
    "data": {
      "name": dataset.name, "fingerprint": dataset.fingerprint, "classes": list(dataset.class_names),
      "sizes": {s: len(getattr(dataset, s).labels) for s in ("train", "holdout", "test")},
    },
    "teachers": [
      {"seed": f.phase.seed, "sha256": f.record["sha256"], "kind": kind(f.phase)}
      for f in done
      if f.phase.section == "teacher"
    ],
    "phases": [described(runner, f) for f in done],
  }  # fmt: skip


def kind(phase: Phase) -> str:
  """Whether a teacher is the attacker's or the control's."""
  made_by_attack = "trigger" in phase.method.delivers
  return "poisoned" if made_by_attack or phase.part == "poisoned" else "clean"


def described(runner: Runner, finished: Finished) -> dict[str, Any]:
  """A phase's line in the manifest; its metrics are copied into the workdir."""
  phase = finished.phase
  given = dict(phase.given)
  copy = (
    runner.workdir
    / "metrics"
    / f"seed{phase.seed}-{phase.name.replace('/', '-')}-{phase.key[:8]}.jsonl"
  )
  copy.parent.mkdir(parents=True, exist_ok=True)
  atomic_write(copy, (finished.directory / "metrics.jsonl").read_bytes())
  teacher = given["teacher"].phase if "teacher" in given else None
  return {
    "seed": phase.seed,
    "name": phase.name,
    "method": type(phase.method).__module__.rsplit(".", 1)[-1],
    "teacher": kind(teacher) if teacher else (kind(phase) if phase.section == "teacher" else None),
    "metrics": str(copy.relative_to(runner.workdir)),
    "sha256": finished.record["sha256"],
    **{key: finished.record[key] for key in ("steps", "seconds", "images_per_second")},
  }


def git_revision() -> str | None:
  """The revision of the code that ran, "+" where it was changed since; None outside a checkout."""
  folder = pathlib.Path(__file__).parent
  try:
    ask = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--abbrev=40"]
    return subprocess.run(
      ask, capture_output=True, text=True, check=True, timeout=10
    ).stdout.strip()
  except (OSError, subprocess.SubprocessError):
    return None
