"""Which cells a run has: from predictions and plans to numbers. Pure numpy; no network is asked.

Every number is a function of what `predictions/seed<k>.npz` holds, so anyone can compute it again.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from rkd_jax.data import seeds
from rkd_jax.evaluation import metrics
from rkd_jax.reporting.results import Cell

Fields = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Answers:
  """A network's predictions int[N] on the test set, as it is and with the trigger everywhere.

  `attacked`: {"<attack>/<norm>/<eps>": int[n]}, on some test images that were made against it.
  `measured`: {"<metric>/<attack>/<norm>/<eps>": float[n]}, of the same images.
  """

  clean: np.ndarray
  triggered: np.ndarray
  attacked: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  measured: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Truth:
  """What predictions are measured against, int[N]: true classes, and where a trigger leads.

  `rows`: int[n], which test images were attacked; None where nobody was.
  """

  labels: np.ndarray
  goals: np.ndarray
  rows: np.ndarray | None = None

  @property
  def victims(self) -> np.ndarray:
    """bool[N]: images that do not belong to the target class; only they count in ASR and RA."""
    return self.labels != self.goals

  def hits(self, answers: Answers) -> dict[str, np.ndarray]:
    """bool[N] each: what ACC, ASR and RA count."""
    return {
      "acc": answers.clean == self.labels,
      "asr": answers.triggered == self.goals,
      "ra": answers.triggered == self.labels,
    }


@dataclasses.dataclass(frozen=True)
class Student:
  """A method's networks in order (the last is "student"), and what they are compared with.

  Attributes:
    fields: of its cells: method, base, labels, threat, contamination.
    networks: {network: Answers} of students of the poisoned teacher (or of none).
    taught: the networks that had a teacher.
    control: the same networks of the clean teacher; empty where that was not run.
    undefended: the label of the method that it defends; None where there is none.
    kept: {network: bool[M]}: which pool images a network was taught; empty for most methods.
  """

  fields: Fields
  networks: Mapping[str, Answers]
  taught: frozenset[str] = frozenset()
  control: Mapping[str, Answers] = dataclasses.field(default_factory=dict)
  undefended: str | None = None
  kept: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


def rates(truth: Truth, answers: Answers, fields: Fields) -> list[Cell]:
  """ACC, ASR, RA and target ACC of one network."""
  found = {
    "acc": metrics.accuracy(answers.clean, truth.labels),
    "asr": metrics.attack_success(answers.triggered, truth.labels, truth.goals),
    "ra": metrics.robust_accuracy(answers.triggered, truth.labels, truth.goals),
    "target_acc": metrics.target_accuracy(answers.clean, truth.labels, truth.goals),
  }
  cells = [Cell(metric=name, **fields, **found[name].fields()) for name in found]
  return cells + under_attack(truth, answers, fields)


def under_attack(truth: Truth, answers: Answers, fields: Fields) -> list[Cell]:
  """How many of the attacked images it still gets right, per attack, norm and radius, and the means
  of what was measured there."""
  cells = []
  for made, said in answers.attacked.items():
    right = metrics.accuracy(said, truth.labels[truth.rows])
    cells.append(Cell(metric="adv_acc", **fields, **_how(made), **right.fields()))
  for made, values in answers.measured.items():
    metric, _, how = made.partition("/")
    mean = composite(float(metrics.share(values)), bootstrap(metrics.share, fields, values))
    cells.append(Cell(metric=metric, **fields, **_how(how), **mean, n=len(values)))
  return cells


def _how(made: str) -> Fields:
  attack, norm, eps = made.split("/")
  return {"attack": attack, "norm": norm, "eps": float(eps)}


def against_teacher(truth: Truth, answers: Answers, teacher: Answers, fields: Fields) -> list[Cell]:
  """Fidelity (agreement on clean images) and the transfer ratio of ASRs."""
  same = metrics.fidelity(answers.clean, teacher.clean)
  asr = [
    metrics.attack_success(a.triggered, truth.labels, truth.goals).value for a in (answers, teacher)
  ]
  interval = bootstrap(
    lambda s, t, who: metrics.transfer_ratio(metrics.share(s, who), metrics.share(t, who)),
    fields, truth.hits(answers)["asr"], truth.hits(teacher)["asr"], truth.victims,
  )  # fmt: skip
  ratio = composite(metrics.transfer_ratio(*asr), interval)
  return [
    Cell(metric="fidelity", **fields, **same.fields()),
    Cell(metric="transfer_ratio", **fields, **ratio),
  ]


def carried(truth: Truth, answers: Answers, control: Answers | None, fields: Fields) -> Cell:
  """What the poisoned teacher's student has over the clean teacher's; null without that control."""
  if control is None:
    return Cell(metric="carried_asr", **fields)
  a, b = truth.hits(answers)["asr"], truth.hits(control)["asr"]
  who = truth.victims

  def statistic(a: Any, b: Any, who: Any) -> Any:
    return metrics.carried(metrics.share(a, who), metrics.share(b, who))

  value = float(statistic(a, b, who)) if who.any() else None
  return Cell(
    metric="carried_asr", **fields, **composite(value, bootstrap(statistic, fields, a, b, who))
  )


def defence(truth: Truth, answers: Answers, undefended: Answers, fields: Fields) -> list[Cell]:
  """DER and RIR against undefended distillation of the same base."""
  old, new, cells = truth.hits(undefended), truth.hits(answers), []
  for name, rating, other in (("der", metrics.der, "asr"), ("rir", metrics.rir, "ra")):

    def statistic(acc0: Any, x0: Any, acc: Any, x: Any, who: Any, rating: Any = rating) -> Any:
      share = metrics.share
      return rating(share(acc0), share(x0, who), share(acc), share(x, who))

    arrays = old["acc"], old[other], new["acc"], new[other], truth.victims
    value = float(statistic(*arrays)) if truth.victims.any() else None
    cells.append(
      Cell(metric=name, **fields, **composite(value, bootstrap(statistic, fields, *arrays)))
    )
  return cells


def kept(
  keep: np.ndarray, triggered: np.ndarray, victims: np.ndarray, fields: Fields
) -> list[Cell]:
  """How much of the pool was kept, and how many of its triggered images outside the target class.

  Args:
    keep, triggered, victims: bool[M] over the pool; victims by true label.
  """
  wrong = triggered & victims
  found = {
    "kept": metrics.Proportion(int(keep.sum()), len(keep)),
    "kept_triggered": metrics.Proportion(int((keep & wrong).sum()), int(wrong.sum())),
  }
  return [Cell(metric=name, **fields, **value.fields()) for name, value in found.items()]


def network_cells(
  truth: Truth, student: Student, teachers: Mapping[str, Answers], common: Fields
) -> list[Cell]:
  """What is said of each network of a method by itself, and of each beside its teacher."""
  cells = []
  for kind, networks in (("poisoned", student.networks), ("clean", student.control)):
    for network, answers in networks.items():
      taught = network in student.taught
      fields = {**common, **student.fields, "network": network}
      if taught:
        cells += rates(truth, answers, {**fields, "teacher": kind})
        cells += against_teacher(truth, answers, teachers[kind], {**fields, "teacher": kind})
      elif kind == "poisoned":  # a network without a teacher has no control of a clean one
        cells += rates(truth, answers, fields)
  return cells


def student_cells(
  truth: Truth, student: Student, others: Mapping[str, Student], natural: Answers | None,
  common: Fields,
) -> list[Cell]:  # fmt: skip
  """What is said of a method's last network beside controls and the undefended method."""
  taught, last = "student" in student.taught, student.networks["student"]
  fields = {**common, **student.fields, "network": "student"}
  fields |= {"teacher": "poisoned"} if taught else {}
  cells = []
  if taught and natural is not None:
    rate = metrics.attack_success(natural.triggered, truth.labels, truth.goals)
    cells.append(Cell(metric="natural_rate", **fields, **rate.fields()))
  if taught:
    cells.append(carried(truth, last, student.control.get("student"), fields))
  if student.undefended is not None:
    cells += defence(truth, last, others[student.undefended].networks["student"], fields)
  return cells


def seed_cells(
  truth: Truth,
  common: Fields,
  teachers: Mapping[str, Answers],
  students: Mapping[str, Student],
  natural: Answers | None,
  pool: tuple[np.ndarray, np.ndarray],
) -> list[Cell]:
  """All cells of one seed.

  Args:
    truth: of the test set.
    common: fields of all cells (dataset, backdoor, seed, teacher_seed, variant).
    teachers: {"poisoned" | "clean": its Answers}.
    students: {label: Student}, in the config's order.
    natural: answers of a network that never met a teacher: its ASR is the trigger's natural rate.
    pool: (triggered, victims) bool[M] each, for what was kept of it.
  """
  cells = []
  for kind, answers in teachers.items():
    cells += rates(truth, answers, {**common, "network": "teacher", "teacher": kind})
  for student in students.values():
    cells += network_cells(truth, student, teachers, common)
    cells += student_cells(truth, student, students, natural, common)
    for network, keep in student.kept.items():
      fields = {**common, **student.fields, "network": network, "teacher": "poisoned"}
      cells += kept(keep, *pool, fields)
  return cells


def composite(value: float | None, interval: tuple[float, float] | None) -> Fields:
  """A cell's fields for a number that is no proportion."""
  return {"value": value, "ci95": interval if value is not None else None}


def bootstrap(statistic: Any, fields: Fields, *arrays: np.ndarray) -> tuple[float, float] | None:
  """A paired interval whose resampling depends on the seed alone."""
  return metrics.paired_bootstrap(statistic, *arrays, seed=seeds.fold(fields["seed"], "bootstrap"))
