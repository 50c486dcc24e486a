"""results.json: every number of a run, one cell each, with all that is needed to read it."""

import dataclasses
import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

from rkd_jax.errors import UserError, nearest
from rkd_jax.evaluation.metrics import t_interval
from rkd_jax.reporting.files import read_json, to_json, write_json

SCHEMA = 1

# metric -> (whether more is worse, the range of its mean over seeds)
_DIRECTION = {
  "acc": (False, (0.0, 1.0)),
  "asr": (True, (0.0, 1.0)),
  "ra": (False, (0.0, 1.0)),
  "target_acc": (False, (0.0, 1.0)),
  "natural_rate": (True, (0.0, 1.0)),
  "carried_asr": (True, (-1.0, 1.0)),
  "der": (False, (0.0, 1.0)),
  "rir": (False, (0.0, 1.0)),
  "fidelity": (False, (0.0, 1.0)),
  "transfer_ratio": (True, (0.0, math.inf)),
  "adv_acc": (False, (0.0, 1.0)),
  "certified_radius": (False, (0.0, math.inf)),
  "local_linearity": (True, (0.0, math.inf)),  # the gap to a linear function
  "alignment_residual": (True, (0.0, math.inf)),  # of the input gradients, student to teacher
  "adv_loss": (True, (0.0, math.inf)),  # the worst that was found in the ball
  "loss_bound": (True, (0.0, math.inf)),  # what it should not exceed
  "ece": (True, (0.0, 1.0)),
  "kept": (False, (0.0, 1.0)),
  "kept_triggered": (True, (0.0, 1.0)),
  "size": (True, (0.0, math.inf)),
  "params": (True, (0.0, math.inf)),
  "macs": (True, (0.0, math.inf)),
  "latency": (True, (0.0, math.inf)),
}
METRICS = frozenset(_DIRECTION)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
  """One number. A field that does not apply is None, and so is a value that is not known."""

  dataset: str | None = None
  labels: float | None = None  # the labelled fraction of the training images
  threat: str | None = None  # "clean", "contaminated" or "data-free"
  contamination: float | None = None  # the triggered fraction of the unlabelled pool
  network: str | None = None  # "teacher", "witness", "round1", ...; "student" = the last phase's
  method: str | None = None
  base: str | None = None  # what `method` wraps
  teacher: str | None = None  # "poisoned", "clean" or "given"
  backdoor: str | None = None
  attack: str | None = None
  norm: str | None = None
  eps: float | None = None
  metric: str
  count: int | None = None  # hits ...
  n: int | None = None  # ... out of how many
  value: float | None = None
  ci95: tuple[float, float] | None = None
  unit: str | None = None
  seed: int | None = None
  teacher_seed: int | None = None
  variant: str | None = "f32"
  at: str | None = "last"  # or "best_val"
  oracle: bool = False  # whether something that selects saw a trigger or the test set

  def __post_init__(self):
    if self.metric not in METRICS:
      raise ValueError(f"No metric is called {self.metric!r}. {nearest(self.metric, METRICS)}")
    if self.ci95 is not None:
      low, high = self.ci95
      object.__setattr__(self, "ci95", (low, high))  # JSON has lists; a cell must be hashable
    for what, number in (("value", self.value), *(("ci95", x) for x in self.ci95 or ())):
      if number is not None and not _finite(number):
        raise ValueError(f"{self.metric}: {what} is {number!r}; a missing value is None.")


FIELDS = tuple(field.name for field in dataclasses.fields(Cell))
MEASURED = {"count", "n", "value", "ci95"}


class OverSeeds(TypedDict):
  """One metric over seeds. Mean, worst and interval are None where a seed's value is unknown."""

  mean: float | None
  worst: float | None
  points: list[float | None]  # in order of (seed, teacher_seed)
  interval: tuple[float, float] | None  # Student's, of the mean; None for a single seed


def write(path: str | os.PathLike, manifest: dict[str, Any], cells: Iterable[Cell]) -> None:
  """Writes results.json atomically: {"schema": 1, "run": manifest, "cells": [...], "sha256": ...}.

  The digest is of the document without it: what was edited afterwards, by whoever is not careful,
  is told by `verify`. Raises a ValueError where two cells differ in nothing but their numbers.
  """
  cells = list(cells)
  _refuse_duplicates(cells)
  document = {
    "schema": SCHEMA,
    "run": manifest,
    "cells": [{name: getattr(cell, name) for name in FIELDS} for cell in cells],
  }
  write_json(path, {**document, "sha256": seal(document)})


def seal(document: Mapping[str, Any]) -> str:
  """Hex digest over all of results.json but the digest itself."""
  rest = {key: value for key, value in document.items() if key != "sha256"}
  text = to_json(rest).encode(errors="backslashreplace")
  return hashlib.sha256(text).hexdigest()


def read(path: str | os.PathLike) -> tuple[dict[str, Any], list[Cell]]:
  """The manifest and the cells of results.json; a `UserError` where the file is not one of ours."""
  document, name = read_document(path), os.fspath(path)
  try:
    cells = [cell(fields) for fields in document["cells"]]
    _refuse_duplicates(cells)
  except (TypeError, ValueError) as error:
    raise UserError(f"{name} has a cell that does not fit: {error}") from error
  return document["run"], cells


def read_document(path: str | os.PathLike) -> dict[str, Any]:
  """results.json as plain values, of this schema; what its cells say is not looked at."""
  document, name = read_json(path), os.fspath(path)
  if not isinstance(document, dict) or document.get("schema") != SCHEMA:
    found = document.get("schema") if isinstance(document, dict) else type(document).__name__
    raise UserError(
      f"{name} has schema {found!r}; this version reads schema {SCHEMA}. Make it again with the"
      " same version of rkd_jax."
    )
  if not isinstance(document.get("run"), dict) or not isinstance(document.get("cells"), list):
    raise UserError(f'{name} must hold "run" (an object) and "cells" (a list).')
  return document


def select(cells: Iterable[Cell], **fields: Any) -> list[Cell]:
  """The cells whose fields equal all of `fields`, in order; None selects fields that are null."""
  for name in fields:
    if name not in FIELDS:
      raise ValueError(f"A cell has no field {name!r}. {nearest(name, FIELDS)}")
  return [c for c in cells if all(getattr(c, name) == value for name, value in fields.items())]


def in_order(cells: Iterable[Cell]) -> list[Cell]:
  """By seed, then teacher seed; a cell without comes first."""
  return sorted(cells, key=lambda c: (_rank(c.seed), _rank(c.teacher_seed)))


def over_seeds(cells: Sequence[Cell]) -> OverSeeds:
  """Mean, worst, every point and a t-interval of cells that differ in their seeds only.

  The worst is the highest ASR but the lowest accuracy. One unknown seed leaves all but the points
  unknown: it might be the worst.
  """
  metrics = {cell.metric for cell in cells}
  if len(metrics) != 1:
    raise ValueError(f"Cells of one metric are expected; given: {sorted(metrics) or 'none'}.")
  more_is_worse, limits = _DIRECTION[metrics.pop()]
  points = [cell.value for cell in in_order(cells)]
  known = [value for value in points if value is not None]
  if len(known) < len(points):
    return {"mean": None, "worst": None, "points": points, "interval": None}
  return {
    "mean": math.fsum(known) / len(known),
    "worst": max(known) if more_is_worse else min(known),
    "points": points,
    "interval": t_interval(known, limits),
  }


def cell(fields: Any) -> Cell:
  """A cell from plain values; a ValueError or TypeError where they are none."""
  if not isinstance(fields, dict):
    raise ValueError(f"it is {type(fields).__name__}, not an object")
  if odd := set(fields) ^ set(FIELDS):
    name = min(odd)
    raise ValueError(f"field {name!r} is {'unknown' if name in fields else 'missing'}")
  return Cell(**fields)


def _refuse_duplicates(cells: Iterable[Cell]) -> None:
  seen = set()
  for cell in cells:
    key = tuple(getattr(cell, name) for name in FIELDS if name not in MEASURED)
    if key in seen:
      names = (n for n in FIELDS if n not in MEASURED)
      shown = {n: v for n, v in zip(names, key, strict=True) if v is not None}
      raise ValueError(f"two cells agree in every field but their numbers: {shown}")
    seen.add(key)


def _finite(number: Any) -> bool:
  try:
    return math.isfinite(number)
  except TypeError:
    return False


def _rank(seed: int | None) -> float:
  return -1 if seed is None else seed
