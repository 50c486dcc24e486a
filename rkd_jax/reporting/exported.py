"""exports.json: which files were made of a run's networks, and what was measured on them."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from rkd_jax.errors import UserError
from rkd_jax.reporting.cost import memory
from rkd_jax.reporting.files import read_json
from rkd_jax.reporting.formats import NOT_MEASURED, UNKNOWN, percent, term
from rkd_jax.reporting.page import mapping, mappings, words

SCHEMA = 1
FILE = "exports.json"
RATES = ("acc", "asr", "ra")
FIRST = ("name", "File", 0)  # a column: a line's key, its name, whether it holds numbers
Record = dict[str, Any]


def read(workdir: pathlib.Path) -> list[Record]:
  """The records of a workdir; none where nothing was exported; a `UserError` for a broken file."""
  path = workdir / FILE
  if not path.is_file():
    return []
  document = read_json(path)
  fits = isinstance(document, dict) and document.get("schema") == SCHEMA
  records = document.get("exports") if fits else None
  if not isinstance(records, list) or not all(_is_record(one) for one in records):
    raise UserError(f"{path} is no record of exports of this version. Delete it and export again.")
  return records


def _is_record(record: Any) -> bool:
  keys = ("name", "format", "precision", "file", "cells", "jax", "check", "latency")
  return isinstance(record, dict) and all(key in record for key in keys)


def section(workdir: pathlib.Path) -> dict[str, Any] | None:
  """What the page shows of them; None where nothing was exported.

  Returns:
    {"lines": for two tables, "answers", "costs": their columns, "processors": on which they were
     timed, "busy": whether these had other work, "jax": its latencies in words, "jax_of": for which
     network}.
  """
  records = read(workdir)
  if not records:
    return None
  batches = sorted({one["batch"] for r in records for one in _timed(r)})
  timed = [record for record in records if _timed(record, "jax")][:1]
  answers = [("precision", "Precision", 0), *((metric, term(metric), 1) for metric in RATES)]
  answers += [("same", "As JAX", 1), ("apart", "Logits apart", 1)]
  costs = [("size", "Size", 1), ("params", "Parameters", 1), ("macs", "MACs", 1)]
  costs += [(f"batch{n}", f"Latency of {n}, ms", 1) for n in batches]
  return {
    "lines": [_line(record, batches) for record in records],
    "answers": [FIRST, *answers],
    "costs": [FIRST, *costs],
    "processors": "; ".join(
      dict.fromkeys(_processor(mapping(r.get("processor"))) for r in records)
    ),
    "busy": any(_busy(mapping(record.get("processor"))) for record in records),
    "jax": [_jax(timed, n) for n in batches],
    "jax_of": words(timed[0].get("title")) if timed else "",
  }


def markdown(workdir: pathlib.Path, left_out: Sequence[str] = ()) -> str:
  """The table as Markdown, without the columns of these keys; "" where nothing was exported."""
  found = section(workdir)
  if not found:
    return ""
  columns = [FIRST, *found["answers"][1:], *found["costs"][1:]]
  columns = [column for column in columns if column[0] not in left_out]
  lines = [[line[key] for key, _, _ in columns] for line in found["lines"]]
  rows = [[name for _, name, _ in columns], ["---"] * len(columns), *lines]
  return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _line(record: Record, batches: Sequence[int]) -> dict[str, str]:
  checked = mapping(mapping(record["check"]).get("clean"))
  mine, jax = _values(record["cells"]), _values(record["jax"])
  same, images = checked.get("same"), checked.get("images")
  apart = checked.get("max_difference")
  return {
    "name": str(record["name"]),
    "precision": "float32" if record["precision"] == "f32" else str(record["precision"]),
    "size": memory(record.get("bytes")),
    "params": _count(record.get("params")),
    "macs": _count(record.get("macs")),
    "same": percent(same / images) if images and same is not None else NOT_MEASURED,
    "apart": f"{apart:.2g}" if isinstance(apart, float) else NOT_MEASURED,
    **{metric: _changed(mine.get(metric), jax.get(metric)) for metric in RATES},
    **{f"batch{n}": _milliseconds(_timed(record), n) for n in batches},
  }


def _values(cells: Any) -> dict[str, float | None]:
  return {str(cell.get("metric")): cell.get("value") for cell in mappings(cells)}


def _changed(mine: float | None, jax: float | None) -> str:
  """A share, and by how many points it is not JAX's."""
  if mine is None:
    return UNKNOWN
  points = 0 if jax is None else round(100 * (mine - jax), 1)
  return percent(mine) + (f" ({points:+.1f})".replace("-", "\u2212") if points else "")


def _timed(record: Record, runtime: str = "") -> list[Mapping[str, Any]]:
  """Its latencies: of the file's own runtime, or of "jax"."""
  found = mappings(record["latency"])
  return [one for one in found if (one.get("runtime") == "jax") == (runtime == "jax")]


def _milliseconds(timed: Sequence[Mapping[str, Any]], batch: int) -> str:
  found = [one for one in timed if one.get("batch") == batch]
  if not found:
    return NOT_MEASURED
  return " / ".join(f"{found[0][share]:.3g}" for share in ("p50", "p95", "fastest"))


def _jax(records: Sequence[Record], batch: int) -> str:
  """How long JAX itself takes for a batch, in words."""
  timed = [one for record in records for one in _timed(record, "jax")]
  return f"{_milliseconds(timed, batch)} ms for {batch}"


def _processor(of: Mapping[str, Any]) -> str:
  return f"{words(of.get('name'))} ({words(of.get('cores'))} cores)"


def _busy(of: Mapping[str, Any]) -> bool:
  """Whether more wanted to run than there were cores."""
  load, cores = of.get("load"), of.get("cores")
  return isinstance(load, float | int) and isinstance(cores, int) and load > cores + 1


def _count(value: Any) -> str:
  return f"{value:,}" if isinstance(value, int) else NOT_MEASURED
