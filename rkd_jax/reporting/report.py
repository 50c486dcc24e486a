"""report.html: what a run found, on one page that asks nothing of the network.

Made from the files of the run's folder alone (results.json, predictions/, examples.npz,
analysis.npz, synthetic.npz, the phases' metrics), so it can be made again at any time, on any
machine. All but results.json may be missing: then what they hold is not shown.
"""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from rkd_jax.reporting import (
  audit,
  cost,
  exported,
  figures,
  inside,
  page,
  pictures,
  rerun,
  results,
  section,
  synthetic,
  table,
  verdict,
)
from rkd_jax.reporting.formats import METRICS, percent
from rkd_jax.reporting.page import mapping, mappings, words
from rkd_jax.reporting.results import Cell

Setting = dict[str, Any]
CONTENTS = {  # what may be on the page: its id -> its name
  "comparison": "Comparison",
  "plane": "ACC and ASR",
  "withstood": "Under attack",
  "classes": "By class",
  "images": "Images",
  "variance": "Feature variance",
  "maps": "Embeddings",
  "synthetic": "Synthetic images",
  "training": "Training",
  "audit": "Audit",
  "exported": "Exported models",
  "cost": "Cost",
  "strengths": "Strengths",
  "decisions": "What methods decided",
  "others": "Other measurements",
  "open": "What this does not prove",
  "again": "Run it again",
  "methods": "Methods",
  "glossary": "Glossary",
}


def write(workdir: str | os.PathLike, out: pathlib.Path | None = None) -> pathlib.Path:
  """Writes `workdir`/report.html (or `out`), returns its path; a `UserError` for broken files."""
  workdir = pathlib.Path(workdir)
  manifest, cells = results.read(workdir / "results.json")
  path = out or workdir / "report.html"
  return page.write(path, "report.html.jinja", _context(workdir, manifest, cells))


def _context(workdir: pathlib.Path, run: Mapping[str, Any], cells: Sequence[Cell]) -> Setting:
  config, classes = mapping(run.get("config")), mapping(run.get("data")).get("classes") or []
  phases = mappings(run.get("phases"))
  sections = [section.make(workdir, run, cells, s) for s in table.settings(table.plain(cells))]
  audited = audit.read(workdir, classes)
  for one in sections:
    one["verdicts"] = audit.saw(one["verdicts"], audited)
  shown = [cell for one in sections for cell in one["cells"]]
  context = {
    "title": _title(run, sections),
    "run": run,
    "data": mapping(run.get("data")),
    "phases": [page.phase(p) for p in phases],
    "config": "\n".join(f"{key} = {value}" for key, value in rerun.flat(config).items()),
    "sections": sections,
    "strengths": [_choice(s) for s in mappings(run.get("selection"))],
    "decisions": [_outcome(o) for o in mappings(run.get("outcomes"))],
    "others": table.others(cells, shown),
    "methods": {k: words(v) for k, v in mapping(run.get("methods")).items()},
    "columns": table.columns(shown),
    "curves": figures.training(workdir, phases, mappings(run.get("costs"))),
    "examples": pictures.examples(workdir / "examples.npz", classes),
    "synthetic": synthetic.read(workdir / "synthetic.npz"),
    "teachers": mappings(run.get("teachers")),
    "given": page.given(mapping(run.get("given"))),
    "again": rerun.again(run),
    "audit": audited,
    "exported": exported.section(workdir),
    **_costs(phases, mappings(run.get("costs"))),
    **_inside(workdir, run, sections, classes),
  }
  context["open_questions"] = rerun.limits(cells, context["inside"] is not None)
  return context | {"contents": _contents(context), "used": _used(cells, context)}


def _inside(
  workdir: pathlib.Path, run: Mapping[str, Any], sections: Sequence[Setting], classes: Sequence[str]
) -> dict[str, Any]:
  """The networks' inside, of the teacher, an undefended student and the best defended one."""
  rows = sections[0]["table"]
  best, plain = verdict.best(rows), verdict.undefended(rows)[:1]
  mapped = [str(row.method) for row in (*plain, *([best] if best else []))]
  seeds = run.get("seeds")
  found = inside.read(workdir / "analysis.npz", classes, mapped)
  drawn = {one["title"] for one in found["maps"]} if found else set()
  return {
    "inside": found,
    "drawn_best": str(best.method) if best and str(best.method) in drawn else None,
    "seed": seeds[0] if isinstance(seeds, list) and seeds else words(None),
  }


def _costs(
  phases: Sequence[Mapping[str, Any]], costs: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
  memory = [("device", "Device memory, peak", 1), ("host", "Host memory, peak", 1)]
  remembered = [column for column in memory if cost.peak(phases, column[0]) is not None]
  columns = [("method", "Method", 0), ("phases", "Phases", 1), ("steps", "Steps", 1)]
  columns += [("time", "Time", 1), ("speed", "Images/s", 1)]
  return {
    "cost": cost.table(phases, costs),
    "cost_columns": columns + remembered,
    "costed": bool(costs),
    "remembered": bool(remembered),
    "total": cost.duration(cost.seconds(phases)),
  }


def _contents(context: Mapping[str, Any]) -> list[tuple[str, str]]:
  """The page's parts that are there."""
  first, found = context["sections"][0], context["inside"] or {}
  there = {
    "plane": first["plane"],
    "withstood": first["withstood"],
    "classes": first["classes"],
    "images": context["examples"],
    "variance": found.get("variance"),
    "maps": found.get("maps"),
    "synthetic": context["synthetic"],
    "training": context["curves"],
    "audit": context["audit"],
    "cost": context["cost"],
    "exported": context["exported"],
    **{name: context[name] for name in ("strengths", "decisions", "others", "methods")},
  }
  return [(id_, name) for id_, name in CONTENTS.items() if there.get(id_, True)]


def _used(cells: Sequence[Cell], context: Mapping[str, Any]) -> list[str]:
  """The glossary's entries: what the page speaks of."""
  measured = {cell.metric for cell in cells} | set(table.COLUMNS) - {"target_acc"}
  found = context["inside"] or {}
  missing = {m for m in METRICS if m not in measured}
  missing |= {
    name for name, key in (("variance", "variance"), ("map", "maps")) if not found.get(key)
  }
  return [name for name in page.TERMS if name not in missing]


def _title(run: Mapping[str, Any], sections: Sequence[Setting]) -> str:
  name = str(run.get("config_name") or "run")
  return " · ".join([name, sections[0]["title"]] if sections[0]["title"] else [name])


def _outcome(said: Mapping[str, Any]) -> dict[str, str]:
  """What one phase decided, as a line of the table."""
  return {key: words(said.get(key)) for key in ("method", "network", "seed", "teacher", "outcome")}


def _choice(selected: Mapping[str, Any]) -> dict[str, str]:
  """How one strength was chosen, as a line of the table."""
  accuracy = mapping(selected.get("accuracy"))
  tried = ", ".join(f"{value}: {percent(share)}" for value, share in accuracy.items())
  shown = ("method", "seed", "teacher", "strength", "chosen")
  return {key: words(selected.get(key)) for key in shown} | {"accuracy": tried}
