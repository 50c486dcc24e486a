"""What the report draws of cells and metrics: the plane and the training curves."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from rkd_jax.reporting import svg
from rkd_jax.reporting.table import Row
from rkd_jax.reporting.verdict import REMOVED_ASR
from rkd_jax.reporting.writer import read_lines


def plane(table: Sequence[Row], labels: Sequence[str] = ()) -> str | None:
  """Every network and seed whose ACC and ASR are both known; None where there is no such.

  Args:
    table: the networks.
    labels: whose marks the drawing shares, in order, where that is not its own `legend`.
  """
  points = {row.label: _pairs(row) for row in table if _pairs(row)}
  series = [svg.Series(label, points.get(label, [])) for label in labels or points]
  return svg.plane(series, REMOVED_ASR) if points else None


def legend(table: Sequence[Row]) -> list[str]:
  """The plane's networks, in the order of their marks."""
  return [row.label for row in table if _pairs(row)]


def training(workdir: pathlib.Path, phases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
  """Per method and phase, the curves of its seeds: hold-out accuracy, and loss."""
  groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
  for phase in phases:
    groups.setdefault((str(phase.get("method")), str(phase.get("name"))), []).append(phase)
  figures = []
  for (method, name), group in groups.items():
    logs = [(phase, _log(workdir, phase.get("metrics"))) for phase in group]
    panels = [
      {"title": title, "drawing": svg.curves(lines, f"{title} of {method}, {name}", share)}
      for title, wanted, share in (
        ("Hold-out accuracy", _is_holdout_accuracy, True),
        ("Loss", _is_loss, False),
      )
      if (lines := _lines(logs, wanted))
    ]
    if panels:
      title = method if name == method else f"{method} · {name}"
      figures.append({"title": title, "panels": panels})
  return figures


def _pairs(row: Row) -> list[tuple[Any, ...]]:
  asr = {(c.seed, c.teacher_seed): c for c in row.of("asr") if c.value is not None}
  points = []
  for acc in row.of("acc"):
    other = asr.get((acc.seed, acc.teacher_seed))
    if other and acc.value is not None:
      points.append((acc.value, other.value, acc.ci95, other.ci95))
  return points


def _log(workdir: pathlib.Path, name: Any) -> list[dict[str, Any]]:
  """The phase's metrics; none where the phase was run elsewhere (a teacher from the cache)."""
  path = (workdir / str(name)).resolve()
  return read_lines(path) if name and path.is_relative_to(workdir.resolve()) else []


def _lines(
  logs: Sequence[tuple[dict, list[dict]]], wanted: Callable[[str], bool]
) -> list[svg.Line]:
  lines = []
  for phase, log in logs:
    name = next((key for entry in log for key in entry if wanted(key)), None)
    points = [(e["step"], e[name]) for e in log if name and e.get(name) is not None]
    if len(points) > 1:
      teacher = phase.get("teacher")
      title = f"seed {phase.get('seed')}" + (f", {teacher} teacher" if teacher else "")
      lines.append(svg.Line(title, points, dashed=teacher == "clean"))
  return lines


def _is_holdout_accuracy(key: str) -> bool:
  return "hold" in key and "acc" in key


def _is_loss(key: str) -> bool:
  return key.split("/")[-1] == "loss"
