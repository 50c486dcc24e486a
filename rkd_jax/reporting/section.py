"""One setting of a run (data set, threat, backdoor): all that the page says of it."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from rkd_jax.reporting import (
  figures,
  headline,
  page,
  perclass,
  pictures,
  table,
  withstood,
)
from rkd_jax.reporting.formats import percent
from rkd_jax.reporting.page import mapping
from rkd_jax.reporting.results import Cell

Setting = dict[str, Any]


def make(
  workdir: pathlib.Path, run: Mapping[str, Any], cells: Sequence[Cell], setting: Setting
) -> dict[str, Any]:
  """What the templates show of it.

  Args:
    workdir: whose predictions are counted by class.
    run: the manifest.
    cells: all of the run.
    setting: as `table.settings` gives it.
  """
  config, data = mapping(run.get("config")), mapping(run.get("data"))
  classes = data.get("classes") or []
  own = table.within(table.plain(cells), setting)
  methods = page.methods(config)
  rows, controls = table.rows(own, methods), table.controls(own, methods)
  found = withstood.judged(rows, _target(config, classes))
  seeds = [s for s in run.get("seeds") or sorted({c.seed for c in own if c.seed is not None})]
  drawn = figures.plane(rows)
  shown = {*table.COLUMNS, *withstood.MEASURED, "adv_acc"}
  return {
    "title": " · ".join(str(setting[f]) for f in ("dataset", "backdoor") if setting[f]),
    "threat": _threat(own, setting) + _who(config, data),
    "headline": headline.make(found),
    "verdicts": found,
    "rows": _entries(rows),
    "table": rows,
    "controls": _entries(controls),
    "seeds": table.every_seed(rows),
    "several": any(len(row.of("acc")) > 1 for row in rows),
    "rounds": table.rounds(own),
    "plane": drawn,
    "legend": figures.legend(rows),
    "classes": perclass.table(workdir, seeds, rows, classes),
    "withstood": withstood.section(rows),
    "cells": [c for c in own if c.metric in shown and c.network in ("teacher", "student")],
  }


def _entries(rows: Sequence[table.Row]) -> list[dict[str, Any]]:
  return [
    {"label": row.label, "entries": {m: table.entry(row, m) for m in table.COLUMNS}} for row in rows
  ]


def _threat(cells: Sequence[Cell], setting: Mapping[str, Any]) -> str:
  """Threat model, labels and what ASR leaves out, in words."""
  threat, share = setting["threat"] or "not stated", setting["contamination"]
  if setting["backdoor"] == "unknown":  # what is in a stranger's images is not known either
    threat, share = "unknown; no trigger was put on any image", None
  if setting["backdoor"] == "none":
    threat, share = "no backdoor; changes of test images within a ball", None
  asked = any(c.metric == "asr" for c in cells)
  labels = sorted({c.labels for c in cells if c.labels is not None and c.network == "student"})
  shares = " or ".join(percent(x) if 0 < x < 1 else {0: "none", 1: "all"}[int(x)] for x in labels)
  pool = f", {percent(share)} of the pool (no labelled image) carries the trigger" if share else ""
  return f"Threat model: {threat}{pool}. Labelled training images: {shares or 'not stated'}." + (
    " Images of the target class are left out of ASR and RA." if asked else ""
  )


def _who(config: Mapping[str, Any], data: Mapping[str, Any]) -> str:
  """The architectures, and how many images are behind a rate."""
  teacher, student = (mapping(config.get(key)).get("network") for key in ("teacher", "student"))
  networks = f" The teacher is a {teacher}, the student a {student}." if teacher and student else ""
  count = mapping(data.get("sizes")).get("test")
  return networks + (f" Rates are of {count} test images." if count else "")


def _target(config: Mapping[str, Any], classes: Sequence[str]) -> str:
  target = config.get("target")
  if not isinstance(target, int):
    return "the target class"
  name = pictures.named(target, classes)
  return f"class {name}" if name == str(target) else f"class {target} ({name})"
