"""Which classes follow the trigger: ASR by an image's true class, from the saved predictions."""

import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from rkd_jax.evaluation.metrics import Proportion
from rkd_jax.reporting.arrays import Arrays, opened
from rkd_jax.reporting.formats import NOT_MEASURED
from rkd_jax.reporting.pictures import named
from rkd_jax.reporting.table import Row

MOST, LEVELS = 12, 5  # classes in the table; shades of a cell beside "none at all"


def table(
  workdir: pathlib.Path, seeds: Iterable[int], rows: Sequence[Row], classes: Sequence[str]
) -> dict[str, Any] | None:
  """ASR per true class and network, hits of all seeds together; None without predictions.

  Returns:
    {"classes": [name], "lines": [{"label", "cells": [{"text", "count", "level"}]}], "seeds": how
     many were counted, "left": how many classes were left out}.
  """
  counts: dict[str, dict[int, np.ndarray]] = {}
  read = 0
  for seed in seeds:
    with opened(workdir / "predictions" / f"seed{seed}.npz") as arrays:
      read += bool(arrays)
      for row in rows if arrays else ():
        said = arrays_of(row, arrays)
        if said is not None:
          _add(counts.setdefault(row.label, {}), by_class(arrays["labels"], arrays["goals"], said))
  found = sorted({k for own in counts.values() for k in own})
  if not found:  # no predictions, or no trigger that is known
    return None
  shown = _most_hit(counts, found)
  lines = [
    {"label": row.label, "cells": [_cell(counts[row.label].get(k)) for k in shown]}
    for row in rows
    if row.label in counts
  ]
  names = [named(k, classes) for k in shown]
  return {"classes": names, "lines": lines, "seeds": read, "left": len(found) - len(shown)}


def by_class(labels: np.ndarray, goals: np.ndarray, triggered: np.ndarray) -> dict[int, np.ndarray]:
  """{true class: int[2], (triggered images that go where the trigger leads, all)}.

  Args:
    labels, goals, triggered: int[N], true classes, where a trigger leads, what a network says.
      Images that belong where it leads count in no class.
  """
  victims = labels != goals
  return {
    int(k): np.array([np.sum((triggered == goals)[own]), np.sum(own)])
    for k in np.unique(labels[victims])
    for own in [victims & (labels == k)]
  }


def arrays_of(row: Row, arrays: Arrays) -> np.ndarray | None:
  """A row's predictions on triggered images; None where the file has none."""
  labels = next((cell.labels for cell in row.cells), None)
  own = [f"{row.method}/{labels:g}"] if row.method == "none" and labels is not None else []
  names = [*own, f"{row.method}/student/poisoned"] if row.method else ["teacher/poisoned"]
  return next((arrays[f"{n}:triggered"] for n in names if f"{n}:triggered" in arrays), None)


def _add(total: dict[int, np.ndarray], more: dict[int, np.ndarray]) -> None:
  for k, count in more.items():
    total[k] = total.get(k, 0) + count


def _most_hit(counts: dict[str, dict[int, np.ndarray]], found: Sequence[int]) -> list[int]:
  """All classes, or of many those that the trigger takes most of."""
  hits = {k: sum(own[k][0] for own in counts.values() if k in own) for k in found}
  return sorted(sorted(found, key=lambda k: -hits[k])[:MOST])


def _cell(count: np.ndarray | None) -> dict[str, Any]:
  if count is None:
    return {"text": NOT_MEASURED, "count": "", "level": 0}
  share = Proportion(*map(int, count)).value or 0.0
  level = 0 if not count[0] else 1 + min(LEVELS - 1, int(LEVELS * share))
  return {"text": f"{100 * share:.0f}", "count": f"{count[0]}/{count[1]}", "level": level}
