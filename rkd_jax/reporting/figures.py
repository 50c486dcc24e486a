"""What the report draws of cells and metrics: the plane and the training curves."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rkd_jax.reporting import svg
from rkd_jax.reporting.table import Row
from rkd_jax.reporting.verdict import REMOVED_ASR
from rkd_jax.reporting.writer import read_lines

Phase = Mapping[str, Any]


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


def training(
  workdir: pathlib.Path, phases: Sequence[Phase], costs: Sequence[Phase] = ()
) -> list[dict[str, Any]]:
  """Per method and phase, the curves of its seeds: hold-out accuracy, and loss.

  Args:
    workdir: of the run.
    phases, costs: of the manifest; without `costs` a method's label is not known, only its file.
  """
  groups: dict[str, list[Phase]] = {}
  for phase in phases:
    groups.setdefault(_title(phase, costs), []).append(phase)
  seeds = list(dict.fromkeys(str(phase.get("seed")) for phase in phases))
  figures = []
  for title, group in groups.items():
    logs = [(phase, _log(workdir, phase.get("metrics"))) for phase in group]
    panels = [
      {"title": panel, "drawing": svg.curves(lines, f"{panel} of {title}", share)}
      for panel, wanted, share in (
        ("Hold-out accuracy", _is_holdout_accuracy, True),
        ("Loss", _is_loss, False),
      )
      if (lines := _lines(logs, wanted, seeds))
    ]
    if panels:
      figures.append({"title": title, "panels": panels})
  return figures


def _title(phase: Phase, costs: Sequence[Phase]) -> str:
  """Whose phase it is: of one method by its label, of none or several by what it does."""
  key, name = phase.get("key"), str(phase.get("name"))
  users = {str(one.get("method")) for one in costs if key in (one.get("phases") or ())}
  who = users.pop() if len(users) == 1 else str(phase.get("method"))
  if name == "teacher":
    return name
  return who if name == who or (name == "student" and costs) else f"{who} · {name}"


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
  logs: Sequence[tuple[Phase, list[dict]]], wanted: Callable[[str], bool], seeds: Sequence[str]
) -> list[svg.Line]:
  lines = []
  for phase, log in logs:
    name = next((key for entry in log for key in entry if wanted(key)), None)
    points = [(e["step"], e[name]) for e in log if name and e.get(name) is not None]
    if len(points) > 1:
      teacher = phase.get("teacher")
      title = f"seed {phase.get('seed')}" + (f", {teacher} teacher" if teacher else "")
      colour = seeds.index(str(phase.get("seed")))
      lines.append(svg.Line(title, points, teacher == "clean", colour))
  return lines


def _is_holdout_accuracy(key: str) -> bool:
  return "hold" in key and "acc" in key


def _is_loss(key: str) -> bool:
  return key.split("/")[-1] == "loss"
