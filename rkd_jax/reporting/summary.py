"""A run's results in a few lines of plain text, for the end of its output."""

from collections.abc import Mapping, Sequence
from typing import Any

from rkd_jax.reporting import table, withstood
from rkd_jax.reporting.formats import NOT_MEASURED, number
from rkd_jax.reporting.results import Cell
from rkd_jax.reporting.table import Row

HEAD = ("Network", "ACC", "ASR", "Carried", "Verdict")
NARROWEST = 12  # columns of a network's name


def lines(manifest: Mapping[str, Any], cells: Sequence[Cell], width: int = 80) -> list[str]:
  """A table: the mean accuracy, the worst ASR and carried ASR over seeds, and the verdict.

  Args:
    manifest: the "run" of results.json.
    cells: its cells.
    width: no line is longer, down to about 50; long names end in "...".
  """
  found, comparable = [], table.plain(cells)
  for setting in table.settings(comparable):
    rows = table.rows(table.within(comparable, setting), manifest["config"].get("methods") or ())
    outcomes = {v.label: v.outcome for v in withstood.judged(rows, "the target")}
    how = withstood.judging(rows) if setting["backdoor"] == "none" else None
    entries = [_entries(row, outcomes, how) for row in rows if row.cells]
    found += _aligned(
      [("Network", "ACC", withstood.told(how), "Verdict") if how else HEAD, *entries], width
    )
  seeds, worst = len(manifest.get("seeds") or ()), "ASR and carried ASR"
  if seeds > 1:
    worst = worst if any("ASR" in line for line in found) else "the other"
    found.append(f"ACC: mean of {seeds} seeds; {worst}: the worst of them.")
  return found


def _entries(row: Row, outcomes: Mapping[str, str], how: withstood.How | None) -> tuple[str, ...]:
  """`how`: the attack that a run without a backdoor is judged by."""
  numbers = {"acc": row.mean("acc")}
  if how:
    numbers["adv_acc"] = withstood.at(row, how).worst("adv_acc")
  else:
    numbers |= {metric: row.worst(metric) for metric in ("asr", "carried_asr")}
  shown = [NOT_MEASURED if v is None else number(m, v) for m, v in numbers.items()]
  return row.label, *shown, outcomes.get(row.label, "")


def _aligned(rows: Sequence[Sequence[str]], width: int) -> list[str]:
  """The first and last column to the left, numbers to the right."""
  sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
  spare = width - sum(sizes[1:]) - 2 * (len(sizes) - 1)
  sizes[0] = min(sizes[0], max(spare, NARROWEST))
  found = []
  for first, *numbers, last in rows:
    name = first if len(first) <= sizes[0] else first[: sizes[0] - 3] + "..."
    middle = [text.rjust(size) for text, size in zip(numbers, sizes[1:-1], strict=True)]
    found.append("  ".join([name.ljust(sizes[0]), *middle, last]).rstrip())
  return found
