"""What networks withstand: accuracy under attack by radius, what it rests on, what is in doubt."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from rkd_jax.reporting import svg, verdict
from rkd_jax.reporting.formats import number, percent
from rkd_jax.reporting.results import Cell, select
from rkd_jax.reporting.table import Row, entry
from rkd_jax.reporting.verdict import Verdict

How = tuple[str, str, float]  # attack, norm, radius
MEASURED = (
  "certified_radius", "local_linearity", "alignment_residual", "adv_loss", "loss_bound",
)  # fmt: skip
TRANSFERRED = 0.5  # of the teacher's accuracy under attack that a student has to keep
POINTS = 0.02  # of accuracy that a stronger attack may be above a weaker one, by chance
MORE, TRANSFER = "pgd-100", "transfer-"
NORMS = {"linf": "l∞", "l2": "l2"}


def section(rows: Sequence[Row]) -> dict[str, Any] | None:
  """What the template shows; None where nobody was attacked."""
  found = attacks(rows)
  if not found:
    return None
  shown = [row for row in rows if row.of("adv_acc")]
  return {
    "drawings": list(_drawings(shown, found)),
    "legend": [row.label for row in shown],
    "columns": [told(how) for how in found],
    "lines": [
      {"label": row.label, "cells": [entry(at(row, how), "adv_acc") for how in found]}
      for row in shown
    ],
    "count": min(cell.n or 0 for row in shown for cell in row.of("adv_acc")),
    "measured": _measured(shown),
    "doubts": list(doubts(shown, found)),
  }


def attacks(rows: Sequence[Row]) -> list[How]:
  """What was tried, by attack, then by radius."""
  found = {_how(cell) for row in rows for cell in row.of("adv_acc")}
  order = list(dict.fromkeys(cell.attack for row in rows for cell in row.of("adv_acc")))
  return sorted(found, key=lambda how: (order.index(how[0]), how[2]))


def plain(rows: Sequence[Row]) -> list[How]:
  """What is told of a network, without what only tests the telling: more steps, a huge ball, images
  made against its teacher."""
  found = attacks(rows)
  tests = [
    how for how in found if how[0] == MORE or how[0].startswith(TRANSFER) or huge(how, found)
  ]
  return [how for how in found if how not in tests] or found


def huge(how: How, found: Sequence[How]) -> bool:
  """Whether the ball is that in which nearly every image can be made any other: it is larger than
  the largest of the config, in which more steps were tried too."""
  largest = max((eps for attack, norm, eps in found if (attack, norm) == (MORE, how[1])), default=0)
  return 0 < largest < how[2]


def at(row: Row, how: How) -> Row:
  """The row's cells under one attack."""
  attack, norm, eps = how
  return dataclasses.replace(row, cells=tuple(select(row.cells, attack=attack, norm=norm, eps=eps)))


def told(how: How) -> str:
  attack, norm, eps = how
  return f"{attack}, {NORMS.get(norm, norm)} ≤ {eps:.3g}"


def doubts(rows: Sequence[Row], found: Sequence[How]) -> Iterator[str]:
  """Sentences where numbers contradict what true robustness would show: gradients that hide."""
  for row in rows:
    known = {how: acc for how in found if (acc := at(row, how).mean("adv_acc")) is not None}
    for how, acc in known.items():
      attack, norm, eps = how
      own = known.get((attack.removeprefix(TRANSFER), norm, eps), 0)
      short = known.get(("pgd-20", norm, eps), 0)
      if acc and huge(how, found):
        yield (
          f"{row.label} keeps {percent(acc)} under {told(how)}, where nothing can be withstood: "
          "the attack does not find what is there."
        )
      if attack.startswith(TRANSFER) and acc < own - POINTS:
        yield (
          f"{row.label} is fooled more often by images made against its teacher ({percent(acc)} "
          f"right) than against itself ({percent(own)}): its own gradients mislead the attack."
        )
      if attack == MORE and acc < short - POINTS:
        yield (
          f"{row.label}: 20 steps of PGD are too few ({percent(short)} right, after 100 "
          f"{percent(acc)})."
        )


def _how(cell: Cell) -> How:
  return str(cell.attack), str(cell.norm), cell.eps or 0.0


def _drawings(rows: Sequence[Row], found: Sequence[How]) -> Iterator[dict[str, Any]]:
  """One for each attack of more than one radius: a line a network, from its accuracy on."""
  for attack, norm in dict.fromkeys((attack, norm) for attack, norm, _ in found):
    radii = [eps for a, n, eps in found if (a, n) == (attack, norm)]
    if len(radii) < 2:
      continue
    lines = []
    for row in rows:
      values = [(0.0, row.mean("acc"))]
      values += [(eps, at(row, (attack, norm, eps)).mean("adv_acc")) for eps in radii]
      lines.append(svg.Line(row.label, [(x, y) for x, y in values if y is not None]))
    name = f"Accuracy under {attack} against the radius ({NORMS.get(norm, norm)})"
    yield {"title": attack, "drawing": svg.radii(lines, name, f"radius, {NORMS.get(norm, norm)}")}


def _measured(rows: Sequence[Row]) -> dict[str, Any] | None:
  """Means over seeds of what the analysis measured."""
  found = [
    (metric, _how(cell)) for metric in MEASURED for row in rows for cell in row.of(metric)
  ]  # fmt: skip
  columns = list(dict.fromkeys(found))
  lines = []
  for row in rows:
    means = [at(row, how).mean(metric) for metric, how in columns]
    known = [
      "–" if m is None else number(metric, m) for m, (metric, _) in zip(means, columns, strict=True)
    ]
    lines.append({"label": row.label, "cells": [{"main": text, "sub": ""} for text in known]})
  if not columns:
    return None
  return {"columns": [{"metric": m, "how": told(how)} for m, how in columns], "lines": lines}


def judged(rows: Sequence[Row], target: str) -> list[Verdict]:
  """One verdict per taught student: of the backdoor, or where there is none, of robustness.

  `target`: the trigger's class in words.
  """
  if any(cell.backdoor == "none" for row in rows for cell in row.cells):
    return _verdicts(rows)
  return verdict.verdicts(rows, target)


def _verdicts(rows: Sequence[Row]) -> list[Verdict]:
  """Whether each taught student took its teacher's robustness over."""
  how = judging(rows)
  students = [row for row in rows if row.method and any(cell.teacher for cell in row.cells)]
  if how is None:
    nothing = "no attack was tried, and there is no backdoor to judge by."
    return [Verdict(row.label, "unknown", f"{row.label}: {nothing}") for row in students]
  teacher = next((at(row, how) for row in rows if row.method is None), None)
  own = {cell.seed: cell.value for cell in teacher.of("adv_acc")} if teacher else {}
  return [_verdict(row, how, own) for row in students]


def judging(rows: Sequence[Row]) -> How | None:
  """What robustness is judged by: the first attack, at the middle of its radii."""
  found = plain(rows)
  own = [how for how in found if how[0] == found[0][0]]
  return own[len(own) // 2] if own else None


def _verdict(row: Row, how: How, teachers: dict[int | None, float | None]) -> Verdict:
  """`teachers`: accuracy under that attack by seed."""
  cells = at(row, how).of("adv_acc")
  pairs = [
    (c.value, teachers.get(c.seed if c.teacher_seed is None else c.teacher_seed)) for c in cells
  ]
  known = [(kept, own) for kept, own in pairs if kept is not None and own is not None]
  if not cells or len(known) < len(pairs):
    return Verdict(row.label, "unknown", f"{row.label}: not every network was attacked.")
  kept, own = min(known, key=lambda pair: pair[0] - TRANSFERRED * pair[1])
  who = "worst seed" if len(cells) > 1 else "one seed"
  text = f"{row.label} keeps {percent(kept)} right under {told(how)} ({who}), its teacher"
  text += f" {percent(own)}, at {percent(row.mean('acc'))} accuracy on clean images."
  if max(own for _, own in known) <= POINTS:
    text += " A teacher that withstands nothing itself has nothing to hand on."
    return Verdict(row.label, "unknown", text)
  took = kept >= TRANSFERRED * own
  return Verdict(row.label, "transferred" if took else "not transferred", text)
