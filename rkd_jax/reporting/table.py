"""The report's tables, from cells: who is compared, and what is said of whom."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from rkd_jax.reporting.formats import NOT_MEASURED, interval, number, percent, term
from rkd_jax.reporting.results import Cell, OverSeeds, in_order, over_seeds, select

COLUMNS = (
  "acc",
  "asr",
  "ra",
  "target_acc",
  "natural_rate",
  "carried_asr",
  "fidelity",
  "transfer_ratio",
  "der",
)
_SETTING = ("dataset", "threat", "contamination", "backdoor")


@dataclasses.dataclass(frozen=True)
class Row:
  """The cells of one network, over metrics and seeds."""

  label: str
  method: str | None  # None: the teacher
  base: str | None
  cells: tuple[Cell, ...]

  def of(self, metric: str) -> list[Cell]:
    return in_order(select(self.cells, metric=metric))

  def over(self, metric: str) -> OverSeeds | None:
    """None where the metric was not measured."""
    return over_seeds(cells) if (cells := self.of(metric)) else None

  def worst(self, metric: str) -> float | None:
    return summary["worst"] if (summary := self.over(metric)) else None

  def highest(self, metric: str) -> float | None:
    """Of the seeds in which it is known."""
    return max((c.value for c in self.of(metric) if c.value is not None), default=None)

  def mean(self, metric: str) -> float | None:
    return summary["mean"] if (summary := self.over(metric)) else None


def plain(cells: Sequence[Cell]) -> list[Cell]:
  """The cells that a comparison may use: of the last step, in f32, without an oracle."""
  return [c for c in select(cells, at="last", oracle=False) if c.variant in ("f32", "bf16")]


def settings(cells: Sequence[Cell]) -> list[dict[str, Any]]:
  """The distinct (data set, threat, contamination, backdoor) among the students' ASR cells.

  A null field belongs to every setting that names it: `none` has no pool to contaminate.
  """
  students = select(cells, network="student", metric="asr") or select(cells, network="student")
  found = list(dict.fromkeys(tuple(getattr(c, f) for f in _SETTING) for c in students))
  most = [a for a in found if not any(a != b and _covers(a, b) for b in found)]
  return [dict(zip(_SETTING, values, strict=True)) for values in most or [(None,) * len(_SETTING)]]


def within(cells: Sequence[Cell], setting: dict[str, Any]) -> list[Cell]:
  """The cells of one setting, and those that belong to all."""
  values = tuple(setting[f] for f in _SETTING)
  return [c for c in cells if _covers(tuple(getattr(c, f) for f in _SETTING), values)]


def rows(cells: Sequence[Cell], methods: Sequence[str]) -> list[Row]:
  """The teacher's row, then the students' in the order of `methods`; others after them.

  A method without cells keeps its (empty) row: it was asked for.
  """
  students = [c for c in select(cells, network="student") if not control(c)]
  teacher = [c for c in select(cells, network="teacher") if not control(c)]
  # one teacher may be named beside each of its students
  once = {(c.metric, c.seed, c.teacher_seed, c.attack, c.norm, c.eps): c for c in teacher}
  found = list(dict.fromkeys((c.method, c.base, c.labels) for c in students))
  order = list(dict.fromkeys([*methods, *(str(method) for method, *_ in found)]))
  table = [Row("teacher", None, None, tuple(once.values()))]
  for method in order:
    kinds = [kind for kind in found if str(kind[0]) == method] or [(method, None, None)]
    table += [_row(students, kind, kinds) for kind in kinds]
  return table


def controls(cells: Sequence[Cell], methods: Sequence[str]) -> list[Row]:
  """The same students of a clean teacher."""
  clean = [dataclasses.replace(c, teacher="poisoned") for c in cells if control(c)]
  return [row for row in rows(clean, methods) if row.cells]


def control(cell: Cell) -> bool:
  """Whether it is of a clean teacher that stands beside the poisoned one, or of its student."""
  return cell.teacher == "clean" and cell.backdoor != "none"


def columns(cells: Sequence[Cell]) -> Sequence[str]:
  """What a table of these cells has: without a backdoor, nothing that asks for a trigger; target
  ACC where it was measured, which older runs lack."""
  if cells and all(c.backdoor == "none" for c in cells):
    return "acc", "fidelity"
  known = any(c.value is not None for c in select(cells, metric="target_acc"))
  return [name for name in COLUMNS if name != "target_acc" or known]


def entry(row: Row, metric: str) -> dict[str, str]:
  """What the table shows: the mean, and on a second line the worst seed or the interval."""
  cells, summary = row.of(metric), row.over(metric)
  if summary is None:
    return {"main": NOT_MEASURED, "sub": ""}
  known = [value for value in summary["points"] if value is not None]
  if known and summary["mean"] is None:
    mean = number(metric, sum(known) / len(known))
    return {"main": mean, "sub": f"{len(known)} of {len(cells)} seeds"}
  if summary["mean"] is None:
    sub = ""
  elif len(cells) == 1:
    sub = interval(metric, cells[0].ci95)
  else:
    sub = f"worst {number(metric, summary['worst'])}"
  return {"main": number(metric, summary["mean"]), "sub": sub}


def every_seed(table: Sequence[Row]) -> list[dict[str, Any]]:
  """One line per row and seed with each value's own interval, then the mean with its t-interval."""
  lines = []
  for row in table:
    seeds = list(dict.fromkeys((c.seed, c.teacher_seed) for c in in_order(row.cells)))
    for seed, teacher_seed in seeds:
      own = select(row.cells, seed=seed, teacher_seed=teacher_seed)
      shown = {m: _point(select(own, metric=m)) for m in COLUMNS}
      lines.append({"label": row.label, "seed": _seed(seed, teacher_seed), "entries": shown})
    if len(seeds) > 1:
      shown = {m: _mean(m, row.over(m)) for m in COLUMNS}
      lines.append({"label": row.label, "seed": "mean", "entries": shown})
  return lines


def rounds(cells: Sequence[Cell]) -> list[dict[str, str]]:
  """Per method and round, how much of the pool was kept, and how much of its triggered part."""
  lines = []
  counted = [c for c in cells if c.metric in ("kept", "kept_triggered") and not control(c)]
  for method, network in dict.fromkeys((c.method, c.network) for c in counted):
    own = tuple(select(counted, method=method, network=network))
    row = Row(str(network), method, None, own)
    kept, triggered = entry(row, "kept"), entry(row, "kept_triggered")
    lines.append(
      {"method": str(method), "round": str(network), "kept": kept, "triggered": triggered}
    )
  return lines


def others(cells: Sequence[Cell], shown: Sequence[Cell]) -> list[dict[str, str]]:
  """What was measured beyond the tables: other networks, metrics, variants."""
  seen, lines = set(shown), []
  for c in cells:
    if c in seen or (c.metric in ("kept", "kept_triggered") and not control(c)):
      continue
    eps = "" if c.eps is None else f"{c.norm or ''} ≤ {c.eps:.4g}"
    ours = (c.attack, eps, c.variant if c.variant != "f32" else "", c.at if c.at != "last" else "")
    lines.append(
      {
        "who": " · ".join(str(x) for x in (c.method, c.network) if x),
        "teacher": c.teacher or NOT_MEASURED,
        "seed": _seed(c.seed, c.teacher_seed),
        "metric": term(c.metric),
        "value": " ".join(filter(None, (number(c.metric, c.value), c.unit))),
        "ci95": interval(c.metric, c.ci95),
        "note": ", ".join(x for x in (*ours, "oracle" if c.oracle else "") if x),
      }
    )
  return lines


def _covers(general: Sequence[Any], special: Sequence[Any]) -> bool:
  return all(a is None or a == b for a, b in zip(general, special, strict=True))


def _row(students: Sequence[Cell], kind: tuple[Any, ...], kinds: Sequence[tuple[Any, ...]]) -> Row:
  method, base, labels = kind
  notes = [f"on {base}"] if base and len({k[1] for k in kinds}) > 1 else []
  notes += [f"{percent(labels)} labels"] if len({k[2] for k in kinds}) > 1 and labels else []
  own = select(students, method=method, base=base, labels=labels)
  return Row(str(method) + (f" ({', '.join(notes)})" if notes else ""), method, base, tuple(own))


def _point(cells: Sequence[Cell]) -> dict[str, str]:
  if not cells:
    return {"main": NOT_MEASURED, "sub": ""}
  cell = cells[0]
  return {"main": number(cell.metric, cell.value), "sub": interval(cell.metric, cell.ci95)}


def _mean(metric: str, summary: OverSeeds | None) -> dict[str, str]:
  if summary is None:
    return {"main": NOT_MEASURED, "sub": ""}
  return {"main": number(metric, summary["mean"]), "sub": interval(metric, summary["interval"])}


def _seed(seed: int | None, teacher_seed: int | None) -> str:
  if teacher_seed is None or teacher_seed == seed:
    return NOT_MEASURED if seed is None else str(seed)
  return f"{NOT_MEASURED if seed is None else seed} (teacher {teacher_seed})"
