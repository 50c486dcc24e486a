"""One seed's story: its teachers, its students and controls, and what each of them answers."""

import io
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from rkd_jax import recipes, selection
from rkd_jax.evaluation import protocol
from rkd_jax.evaluation.predictions import Questions
from rkd_jax.evaluation.protocol import Answers, Student, Truth
from rkd_jax.reporting import results
from rkd_jax.reporting.files import atomic_write
from rkd_jax.runner import Finished, Runner
from rkd_jax.setup import Setup

SHOWN = 8  # test images in the report
VARIANTS = {"float32": "f32", "bfloat16": "bf16"}


class Story:
  """Everything that belongs to one seed.

  Attributes (after `run`):
    students: {(method's label, of a clean teacher): {network: Finished}}.
    teachers: {"poisoned" | "clean": Finished}.
    alone: {labelled fraction: Finished}, students that never met a teacher: the trigger's natural
      rate, on the labelled part, on all labels, and on what selects where something does.
    choices: {(method's label, of a clean teacher): the strengths that were chosen for it}.
  """

  def __init__(self, runner: Runner, seed: int):
    self.runner, self.seed, self.config = runner, seed, runner.config
    self.specs = recipes.specs(self.config)
    wanted = self.config.clean_teacher_seeds
    controlled = wanted < 0 or list(self.config.seeds).index(seed) < wanted
    self.kinds = ("poisoned", "clean") if controlled else ("poisoned",)
    self.students: dict[tuple[str, str], dict[str, Finished]] = {}
    self.teachers: dict[str, Finished] = {}
    self.alone: dict[float, Finished] = {}
    self.choices: dict[tuple[str, str], list[selection.Choice]] = {}

  def run(self) -> None:
    """Makes every phase that is not there yet, controls last."""
    finish, labels = self.runner.finish, self.config.labels
    for kind in self.kinds:
      setup = self.setup(kind)
      for label, spec in self.specs.items():
        self.students[label, kind] = self.chosen(setup, label, spec)
      self.teachers[kind] = finish(setup.teacher.phase)
    setup = self.setup()
    if labels:
      self.alone[labels] = finish(setup.alone())
    if any(self.choices.values()) and labels < 1:
      self.alone[self.with_holdout()] = finish(setup.alone("labelled+holdout"))
    if self.config.all_labels_control and labels < 1:
      self.alone[1.0] = finish(setup.alone("clean"))

  def chosen(self, setup: Setup, label: str, spec: recipes.Spec) -> dict[str, Finished]:
    """A method's networks, its strengths chosen on the clean hold-out where they are open."""
    truth = self.runner.dataset.holdout.labels

    def networks(spec: recipes.Spec) -> dict[str, Finished]:
      phases = recipes.phases(setup, spec)
      return {name: self.runner.finish(phase) for name, phase in phases.items()}

    def right(spec: recipes.Spec) -> np.ndarray:
      return networks(spec)["student"].answer(self.runner.holdout) == truth

    spec, choices = selection.choose(spec, right)
    self.choices[label, "clean" if setup.clean_teacher else "poisoned"] = choices
    return networks(spec)

  def selected(self) -> list[dict[str, Any]]:
    """How each strength was chosen, for the manifest."""
    held = len(self.runner.dataset.holdout)
    return [
      {"seed": self.seed, "method": label, "teacher": kind, "strength": choice.path}
      | {"chosen": choice.chosen, "holdout": held}
      | {"accuracy": {f"{value:g}": acc for value, acc in choice.accuracies().items()}}
      for (label, kind), choices in self.choices.items()
      for choice in choices
    ]

  def with_holdout(self) -> float:
    """All labels that the defender has, the hold-out's too, over the training images."""
    labelled, held = len(self.runner.parts(self.seed).labelled), len(self.runner.dataset.holdout)
    return (labelled + held) / len(self.runner.dataset.train)

  def check(self) -> None:
    """Raises a `UserError` for whatever can be known to be wrong before any training."""
    self.runner.parts(self.seed)
    for label, spec in self.specs.items():
      selection.check(label, spec, len(self.runner.dataset.holdout))
      for candidate in selection.candidates(spec):
        for phase in recipes.phases(self.setup(), candidate).values():
          self.runner.check(phase)
    self.runner.check(self.setup().teacher.phase)

  def setup(self, kind: str = "poisoned") -> Setup:
    dataset, clean = self.runner.dataset, kind == "clean"
    return Setup(self.config, dataset, self.seed, clean_teacher=clean)

  def cells(self) -> list[results.Cell]:
    """All cells of the seed, after `run`; leaves the predictions they are computed from on disk."""
    asked = Interview(self.runner, self.seed)
    teachers = {kind: asked(f"teacher/{kind}", teacher) for kind, teacher in self.teachers.items()}
    alone = {labels: asked(f"none/{labels:g}", network) for labels, network in self.alone.items()}
    students = {label: self.student(label, asked) for label in self.specs}
    for labels in sorted(set(alone) - {self.config.labels}):
      fields = dict.fromkeys(("base", "threat", "contamination"))
      more = {"method": "none", "labels": labels, **fields}
      students[f"none/{labels:g}"] = Student(more, {"student": alone[labels]})
    common = {
      "dataset": self.runner.dataset.name,
      "backdoor": self.config.backdoor,
      "seed": self.seed,
      "teacher_seed": self.seed,
      "variant": VARIANTS[self.config.dtype],
    }
    pool = self.pool()
    asked.save(pool, {label: student.kept for label, student in students.items()}, self.choices)
    natural = alone.get(self.config.labels, alone.get(1.0))
    return protocol.seed_cells(asked.truth, common, teachers, students, natural, pool)

  def pool(self) -> tuple[np.ndarray, np.ndarray]:
    """bool[M] each: which pool images carry the trigger, and which do not belong to its target."""
    labels = self.runner.dataset.train.labels
    victims = np.asarray(self.runner.backdoor(self.seed).victims(jnp.asarray(labels)))
    return self.runner.parts(self.seed).contaminated > 0, victims

  def student(self, label: str, asked: "Interview") -> Student:
    """A method's networks with their answers, its control, and what it kept of the pool."""
    spec, config = self.specs[label], self.config
    phases = {name: made.phase for name, made in self.students[label, "poisoned"].items()}
    part, innermost = phases["student"].part, recipes.innermost(spec)
    pool = "contaminated" if config.contamination else "clean"
    fields = {
      "method": label,
      "base": innermost["name"] if innermost else None,
      "labels": config.labels,
      "threat": {"pool": pool, "nothing": "data-free"}.get(part),
      "contamination": config.contamination if part == "pool" else None,
    }
    taught = frozenset(name for name, phase in phases.items() if phase.teacher)
    answers = {
      kind: {
        name: asked(f"{label}/{name}/{kind}", network)
        for name, network in self.students[label, kind].items()
      }
      for kind in self.kinds
    }
    kept = {
      name: np.asarray(network.deliver("keep"))
      for name, network in self.students[label, "poisoned"].items()
      if "keep" in network.phase.method.delivers
    }
    control, undefended = answers.get("clean", {}), self.undefended(spec)
    return Student(fields, answers["poisoned"], taught, control, undefended, kept)

  def undefended(self, spec: recipes.Spec) -> str | None:
    """The label of the plain method that this one wraps, or of its namesake; for others, of kd."""
    if inner := recipes.innermost(spec):
      return self.plain(inner)
    return self.plain(spec) or self.plain({"name": "kd"}) if spec["name"] != "kd" else None

  def plain(self, spec: recipes.Spec) -> str | None:
    """The label of another entry that is this method, or else this method as the config has it."""
    same = [label for label, other in self.specs.items() if other == spec and other is not spec]
    named = spec["name"]
    bare = [named] if self.specs.get(named, {}).get("name") == named else []
    return next(iter([*same, *(label for label in bare if self.specs[label] is not spec)]), None)


class Interview:
  """The test set of one seed, and what every network answered on it."""

  def __init__(self, runner: Runner, seed: int):
    self.runner, self.seed = runner, seed
    test, batch, backdoor = runner.dataset.test, runner.config.eval_batch, runner.backdoor(seed)
    self.images = test.images
    self.clean = Questions(runner.mesh, test.images, batch)
    self.triggered = Questions(runner.mesh, test.images, batch, backdoor)
    self.truth = Truth(test.labels, np.asarray(backdoor.relabel(jnp.asarray(test.labels))))
    self.answers: dict[str, Answers] = {}

  def __call__(self, name: str, network: Finished) -> Answers:
    if name not in self.answers:
      self.answers[name] = Answers(network.answer(self.clean), network.answer(self.triggered))
    return self.answers[name]

  def save(
    self, pool: tuple[np.ndarray, np.ndarray], kept: dict[str, Any], choices: dict[Any, Any]
  ) -> None:
    """predictions/seed<k>.npz: all that this seed's cells are computed from, and what chose its
    strengths; examples.npz."""
    arrays = {"labels": self.truth.labels, "goals": self.truth.goals}
    for name, answers in self.answers.items():
      arrays |= {f"{name}:clean": answers.clean, f"{name}:triggered": answers.triggered}
    for label, networks in kept.items():
      arrays |= {f"{label}/{network}:kept": keep for network, keep in networks.items()}
    for (label, kind), made in choices.items():
      for choice in made:
        at = f"{label}/{kind}/{choice.path}"
        arrays |= {f"{at}={value:g}:holdout": hits for value, hits in choice.hits.items()}
    arrays["pool:triggered"], arrays["pool:victims"] = pool
    save_arrays(self.runner.workdir / "predictions" / f"seed{self.seed}.npz", arrays)
    if self.seed == self.runner.config.seeds[0]:
      save_arrays(self.runner.workdir / "examples.npz", self.examples())

  def examples(self) -> dict[str, np.ndarray]:
    """One image of each class but the target, with what teacher and students say of it."""
    classes = np.unique(self.truth.labels[self.truth.victims])
    rows = np.array([np.flatnonzero(self.truth.labels == k)[0] for k in classes])[:SHOWN]
    arrays = {
      "clean": self.images[rows],
      "triggered": self.triggered.pixels()[rows],
      "labels": self.truth.labels[rows],
    }
    for name, answers in self.answers.items():
      who = "teacher" if name == "teacher/poisoned" else name.removesuffix("/student/poisoned")
      if who != name:
        arrays[f"pred/{who}/clean"] = answers.clean[rows]
        arrays[f"pred/{who}/triggered"] = answers.triggered[rows]
    return arrays


def save_arrays(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
  """An .npz without pickles, whole or not at all, the same bytes for the same arrays."""
  buffer = io.BytesIO()
  np.savez_compressed(buffer, allow_pickle=False, **arrays)  # type: ignore[arg-type]
  path.parent.mkdir(parents=True, exist_ok=True)
  atomic_write(path, buffer.getvalue())
