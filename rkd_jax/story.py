"""One seed's story: its teachers, its students and controls, and what each of them answers."""

import io
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from rkd_jax import recipes
from rkd_jax.evaluation import protocol
from rkd_jax.evaluation.predictions import Split
from rkd_jax.evaluation.protocol import Answers, Student, Truth
from rkd_jax.phases import Phase
from rkd_jax.reporting import results
from rkd_jax.reporting.files import atomic_write
from rkd_jax.runner import Finished, Runner

SHOWN = 8  # test images in the report


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
    return Truth(labels, np.asarray(self.backdoor.relabel(jnp.asarray(labels))))

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
    """predictions/seed<k>.npz: all that this seed's cells are computed from."""
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
  buffer = io.BytesIO()
  np.savez_compressed(buffer, allow_pickle=False, **arrays)  # type: ignore[arg-type]
  path.parent.mkdir(parents=True, exist_ok=True)
  atomic_write(path, buffer.getvalue())
