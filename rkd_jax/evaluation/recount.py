"""From saved predictions to cells: how a run makes its numbers, and how `verify` makes them again.

Pure numpy. `cells` is the one way from `predictions/seed<k>.npz` to results.json. What arrays alone
do not say (what a method wraps, what it is compared with) stands in the manifest's "comparisons",
a list of `Comparison`. `counted` counts again what can be counted in three lines, by itself.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from rkd_jax.evaluation import protocol
from rkd_jax.evaluation.protocol import Answers, Fields, Student, Truth
from rkd_jax.reporting.results import Cell

Arrays = Mapping[str, np.ndarray]
# answers under attack, on which test images, and what else was measured there
ATTACKED, ROWS, MEASURED = "attacked", "attacked:rows", "measured"
VARIANTS = {"float32": "f32", "bfloat16": "bf16"}
ABOUT_TRIGGERS = (
  *("asr", "ra", "target_acc", "natural_rate", "carried_asr", "der", "rir", "transfer_ratio"),
)
ADDED = frozenset({"target_acc"})  # metrics that a run of an older version has nowhere
OF_A_STUDENT = ("method", "base", "labels", "threat", "contamination")


class Comparison(TypedDict):
  """One method of one seed, as plain values."""

  seed: int
  label: str  # in the names of its arrays
  fields: Fields  # of its cells, `OF_A_STUDENT`
  networks: dict[str, bool]  # in order, and whether each had a teacher
  undefended: str | None  # the label of the method that it defends


def common(manifest: Mapping[str, Any], seed: int) -> Fields:
  """The fields that all cells of a seed share."""
  config = manifest["config"]
  return {
    "dataset": manifest["data"]["name"],
    "backdoor": config["backdoor"],
    "seed": seed,
    "teacher_seed": 0 if given(manifest) else seed,  # one teacher, whatever the seed
    "variant": VARIANTS[config["dtype"]],
  }


def given(manifest: Mapping[str, Any]) -> bool:
  """Whether the teacher was made elsewhere."""
  return bool(manifest["config"]["teacher"].get("checkpoint"))


def saved(seed: int) -> str:
  """Where a seed's predictions lie, from the workdir."""
  return f"predictions/seed{seed}.npz"


def cells(
  arrays: Arrays, manifest: Mapping[str, Any], seed: int, compared: Iterable[Comparison]
) -> list[Cell]:
  """All cells of one seed.

  Args:
    arrays: of its predictions file; a KeyError where one is missing.
    manifest: "config" and "data" of the run.
    seed: whose.
    compared: its methods, in the config's order.
  """
  fields, labels = common(manifest, seed), manifest["config"]["labels"]
  truth = Truth(arrays["labels"], arrays["goals"], arrays.get(ROWS))
  teachers = {kind: answers(arrays, f"teacher/{kind}") for kind in kinds(arrays)}
  students = {one["label"]: student(arrays, one) for one in compared}
  alone = [f"none/{share:g}" for share in (labels, 1.0)]
  natural = next((answers(arrays, name) for name in alone if f"{name}:clean" in arrays), None)
  pool = arrays["pool:triggered"], arrays["pool:victims"]
  found = protocol.seed_cells(truth, fields, teachers, students, natural, pool)
  if manifest["config"]["backdoor"] == "none":  # the one teacher that there is
    found = [c for c in found if c.metric not in ABOUT_TRIGGERS]
    return [dataclasses.replace(c, teacher="clean" if c.teacher else None) for c in found]
  if not given(manifest):
    return found
  return [dataclasses.replace(c, teacher="given" if c.teacher else None) for c in found]


def kinds(arrays: Arrays) -> list[str]:
  """Whose teachers were asked: the poisoned ones, and where it was run the control's."""
  return [kind for kind in ("poisoned", "clean") if f"teacher/{kind}:clean" in arrays]


def answers(arrays: Arrays, name: str) -> Answers:
  more = [
    {at.removeprefix(start): a for at, a in arrays.items() if at.startswith(start)}
    for start in (f"{name}:{ATTACKED}/", f"{name}:{MEASURED}/")
  ]
  return Answers(arrays[f"{name}:clean"], arrays[f"{name}:triggered"], *more)


def student(arrays: Arrays, one: Comparison) -> Student:
  """A method's networks with their answers, its control, and what it kept of the pool."""
  label, networks = one["label"], one["networks"]
  if f"{label}:clean" in arrays:  # one that was trained on some labels alone: no more to tell
    return Student(one["fields"], {"student": answers(arrays, label)})
  # a clean teacher's student may have chosen other strengths, and so have fewer networks
  found = {
    kind: {
      name: answers(arrays, f"{label}/{name}/{kind}")
      for name in networks
      if kind == "poisoned" or f"{label}/{name}/{kind}:clean" in arrays
    }
    for kind in kinds(arrays)
  }
  kept = {name: arrays[at] for name in networks if (at := f"{label}/{name}:kept") in arrays}
  taught = frozenset(name for name, had_teacher in networks.items() if had_teacher)
  return Student(
    one["fields"], found["poisoned"], taught, found.get("clean", {}), one["undefended"], kept
  )


def inferred(arrays: Arrays, cells: Sequence[Cell], seed: int) -> list[Comparison]:
  """What a run of an older version left unsaid, as far as its own cells tell it.

  A method's fields are those of its first cell, its networks those that were asked; it defends what
  it wraps, else kd, where it has a DER.
  """
  own = [c for c in cells if c.seed == seed and c.network != "teacher"]
  found = []
  for method, labels in dict.fromkeys((c.method, c.labels) for c in own):
    mine = [c for c in own if (c.method, c.labels) == (method, labels)]
    base = mine[0].base
    share = 0 if labels is None else labels
    alone, several = f"none/{share:g}", len({c.labels for c in own if c.method == method}) > 1
    label = alone if several and labels != own[0].labels else str(method)
    names = [key.split("/")[1] for key in arrays if key.startswith(f"{label}/") and _asked(key)]
    untaught = {c.network for c in mine if c.teacher is None}
    if not names and f"{label}:clean" not in arrays:
      continue  # nobody was asked: its cells are told as too many
    networks = {name: name not in untaught for name in names} or {"student": False}
    defends = any(c.metric == "der" for c in mine)
    other = base if base in {c.method for c in own} else "kd"
    fields = {name: getattr(mine[0], name) for name in OF_A_STUDENT}
    found.append(
      Comparison(
        seed=seed, label=label, fields=fields, networks=networks,
        undefended=other if defends else None,
      )
    )  # fmt: skip
  return found


def untold(arrays: Arrays, compared: Iterable[Comparison], labels: float) -> list[str]:
  """Networks that were asked, but of which no comparison makes a cell."""
  told = {f"teacher/{kind}" for kind in kinds(arrays)} | {f"none/{labels:g}"}  # the natural rate's
  for one in compared:
    names = {f"{one['label']}/{name}" for name in one["networks"]}
    told |= {one["label"], *(f"{name}/{kind}" for name in names for kind in ("poisoned", "clean"))}
  asked = [key.removesuffix(":clean") for key in arrays if key.endswith(":clean")]
  return [name for name in asked if name not in told]


def _asked(key: str) -> bool:
  return key.endswith("/poisoned:clean")


def counted(arrays: Arrays, cell: Cell) -> tuple[int, int] | None:
  """(count, n) of an ACC, ASR, RA, target ACC or adv_acc cell, by its definition alone; None for
  others."""
  if cell.metric not in ("acc", "asr", "ra", "target_acc", "adv_acc"):
    return None
  labels, goals, who = arrays["labels"], arrays["goals"], _who(arrays, cell)
  if cell.metric == "adv_acc":
    said = arrays[f"{who}:{ATTACKED}/{cell.attack}/{cell.norm}/{cell.eps:g}"]
    return int(np.count_nonzero(said == labels[arrays[ROWS]])), len(said)
  if cell.metric == "acc":
    return int(np.count_nonzero(arrays[f"{who}:clean"] == labels)), len(labels)
  if cell.metric == "target_acc":
    wanted = set(goals[labels != goals].tolist())
    own = np.array([k in wanted for k in labels.tolist()]) & (labels == goals)
    said = arrays[f"{who}:clean"][own]
    return int(np.count_nonzero(said == labels[own])), len(said)
  said, wanted = arrays[f"{who}:triggered"], goals if cell.metric == "asr" else labels
  victims = labels != goals
  return int(np.count_nonzero(said[victims] == wanted[victims])), int(np.count_nonzero(victims))


def _who(arrays: Arrays, cell: Cell) -> str:
  """The name of a cell's network in the arrays."""
  control = cell.teacher == "clean" and "clean" in kinds(arrays)
  kind = "clean" if control else "poisoned"  # what the only one goes by, whoever made it
  if cell.network == "teacher":
    return f"teacher/{kind}"
  alone = f"none/{cell.labels or 0:g}"
  if cell.method == "none" and f"{alone}:clean" in arrays:
    return alone
  return f"{cell.method}/{cell.network}/{kind}"
