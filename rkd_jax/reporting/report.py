"""report.html: what a run found, on one page that asks nothing of the network.

Made from the files of the run's folder alone (results.json, examples.npz, the phases'
metrics.jsonl), so it can be made again at any time, on any machine.
"""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

import rkd_jax
from rkd_jax.reporting import figures, results, svg, table, verdict
from rkd_jax.reporting.files import atomic_write
from rkd_jax.reporting.formats import NOT_MEASURED, TERMS, percent
from rkd_jax.reporting.results import Cell


def write(workdir: str | os.PathLike) -> pathlib.Path:
  """Writes `workdir`/report.html and returns its path. Raises a `UserError` for broken files."""
  workdir = pathlib.Path(workdir)
  manifest, cells = results.read(workdir / "results.json")
  path, template = workdir / "report.html", _environment().get_template("report.html.jinja")
  atomic_write(path, template.render(**_context(workdir, manifest, cells)))
  return path


def _environment() -> jinja2.Environment:
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader("rkd_jax", "reporting"),
    autoescape=True,  # class names, paths and configs are other people's text
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters |= {"words": _words, "amount": _amount}
  return environment


def _context(workdir: pathlib.Path, run: dict[str, Any], cells: Sequence[Cell]) -> dict[str, Any]:
  config, data = _mapping(run.get("config")), _mapping(run.get("data"))
  classes = data.get("classes") or []
  phases = [phase for phase in run.get("phases") or [] if isinstance(phase, dict)]
  sections = [_section(cells, s, config, classes) for s in table.settings(table.plain(cells))]
  shown = {cell for section in sections for cell in section["cells"]}
  return {
    "run": run,
    "data": data,
    "phases": phases,
    "config": json.dumps(config, indent=2, ensure_ascii=False),
    "sections": sections,
    "strengths": [_choice(s) for s in run.get("selection") or [] if isinstance(s, dict)],
    "others": table.others(cells, list(shown)),
    "columns": table.COLUMNS,
    "terms": TERMS,
    "limits": {
      "asr": percent(verdict.REMOVED_ASR),
      "carried": percent(verdict.REMOVED_CARRIED),
    },
    "curves": figures.training(workdir, phases),
    "examples": figures.examples(workdir / "examples.npz", classes),
    "marker": svg.marker,
    "version": rkd_jax.__version__,
  }


def _section(
  cells: Sequence[Cell], setting: dict[str, Any], config: Mapping[str, Any], classes: Sequence[str]
) -> dict[str, Any]:
  own = table.within(table.plain(cells), setting)
  methods = _methods(config)
  rows, controls = table.rows(own, methods), table.controls(own, methods)
  return {
    "title": " · ".join(str(setting[f]) for f in ("dataset", "backdoor") if setting[f]),
    "threat": _threat(own, setting),
    "verdicts": verdict.verdicts(rows, _target(config, classes)),
    "rows": _entries(rows),
    "controls": _entries(controls),
    "seeds": table.every_seed(rows),
    "several": any(len(row.of("acc")) > 1 for row in rows),
    "rounds": table.rounds(own),
    "plane": figures.plane(rows),
    "cells": [c for c in own if c.metric in table.COLUMNS and c.network in ("teacher", "student")],
  }


def _choice(selected: Mapping[str, Any]) -> dict[str, str]:
  """How one strength was chosen, as a line of the table."""
  accuracy = _mapping(selected.get("accuracy"))
  tried = ", ".join(f"{value}: {percent(share)}" for value, share in accuracy.items())
  shown = ("method", "seed", "teacher", "strength", "chosen")
  return {key: _words(selected.get(key)) for key in shown} | {"accuracy": tried}


def _entries(rows: Sequence[table.Row]) -> list[dict[str, Any]]:
  return [
    {"label": row.label, "entries": {m: table.entry(row, m) for m in table.COLUMNS}} for row in rows
  ]


def _methods(config: Mapping[str, Any]) -> list[str]:
  """The methods in the config's order: names, or mappings with a name."""
  given = config.get("methods") or config.get("method") or []
  given = given if isinstance(given, (list, tuple)) else [given]
  return [str(m.get("name") if isinstance(m, Mapping) else m) for m in given]


def _threat(cells: Sequence[Cell], setting: Mapping[str, Any]) -> str:
  """Threat model, labels and what ASR leaves out, in words."""
  threat, share = setting["threat"] or "not stated", setting["contamination"]
  labels = sorted({c.labels for c in cells if c.labels is not None and c.network == "student"})
  shares = " or ".join(percent(x) if 0 < x < 1 else {0: "none", 1: "all"}[int(x)] for x in labels)
  pool = f", {percent(share)} of the unlabelled pool carries the trigger" if share else ""
  return (
    f"Threat model: {threat}{pool}. Labelled training images: {shares or 'not stated'}."
    " Images of the target class are left out of ASR and RA."
  )


def _target(config: Mapping[str, Any], classes: Sequence[str]) -> str:
  target = config.get("target")
  if not isinstance(target, int):
    return "the target class"
  name = str(classes[target]) if 0 <= target < len(classes) else str(target)
  return f"class {name}" if name == str(target) else f"class {target} ({name})"


def _mapping(value: Any) -> Mapping[str, Any]:
  return value if isinstance(value, Mapping) else {}


def _amount(value: Any) -> str:
  return f"{value:,.1f}" if isinstance(value, (int, float)) else NOT_MEASURED


def _words(value: Any) -> str:
  """A manifest's entry on one line."""
  if value is None or value == "" or value == [] or value == {}:
    return "unknown"
  if isinstance(value, Mapping):
    return ", ".join(f"{key} {_words(item)}" for key, item in value.items())
  if isinstance(value, (list, tuple)):
    return ", ".join(_words(item) for item in value)
  return str(value)
