"""One seed's story: its teachers, its students and controls, and what each of them answers."""

import io
import itertools
import pathlib
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from rkd_jax import recipes, selection
from rkd_jax.errors import UserError, nearest
from rkd_jax.evaluation import adversarial, analysis, recount, synthetic
from rkd_jax.evaluation.predictions import Questions
from rkd_jax.evaluation.protocol import Answers, Truth
from rkd_jax.phases import Phase
from rkd_jax.reporting import results
from rkd_jax.reporting.files import atomic_write
from rkd_jax.runner import Finished, Runner
from rkd_jax.setup import Setup

SHOWN = 8  # test images in the report
# whose inside the report shows, beside that of the clean teacher
ANALYSED = ("teacher/poisoned", "/detox/poisoned", "/repaired/poisoned", "/student/poisoned")


class Story:
  """Everything that belongs to one seed.

  Attributes (after `run`):
    students: {(method's label, "poisoned" | "clean"): {network: Finished}}.
    teachers: {"poisoned" | "clean": Finished}.
    alone: {labelled fraction: Finished}, students that never met a teacher: the trigger's natural
      rate, on the labelled part, on all labels, and on what selects where something does.
    choices: {(method's label, whose student): the strengths that were chosen for it}.
    needed: {(method's label, whose student): keys of its phases, tried strengths' too}.
    attacked: (after `cells`) what each attack on a finished network cost.
  """

  def __init__(self, runner: Runner, seed: int):
    self.runner, self.seed, self.config = runner, seed, runner.config
    self.specs = recipes.specs(self.config)
    wanted = self.config.clean_teacher_seeds
    controlled = wanted < 0 or list(self.config.seeds).index(seed) < wanted
    controlled &= not self.config.teacher.checkpoint  # nobody can train that one without poison
    controlled &= self.config.backdoor != "none"  # there it is the only one
    self.kinds = ("poisoned", "clean") if controlled else ("poisoned",)
    self.students: dict[tuple[str, str], dict[str, Finished]] = {}
    self.teachers: dict[str, Finished] = {}
    self.alone: dict[float, Finished] = {}
    self.choices: dict[tuple[str, str], list[selection.Choice]] = {}
    self.needed: dict[tuple[str, str], dict[str, None]] = {}
    self.attacked: list[dict[str, Any]] = []

  def run(self) -> None:
    """Makes every phase that is not there yet, controls last."""
    finish = self.runner.finish
    for kind in self.kinds:
      setup = self.setup(kind)
      for label, spec in self.specs.items():
        self.students[label, kind] = self.chosen(setup, label, spec)
      self.teachers[kind] = finish(setup.teacher.phase)
    self.alone = {share: finish(phase) for share, phase in self.controls().items()}

  def controls(self) -> dict[float, Phase]:
    """{labelled fraction: the phase of a student that never meets a teacher}."""
    setup, labels, phases = self.setup(), self.config.labels, {}
    if labels:
      phases[labels] = setup.alone()
    if labels < 1 and any(map(selection.strengths, self.specs.values())):
      phases[self.with_holdout()] = setup.alone("labelled+holdout")
    if labels < 1 and self.config.all_labels_control:
      phases[1.0] = setup.alone("clean")
    return phases

  def expected(self) -> Iterator[Phase]:
    """The phases that `run` makes, as far as they are known before: which strengths are tried, and
    chosen together, is not."""
    for setup in map(self.setup, self.kinds):
      yield from [*setup.attackers(), *([setup.trigger.phase] if setup.trigger else [])]
      for spec in self.specs.values():
        for candidate in selection.candidates(spec):
          yield from recipes.phases(setup, candidate).values()
      yield setup.teacher.phase
    yield from self.controls().values()

  def chosen(self, setup: Setup, label: str, spec: recipes.Spec) -> dict[str, Finished]:
    """A method's networks, its strengths chosen on the clean hold-out where they are open."""
    truth, kind = self.runner.dataset.holdout.labels, "clean" if setup.clean_teacher else "poisoned"

    def networks(spec: recipes.Spec) -> dict[str, Finished]:
      phases = recipes.phases(setup, spec)
      self.needed.setdefault((label, kind), {}).update({p.key: None for p in phases.values()})
      return {name: self.runner.finish(phase) for name, phase in phases.items()}

    def right(spec: recipes.Spec) -> np.ndarray:
      return networks(spec)["student"].answer(self.runner.holdout) == truth

    spec, choices = selection.choose(spec, right)
    self.choices[label, kind] = choices
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

  def outcomes(self) -> list[dict[str, Any]]:
    """What the students' methods decided while they trained, for the manifest."""
    return [
      {"seed": self.seed, "method": label, "teacher": kind, "network": name, "outcome": said}
      for (label, kind), networks in self.students.items()
      for name, network in networks.items()
      if (said := network.outcome())
    ]

  def costs(self) -> list[dict[str, Any]]:
    """Which phases each method needed beside its teacher, for the manifest."""
    return [
      {"seed": self.seed, "method": label, "teacher": kind, "phases": list(keys)}
      for (label, kind), keys in self.needed.items()
    ]

  def with_holdout(self) -> float:
    """All labels that the defender has, the hold-out's too, over the training images."""
    labelled, held = len(self.runner.parts(self.seed).labelled), len(self.runner.dataset.holdout)
    return (labelled + held) / len(self.runner.dataset.train)

  def check(self) -> None:
    """Raises a `UserError` for whatever can be known to be wrong before any training."""
    attacks(self.config)
    self.runner.parts(self.seed)
    trained = self.runner.check(self.setup().teacher.phase)
    for label, spec in self.specs.items():
      selection.check(label, spec, len(self.runner.dataset.holdout))
      for candidate in selection.candidates(spec):
        for phase in recipes.phases(self.setup(), candidate).values():
          trained |= self.runner.check(phase)
    for section in ("teacher", "student", "labelled"):
      for role in self.config[section].optimizers:
        if role not in trained:
          raise UserError(
            f"config.{section}.optimizers: no phase trains {role!r}. {nearest(role, trained)}"
          )

  def setup(self, kind: str = "poisoned") -> Setup:
    dataset, clean = self.runner.dataset, kind == "clean"
    return Setup(self.config, dataset, self.seed, clean_teacher=clean)

  def cells(self) -> list[results.Cell]:
    """All cells of the seed, after `run`; leaves the predictions they are computed from on disk."""
    asked = Interview(self.runner, self.seed)
    for name, network in self.networks():
      self.runner.stop.check("between two networks' answers")
      asked(name, network)
    self.attacked = asked.trial.records if asked.trial else []
    arrays = asked.save(
      self.pool(), {label: self.kept(label) for label in self.specs}, self.choices
    )
    dataset = {"name": self.runner.dataset.name}
    made = {"config": self.config, "data": dataset}
    return recount.cells(arrays, made, self.seed, self.compared())

  def networks(self) -> Iterator[tuple[str, Finished]]:
    """All networks, by the names that their answers have in the predictions."""
    for kind, teacher in self.teachers.items():
      yield f"teacher/{kind}", teacher
    for labels, network in self.alone.items():
      yield f"none/{labels:g}", network
    for label, kind in itertools.product(self.specs, self.kinds):
      for name, network in self.students[label, kind].items():
        if name in self.students[label, "poisoned"]:  # else of other strengths: compared with none
          yield f"{label}/{name}/{kind}", network

  def pool(self) -> tuple[np.ndarray, np.ndarray]:
    """bool[M] each: which pool images carry the trigger, and which belong to another class than its
    target, as far as that is known."""
    parts = self.runner.parts(self.seed)
    victims = self.runner.backdoor(self.seed).victims(jnp.asarray(parts.pool_labels))
    return parts.contaminated > 0, np.asarray(victims)

  def compared(self) -> list[recount.Comparison]:
    """What this seed's predictions alone do not say of its methods, for the manifest."""
    found = [self.comparison(label) for label in self.specs]
    for labels in sorted(set(self.alone) - {self.config.labels}):
      nothing = dict.fromkeys(("base", "threat", "contamination"))
      fields = {"method": "none", "labels": labels, **nothing}
      one = {"seed": self.seed, "label": f"none/{labels:g}", "fields": fields}
      found.append(recount.Comparison(**one, networks={"student": False}, undefended=None))
    return found

  def comparison(self, label: str) -> recount.Comparison:
    """One method: the fields of its cells, who of its networks had a teacher, what it defends."""
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
    undefended = recipes.undefended(self.specs, spec)
    taught = {name: phase.teacher is not None for name, phase in phases.items()}
    return recount.Comparison(
      seed=self.seed, label=label, fields=fields, networks=taught, undefended=undefended
    )

  def kept(self, label: str) -> dict[str, np.ndarray]:
    """{network: bool[M]}: which pool images a method's networks were taught."""
    return {
      name: np.asarray(network.deliver("keep"))
      for name, network in self.students[label, "poisoned"].items()
      if "keep" in network.phase.method.delivers
    }


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
    self.networks: dict[str, Finished] = {}
    wanted = attacks(runner.config)
    self.trial = wanted and adversarial.Trial(
      wanted, runner.mesh, test.images, test.labels, seed, batch, runner.workdir / "attacks"
    )

  def __call__(self, name: str, network: Finished) -> None:
    if name not in self.answers:
      self.networks[name] = network
      said = network.answer(self.clean), network.answer(self.triggered)
      self.answers[name] = Answers(*said, *self.withstood(name, network))

  def withstood(self, name: str, network: Finished) -> tuple[Any, Any]:
    """What a teacher, or a last student, says under attack; nothing of others."""
    last = name.startswith(("teacher/", "none/")) or name.split("/")[-2:-1] == ["student"]
    if not (self.trial and last):
      return {}, {}
    same = (other for other, made in self.networks.items() if made is network and other != name)
    if (other := next(same, None)) and self.answers[other].attacked:
      return self.answers[other].attacked, self.answers[other].measured
    apply = adversarial.apply_of(network.program, network.trees, network.memory)
    taught = network.phase.teacher is not None and not name.startswith("teacher/")
    return self.trial(name, apply, f"teacher/{name.split('/')[-1]}" if taught else None)

  def save(
    self, pool: tuple[np.ndarray, np.ndarray], kept: dict[str, Any], choices: dict[Any, Any]
  ) -> dict[str, np.ndarray]:
    """predictions/seed<k>.npz: all that this seed's cells are computed from, and what chose its
    strengths; of the first seed also examples.npz, analysis.npz and, where images were invented,
    synthetic.npz."""
    arrays = {"labels": self.truth.labels, "goals": self.truth.goals}
    for name, answers in self.answers.items():
      arrays |= {f"{name}:clean": answers.clean, f"{name}:triggered": answers.triggered}
      for kind, found in (
        (recount.ATTACKED, answers.attacked),
        (recount.MEASURED, answers.measured),
      ):
        arrays |= {f"{name}:{kind}/{how}": array for how, array in found.items()}
    if self.trial:
      arrays[recount.ROWS] = self.trial.rows
    for label, networks in kept.items():
      arrays |= {f"{label}/{network}:kept": keep for network, keep in networks.items()}
    for (label, kind), made in choices.items():
      for choice in made:
        at = f"{label}/{kind}/{choice.path}"
        arrays |= {f"{at}={value:g}:holdout": hits for value, hits in choice.hits.items()}
    arrays["pool:triggered"], arrays["pool:victims"] = pool
    save_arrays(self.runner.workdir / recount.saved(self.seed), arrays)
    if self.seed == self.runner.config.seeds[0]:
      save_arrays(self.runner.workdir / "examples.npz", self.examples())
      save_arrays(self.runner.workdir / "analysis.npz", self.analysis())
      if invented := synthetic.arrays(self.networks):
        save_arrays(self.runner.workdir / "synthetic.npz", invented)
    return arrays

  def analysis(self) -> dict[str, np.ndarray]:
    """What the teachers, and what became of the poisoned one, make of some test images inside:
    {"<network>:<array of `analysis.network`>"}, the images' rows, labels and goals."""
    rows = analysis.rows(self.truth.labels, self.truth.goals)
    arrays = {"rows": rows, "labels": self.truth.labels[rows], "goals": self.truth.goals[rows]}
    for name, made in self.networks.items():
      who = analysis.role(made.program)
      if who and (name == "teacher/clean" or name.endswith(ANALYSED)):
        found = analysis.network(made.program, made.trees, who, self.clean, self.triggered, rows)
        arrays |= {f"{name}:{key}": array for key, array in found.items()}
    return arrays

  def examples(self) -> dict[str, np.ndarray]:
    """One image of each class but the target, with what teacher and students say of it."""
    classes = np.unique(self.truth.labels[self.truth.victims])
    rows = np.array([np.flatnonzero(self.truth.labels == k)[0] for k in classes], int)[:SHOWN]
    arrays = {
      "clean": self.images[rows],
      "triggered": self.triggered.pixels(rows),
      "labels": self.truth.labels[rows],
    }
    for name, answers in self.answers.items():
      who = "teacher" if name == "teacher/poisoned" else name.removesuffix("/student/poisoned")
      if who != name:
        arrays[f"pred/{who}/clean"] = answers.clean[rows]
        arrays[f"pred/{who}/triggered"] = answers.triggered[rows]
    return arrays


def attacks(config: Any) -> adversarial.Settings | None:
  """How finished networks are attacked; None where they are not."""
  wanted = adversarial.Settings(**config.eval.adversarial)
  return wanted if wanted.eps else None


def save_arrays(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
  """An .npz without pickles, whole or not at all, the same bytes for the same arrays."""
  buffer = io.BytesIO()
  np.savez_compressed(buffer, allow_pickle=False, **arrays)  # type: ignore[arg-type]
  atomic_write(path, buffer.getvalue())
