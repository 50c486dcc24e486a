"""exports.json: what was exported of a run, checked and measured; and its numbers made again.

`<workdir>/exports.json`: {"schema": 1, "exports": [record, ...], "sha256": ...}. A record's "cells"
are cells as results.json has them, of the variant "<format>-<precision>"; those that are counted
follow from its predictions file, and `recounted` counts them. Pure numpy.
"""

import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rkd_jax.evaluation import metrics, protocol, recount
from rkd_jax.evaluation.protocol import Fields, Truth
from rkd_jax.reporting import results
from rkd_jax.reporting.exported import FILE, RATES, SCHEMA, Record, read
from rkd_jax.reporting.files import read_json, sha256, write_json
from rkd_jax.reporting.results import FIELDS, Cell

FOLDER = "exports"
Arrays = Mapping[str, np.ndarray]


def add(workdir: pathlib.Path, records: Sequence[Record]) -> None:
  """Puts records into the workdir's file, in place of those of the same names; atomically."""
  new = {str(record["name"]): record for record in records}
  kept = [record for record in read(workdir) if record["name"] not in new]
  document = {"schema": SCHEMA, "exports": [*kept, *records]}
  write_json(workdir / FILE, {**document, "sha256": results.seal(document)})


def filled(
  workdir: pathlib.Path, record: Record, saved: pathlib.Path, arrays: Arrays, of: Fields
) -> Record:
  """The record with its cells, and with digests of its files.

  Args:
    record: "file" is the model's path; it becomes relative to the workdir where it lies there.
    saved: of the predictions, within the workdir.
    of: see `fields`.
  """
  path, shared = pathlib.Path(record["file"]), fields(of, record)
  whole, root = path.absolute(), workdir.absolute()
  record["file"] = str(whole.relative_to(root) if whole.is_relative_to(root) else whole)
  record["sha256"] = sha256(path)
  record["predictions"] = {"file": str(saved.relative_to(workdir)), "sha256": sha256(saved)}
  record["of"] = of
  record["cells"] = plain(counted(arrays, shared, "export")) + plain(amounts(record, shared))
  record["jax"] = plain(counted(arrays, shared | {"variant": "f32"}, "jax"))
  return record


def fields(of: Mapping[str, Any], record: Mapping[str, Any]) -> Fields:
  """The fields that all cells of an export share.

  Args:
    of: "dataset", "backdoor", "network", "method", "teacher", "seed".
    record: "format" and "precision".
  """
  return {**of, "variant": f"{record['format']}-{record['precision']}"}


def counted(arrays: Arrays, shared: Fields, whose: str) -> list[Cell]:
  """ACC, ASR and RA of one network, and of the exported one how often it agrees with JAX.

  Args:
    arrays: of the predictions file: "labels", "goals", "jax:clean", "export:triggered", ...
    whose: "jax" or "export".
  """
  truth = Truth(arrays["labels"], arrays["goals"])
  cells = protocol.rates(truth, recount.answers(arrays, whose), shared)
  cells = [cell for cell in cells if cell.metric in RATES]
  if whose == "jax":
    return cells
  same = metrics.fidelity(arrays[f"{whose}:clean"], arrays["jax:clean"])
  return [*cells, Cell(metric="fidelity", attack="against JAX", **shared, **same.fields())]


def amounts(record: Mapping[str, Any], shared: Fields) -> list[Cell]:
  """Size, parameters, multiply-adds and latencies as cells."""
  cells = [
    Cell(metric=name, value=record[key], unit=unit, **shared)
    for name, key, unit in (
      ("size", "bytes", "bytes"),
      ("params", "params", None),
      ("macs", "macs", "multiply-adds of one image"),
    )
  ]
  for one in record["latency"]:
    for share in ("p50", "p95", "fastest"):
      unit = f"ms, {share}, batch {one['batch']}, {one['runtime']}"
      cells.append(Cell(metric="latency", value=one[share], unit=unit, **shared))
  return cells


def plain(cells: Sequence[Cell]) -> list[dict[str, Any]]:
  return [{name: getattr(cell, name) for name in FIELDS} for cell in cells]


def recounted(workdir: pathlib.Path, read_arrays: Any) -> Iterator[str]:
  """What in a workdir's exports.json does not follow from the files beside it, a sentence each.

  `read_arrays`: reads a predictions file.
  """
  document = read_json(workdir / FILE)
  if document.get("sha256") != results.seal(document):
    yield f"{FILE} was edited after it was written: its digest is another"
  for record in read(workdir):
    yield from (f"{FILE}, {record['name']}: {text}" for text in _of(workdir, record, read_arrays))


def _of(workdir: pathlib.Path, record: Record, read_arrays: Any) -> Iterator[str]:
  model = workdir / str(record["file"])
  if model.is_file() and sha256(model) != record["sha256"]:
    yield f"{record['file']} is not the file that was measured: its SHA-256 is another"
  if model.is_file() and model.stat().st_size != record["bytes"]:
    yield f"{record['file']} has {model.stat().st_size} bytes, not {record['bytes']}"
  saved, seed = record["predictions"], int(record["of"]["seed"])
  path = workdir / str(saved["file"])
  arrays = read_arrays(path)
  if sha256(path) != saved["sha256"]:
    yield f"{saved['file']} is not the file that was left: its SHA-256 is another"
  test = read_arrays(workdir / recount.saved(seed))
  if any(not np.array_equal(test[name], arrays[name]) for name in ("labels", "goals")):
    yield f"{saved['file']} is of another test set than {recount.saved(seed)}"
  shared = fields(record["of"], record)
  made = plain(counted(arrays, shared, "export")) + plain(amounts(record, shared))
  yield from _different(record["cells"], made)
  jax = plain(counted(arrays, shared | {"variant": "f32"}, "jax"))
  yield from (f"JAX's {text}" for text in _different(record["jax"], jax))
  for how in ("clean", "triggered"):
    same = int(np.count_nonzero(arrays[f"jax:{how}"] == arrays[f"export:{how}"]))
    if record["check"][how]["same"] != same:
      yield f"{same} {how} images agree with JAX, not {record['check'][how]['same']}"


def _different(told: Sequence[Any], made: Sequence[Mapping[str, Any]]) -> Iterator[str]:
  """How cells as plain values differ from those that were made again."""
  if len(told) != len(made):
    yield f"{len(told)} cells are there, {len(made)} by the predictions"
    return
  for there, here in zip(told, made, strict=True):
    for name in FIELDS:
      a, b = json.dumps(there.get(name)), json.dumps(here[name])
      if a != b:
        yield f"{here['metric']}: {name} is {a} there, {b} made again"
