"""comparison.html: several runs beside each other, on one page made from their results.json."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from rkd_jax.errors import UserError
from rkd_jax.reporting import cost, figures, headline, page, rerun, results, table, withstood
from rkd_jax.reporting.formats import NOT_MEASURED, percent
from rkd_jax.reporting.page import mapping, mappings, words
from rkd_jax.reporting.results import Cell

Key = tuple[str | None, float | None]  # a method (None: the teacher), its labelled fraction
MOST_LETTERS = 80  # of a config's value
CONTENTS = {"comparison": "Networks", "plane": "ACC and ASR", "settings": "Settings"}


def write(workdirs: Sequence[pathlib.Path], path: pathlib.Path) -> pathlib.Path:
  """Writes one page about several runs into `path`; a `UserError` for broken or repeated runs."""
  places = [workdir.resolve() for workdir in workdirs]
  for i, place in enumerate(places):
    if place in places[:i]:
      raise UserError(f"{workdirs[i]} is given twice; give each run once.")
  names = [place.name for place in places]
  read = {  # two runs of one name are told apart by where they are
    name if names.count(name) == 1 else str(workdir): results.read(workdir / "results.json")
    for name, workdir in zip(names, workdirs, strict=True)
  }
  return page.write(path, "comparison.html.jinja", _context(read))


def _context(runs: Mapping[str, tuple[dict[str, Any], list[Cell]]]) -> dict[str, Any]:
  columns = [c for name, (manifest, cells) in runs.items() for c in _columns(name, manifest, cells)]
  keys = list(dict.fromkeys(key for column in columns for key in column["rows"]))
  labels = [_label(key, keys) for key in keys]
  differing = differences([mapping(manifest.get("config")) for manifest, _ in runs.values()])
  return {
    "title": f"{len(runs)} runs compared",
    "columns": columns,
    "lost": any("class lost" in column["outcomes"].values() for column in columns),
    "lines": [
      {"label": label, "cells": [_cell(column, key) for column in columns]}
      for label, key in zip(labels, keys, strict=True)
    ],
    "planes": [
      {"name": column["name"], "drawing": drawn}
      for column in columns
      if (drawn := figures.plane(_relabelled(column, keys), labels))
    ],
    "legend": labels,
    "settings": [line for line in differing if line["everywhere"]],
    "partial": [line for line in differing if not line["everywhere"]],
    "names": list(runs),
    "runs": [_facts(name, manifest) for name, (manifest, _) in runs.items()],
    "contents": [*CONTENTS.items(), ("glossary", "Glossary")],
    "used": [name for name in page.TERMS if name in ("acc", "asr", "backdoor", "undefended")],
  }


def differences(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """[{"key", "values": of each config, "everywhere": whether all have it}] of what differs."""
  flat = [rerun.flat(config) for config in configs]
  keys = dict.fromkeys(key for one in flat for key in one)
  found = [(key, [one.get(key, NOT_MEASURED) for one in flat]) for key in keys]
  return [
    {"key": key, "values": [_short(v) for v in values], "everywhere": NOT_MEASURED not in values}
    for key, values in found
    if len(set(values)) > 1
  ]


def _columns(name: str, manifest: Mapping[str, Any], cells: Sequence[Cell]) -> list[dict[str, Any]]:
  """One for each setting (data set, threat, backdoor) of a run."""
  comparable, found = table.plain(cells), []
  settings = table.settings(comparable)
  for setting in settings:
    own = table.within(comparable, setting)
    rows = table.rows(own, page.methods(mapping(manifest.get("config"))))
    title = " · ".join(str(setting[f]) for f in ("dataset", "backdoor") if setting[f])
    verdicts = withstood.judged(rows, "the target class")
    found.append(
      {
        "name": name if len(settings) == 1 else f"{name}, {title}",
        "title": title,
        "rows": {(row.method, row.cells[0].labels): row for row in rows if row.cells},
        "headline": headline.make(verdicts),
        "outcomes": {v.label: v.outcome for v in verdicts},
      }
    )
  return found


def _label(key: Key, keys: Sequence[Key]) -> str:
  """A network's name, with its share of labels where that tells two apart."""
  method, labels = key
  several = len({other for name, other in keys if name == method}) > 1
  return f"{method or 'teacher'} ({percent(labels)} labels)" if several else method or "teacher"


def _relabelled(column: Mapping[str, Any], keys: Sequence[Key]) -> list[table.Row]:
  rows = column["rows"].items()
  return [dataclasses.replace(row, label=_label(key, keys)) for key, row in rows]


def _cell(column: Mapping[str, Any], key: Key) -> dict[str, str] | None:
  """A network in one run: mean accuracy, mean and worst ASR, what the verdict says."""
  row = column["rows"].get(key)
  if row is None:
    return None
  several = len(row.of("asr")) > 1
  known = {name: row.over(name) is not None for name in ("acc", "asr")}
  return {
    "acc": percent(row.mean("acc")) if known["acc"] else NOT_MEASURED,
    "asr": percent(row.mean("asr")) if known["asr"] else NOT_MEASURED,
    "worst": f"worst {percent(row.worst('asr'))}" if several and known["asr"] else "",
    "outcome": column["outcomes"].get(row.label, ""),
  }


def _facts(name: str, manifest: Mapping[str, Any]) -> dict[str, str]:
  """A run's line in the table of runs."""
  versions = mapping(manifest.get("versions"))
  return {
    "name": name,
    "config": words(manifest.get("config_name")),
    "seeds": words(manifest.get("seeds")),
    "time": cost.duration(cost.seconds(mappings(manifest.get("phases")))),
    "devices": words(sorted({str(d) for d in manifest.get("devices") or ()})),
    "version": words(versions.get("rkd_jax")),
    "git": words(manifest.get("git"))[:12],
  }


def _short(text: str) -> str:
  return text if len(text) <= MOST_LETTERS else text[: MOST_LETTERS - 1] + "…"
