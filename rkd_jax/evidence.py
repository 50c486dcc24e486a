"""Whether a finished run's results.json follows from the predictions beside it."""

import dataclasses
import json
import pathlib
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rkd_jax.errors import UserError
from rkd_jax.evaluation import recount
from rkd_jax.evaluation.recount import Arrays
from rkd_jax.export import ledger
from rkd_jax.reporting import exported, results
from rkd_jax.reporting.files import sha256, to_json
from rkd_jax.reporting.results import FIELDS, MEASURED, Cell
from rkd_jax.selection import largest

LARGEST = 4 << 30  # bytes of a predictions file, unpacked
HOLDOUT = re.compile(r"(.+)/(poisoned|clean)/([^/=]+)=([^=:]+):holdout")
OLDER = "it was made by an older version"
Key = tuple[str, ...]


@dataclasses.dataclass
class Evidence:
  """What was found of one run.

  Attributes:
    cells, files, strengths: how many were made again, read, and chosen again; of exports too.
    differences: what does not follow, one sentence each; none in a run that holds.
    unverified: what could not be looked at, and why.
    absent: metrics that the run lacks altogether, as runs of an older version do.
  """

  cells: int = 0
  files: int = 0
  strengths: int = 0
  differences: list[str] = dataclasses.field(default_factory=list)
  unverified: list[str] = dataclasses.field(default_factory=list)
  absent: list[str] = dataclasses.field(default_factory=list)


def check(directory: pathlib.Path) -> Evidence:
  """Makes every number of a run's results.json again.

  Raises:
    UserError: the directory holds no run, or its files cannot be read.
  """
  document = results.read_document(directory / "results.json")
  run, found = document["run"], Evidence()
  found.differences += _edited(directory / "results.json", document, found)
  cells = []
  for number, fields in enumerate(document["cells"], 1):
    try:
      cells.append(results.cell(fields))
    except (TypeError, ValueError) as error:
      found.differences.append(f"cell {number} is none: {error}")
  try:
    seeds = _seeds(run)
    found.differences += _files(directory, run, seeds, found)
    expected: list[Cell] = []
    for seed in seeds:
      arrays = read_arrays(directory / recount.saved(seed))
      expected += _of_seed(run, arrays, cells, seed, found)
  except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
    why = f"the predictions do not fit what results.json says of the run ({_told(error)})"
    if not found.differences:
      raise UserError(f"{directory}: {why}.") from error
    found.differences.append(f"{why}; no cell was made again")
    return found
  found.absent = sorted(recount.ADDED - {cell.metric for cell in cells})
  expected = [cell for cell in expected if cell.metric not in found.absent]
  found.differences += compared(document["cells"], expected)
  found.cells = len(expected)
  _exports(directory, found)
  return found


def _exports(directory: pathlib.Path, found: Evidence) -> None:
  """What was measured on the networks that were exported, from the predictions beside them."""
  if not (directory / exported.FILE).is_file():
    return
  try:
    found.differences += ledger.recounted(directory, read_arrays)
    records = exported.read(directory)
  except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
    found.differences.append(f"{exported.FILE} does not fit its predictions ({_told(error)})")
    return
  found.cells += sum(len(record["cells"]) + len(record["jax"]) for record in records)
  found.files += len(records)


def _edited(path: pathlib.Path, document: Mapping[str, Any], found: Evidence) -> Iterator[str]:
  """The file as a whole: the digest it carries, and the way that a run writes it."""
  if "sha256" not in document:
    found.unverified.append(
      f"results.json carries no digest of itself: {OLDER}. What no prediction says (times, "
      "versions, digests of phases) may have been edited."
    )
  elif document["sha256"] != results.seal(document):
    yield "results.json was edited after it was written: its digest is another"
  if path.read_bytes() != to_json(document).encode(errors="backslashreplace"):
    yield "results.json is not written as a run writes it; something in it was edited"


def _told(error: Exception) -> str:
  return f"they lack {error}" if isinstance(error, KeyError) else str(error)


def _seeds(run: Mapping[str, Any]) -> list[int]:
  seeds = run["seeds"]
  if not isinstance(seeds, list) or not all(type(seed) is int and seed >= 0 for seed in seeds):
    raise ValueError(f"its seeds are {seeds!r}")
  return seeds


def _files(
  directory: pathlib.Path, run: Mapping[str, Any], seeds: Sequence[int], found: Evidence
) -> Iterator[str]:
  """Which predictions there are, and whether they are those that the run left."""
  if list(run["config"]["seeds"]) != seeds:
    yield f"the manifest names the seeds {seeds}, its config {list(run['config']['seeds'])}"
  wanted = {recount.saved(seed): seed for seed in seeds}
  there = {f"predictions/{path.name}" for path in directory.glob("predictions/*.npz")}
  yield from (f"{name} belongs to no seed of the run" for name in sorted(there - set(wanted)))
  made = {name: sha256(directory / name) for name in wanted}
  found.files = len(made)
  if "predictions" not in run:
    found.unverified.append(
      f"the manifest does not name the digests of the predictions: {OLDER}. They may be another "
      "run's whose numbers are the same."
    )
    return
  for name in sorted({*made, *run["predictions"]}):
    if made.get(name) != run["predictions"].get(name):
      yield f"{name} is not the file that the run left: its SHA-256 is another"


def _of_seed(
  run: Mapping[str, Any], arrays: Arrays, cells: Sequence[Cell], seed: int, found: Evidence
) -> list[Cell]:
  """The cells that a seed's predictions make; what else they say is compared right away."""
  if "comparisons" in run:
    compared = [one for one in run["comparisons"] if one["seed"] == seed]
    found.differences += _contradictions(run["config"], compared, seed)
  else:
    compared = recount.inferred(arrays, cells, seed)
    note = (
      f"the manifest does not say what the methods are compared with: {OLDER}. The fields method, "
      "base, labels, threat and contamination, and what DER and RIR refer to, are taken from the "
      "cells themselves."
    )
    found.unverified += [note] if note not in found.unverified else []
  size, sizes = len(arrays["labels"]), run["data"]["sizes"]
  if sizes["test"] != size:
    found.differences.append(f"seed {seed} has {size} test images, the manifest {sizes['test']}")
  missing = recount.untold(arrays, compared, run["config"]["labels"])
  found.differences += [f"seed {seed}: the cells of {name} are missing" for name in missing]
  found.differences += _choices(run.get("selection") or [], arrays, seed, found)
  found.differences += _recounted(arrays, [c for c in cells if c.seed == seed])
  return recount.cells(arrays, run, seed, compared)


def _contradictions(
  config: Mapping[str, Any], compared: Sequence[Mapping[str, Any]], seed: int
) -> Iterator[str]:
  """What the manifest says of its methods, beside its own config."""
  labels = [one["label"] for one in compared]
  named = [label for label in labels if not label.startswith("none/")]
  if named != list(config["methods"]):
    yield f"seed {seed} compares {named}, the config {list(config['methods'])}"
  pool = config["contamination"]
  for one in compared:
    fields, who = one["fields"], f"seed {seed}: {one['label']}"
    share = (
      one["label"].removeprefix("none/") if one["label"] not in named else f"{config['labels']:g}"
    )
    if f"{fields['labels']:g}" != share:
      yield f"{who} has {fields['labels']:g} labels there, {share} by the config"
    if fields["threat"] not in (None, "data-free", "contaminated" if pool else "clean"):
      yield f"{who} is {fields['threat']} there; the config's contamination is {pool:g}"
    if fields["contamination"] not in (None, pool):
      there = f"{fields['contamination']:g}"
      yield f"{who} has a contamination of {there} there, {pool:g} by the config"
    if fields["base"] in labels and one["undefended"] is None:
      yield f"{who} is compared with nothing, though the run has its base {fields['base']}"


def _recounted(arrays: Arrays, cells: Sequence[Cell]) -> Iterator[str]:
  """Hits counted without any of the code that made them."""
  for cell in cells:
    try:
      counted = recount.counted(arrays, cell)
    except KeyError:
      continue  # a cell of a network that was never asked: it is told as one too many
    if counted is not None and counted != (cell.count, cell.n):
      hits, n = counted
      yield f"{named(vars(cell))}: {cell.count} of {cell.n} there, {hits} of {n} counted"


def _choices(
  told: Sequence[Mapping[str, Any]], arrays: Arrays, seed: int, found: Evidence
) -> Iterator[str]:
  """Each strength, chosen again from the hold-out's hits."""
  own = [choice for choice in told if choice["seed"] == seed]
  keys = [(choice["method"], choice["teacher"], choice["strength"]) for choice in own]
  again = chosen(arrays)
  found.strengths += len(again)
  yield from (f"seed {seed}: {key} is chosen twice" for key in set(keys) if keys.count(key) > 1)
  yield from (f"seed {seed}: no predictions chose {key}" for key in keys if key not in again)
  yield from (f"seed {seed}: the choice of {key} is missing" for key in again if key not in keys)
  for key, choice in zip(keys, own, strict=True):
    for field, value in again.get(key, {}).items():
      said = f"{choice[field]:g}" if field == "chosen" else choice[field]
      if _text(said) != _text(value):
        yield f"seed {seed}, strength {' '.join(key)}: {field} is {said} there, {value} by the rule"


def chosen(arrays: Arrays) -> dict[Key, dict[str, Any]]:
  """{(method, teacher, strength): what the rule makes of its students' hits on the hold-out}."""
  grids: dict[Key, dict[float, np.ndarray]] = {}
  for name, hits in arrays.items():
    if match := HOLDOUT.fullmatch(name):
      grids.setdefault(match.groups()[:3], {})[float(match[4])] = hits
  return {
    key: {
      "chosen": f"{largest(hits):g}",
      "holdout": len(hits[0.0]),
      "accuracy": {f"{value:g}": float(np.mean(right)) for value, right in hits.items()},
    }
    for key, hits in grids.items()
  }


def compared(told: Sequence[Any], expected: Sequence[Cell]) -> Iterator[str]:
  """How cells as plain values differ from those that the predictions make."""
  made = {_identity(vars(cell)): vars(cell) for cell in expected}
  found: dict[str, list[Mapping[str, Any]]] = {}
  for cell in told:
    if isinstance(cell, dict):
      found.setdefault(_identity(cell), []).append(cell)
  for key, cells in found.items():
    if len(cells) > 1:
      yield f"{named(cells[0])}: stands there {len(cells)} times"
    if key not in made:
      yield f"{named(cells[0])}: no predictions make this cell"
      continue
    for field in sorted(MEASURED):
      there, here = _text(cells[0].get(field)), _text(made[key][field])
      if there != here:
        yield f"{named(made[key])}: {field} is {there} there, {here} by the predictions"
  yield from (f"{named(made[key])}: the cell is missing" for key in made if key not in found)


def named(cell: Mapping[str, Any]) -> str:
  """A cell in words: what a reader needs to find it."""
  said = [str(cell[name]) for name in ("method", "network") if cell.get(name)]
  said += [f"{cell['teacher']} teacher"] if cell.get("teacher") else []
  usual = {*MEASURED, "method", "network", "teacher", "metric", "seed", "teacher_seed"}
  usual |= {"dataset", "backdoor", "threat", "contamination", "base"}
  defaults = {"variant": "f32", "at": "last", "oracle": False}
  rest = [f"{k} {v}" for k, v in cell.items() if k not in usual and v != defaults.get(k)]
  return ", ".join([" ".join(said), *rest, f"seed {cell.get('seed')}, {cell.get('metric')}"])


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
  """A predictions file; a `UserError` where it is broken, or holds what only pickle can read."""
  try:
    # opened here: numpy leaves a broken archive's file open
    with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
      names, sizes = file.zip.namelist(), [one.file_size for one in file.zip.infolist()]
      if len(set(names)) < len(names) or sum(sizes) > LARGEST:
        raise ValueError("a name stands there twice, or it unpacks to gigabytes")
      arrays = {name: file[name] for name in file.files}
  except FileNotFoundError as error:
    raise UserError(f"There is no file {path}. Copy the run's predictions too.") from error
  except _BROKEN as error:
    raise UserError(f"{path} is no file of predictions: {error}") from error
  _refuse_others(path, arrays)
  return arrays


# numpy, zipfile and zlib each raise their own; RuntimeError: encrypted, AttributeError: an .npy
_BROKEN = (
  *(OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, MemoryError),
  *(RuntimeError, SyntaxError, zipfile.BadZipFile, zlib.error),
)


def _refuse_others(path: pathlib.Path, arrays: Arrays) -> None:
  """Predictions are one whole number for each test image; what was kept or right is a yes or no."""
  size = len(arrays["labels"]) if arrays.get("labels", np.array(0)).ndim == 1 else -1
  for name, array in arrays.items():
    classes = name in ("labels", "goals") or name.endswith(":clean")
    classes |= name.endswith(":triggered") and name != "pool:triggered"
    flags = name.endswith((":kept", ":holdout")) or name.startswith("pool:")
    if (classes and (array.shape != (size,) or array.dtype.kind not in "iu")) or (
      flags and (array.ndim != 1 or array.dtype != bool)
    ):
      raise UserError(f"{path}: {name} is {array.dtype}{list(array.shape)}, no run's predictions.")


def _identity(cell: Mapping[str, Any]) -> str:
  """A cell's fields but for its numbers. Two texts differ where 1, 1.0 and true do."""
  return _text([cell.get(name) for name in FIELDS if name not in MEASURED])


def _text(value: Any) -> str:
  return json.dumps(value, default=str)
