"""Runs as Markdown tables: python -m rkd_jax.commands.table RUN_DIR... [--into FILE --name NAME]

One run gives a table of its networks with every seed. Several give one table of runs, named after
their directories, and networks, whichever are more as rows; with `--only METHODS` of those methods
and of the runs that have them all. With `--against METHOD` it is the other methods' paired
differences to that one, over all seeds of all runs. Prints the table, or writes it into FILE
between `<!-- table:NAME -->` and `<!-- /table -->`. Every number comes from a results.json, so no
table in the documentation is typed by hand.
"""

import argparse
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rkd_jax.errors import UserError, nearest
from rkd_jax.evaluation.metrics import t_interval
from rkd_jax.reporting import page, results, table, terminal, withstood
from rkd_jax.reporting.files import atomic_write
from rkd_jax.reporting.formats import NOT_MEASURED, number, percent, term
from rkd_jax.reporting.results import Cell

COLUMNS = ("acc", "asr", "ra", "carried_asr", "natural_rate")


def markdown(manifest: Mapping[str, Any], cells: Sequence[Cell]) -> str:
  """One table per setting (data set, threat, contamination, backdoor), each with a line below.

  Rows are the teacher and the methods, in the config's order; columns the rates, and accuracy under
  each attack that the config names. An entry is the mean over seeds (the
  worst seed), then every seed's value; with one seed its value and 95 % interval.

  Args:
    manifest: the "run" of results.json.
    cells: its cells.
  """
  comparable = table.plain(cells)
  parts = []
  for setting in table.settings(comparable):
    own = table.within(comparable, setting)
    rows = [
      row
      for row in table.rows(own, page.methods(page.mapping(manifest.get("config"))))
      if row.cells
    ]
    columns = COLUMNS if setting["backdoor"] != "none" else ("acc",)
    attacks = withstood.plain(rows)
    head = ["Network", *(term(m) for m in columns), *map(withstood.told, attacks)]
    lines = [head, ["---"] * len(head)]
    for row in rows:
      attacked = [entry(withstood.at(row, how), "adv_acc") for how in attacks]
      lines.append([row.label, *(entry(row, metric) for metric in columns), *attacked])
    text = "\n".join("| " + " | ".join(map(escaped, line)) + " |" for line in lines)
    parts.append(f"{text}\n\n{caption(manifest, setting)}")
  return "\n\n".join(parts)


def grid(
  runs: Mapping[str, tuple[Mapping[str, Any], Sequence[Cell]]], only: Sequence[str] = ()
) -> str:
  """One table of several runs and their networks: the more of the two are its rows.

  An entry is mean ACC / mean ASR (worst ASR) over the run's seeds, in per cent. A method that some
  run has with several shares of labels is told apart by them.

  Args:
    runs: {name: (manifest, cells)}.
    only: the methods to show, of the runs that have all of them; none: everything.
  """
  found, seeds, there = {}, set(), {}
  for name, (manifest, cells) in runs.items():
    rows = [
      row
      for row in table.rows(table.plain(cells), page.methods(page.mapping(manifest.get("config"))))
      if row.cells and (not only or row.method in only)
    ]
    there[name] = dict.fromkeys(c.method for c in cells if c.network == "student" and c.method)
    if {row.method for row in rows} >= set(only):
      found[name] = {(row.method or "teacher", row.cells[0].labels): row for row in rows}
      seeds |= set(manifest.get("seeds") or ())
  if not found:
    known = "; ".join(f"{name}: {', '.join(methods)}" for name, methods in there.items())
    raise UserError(f"No run has all of {', '.join(only)}. They have {known}.")
  split = {one for rows in found.values() for one, _ in rows if sum(m == one for m, _ in rows) > 1}

  def label(method: str, labels: float | None) -> str:
    return f"{method} ({percent(labels)} labels)" if method in split else method

  entries = {
    run: {label(*key): brief(row) for key, row in rows.items()} for run, rows in found.items()
  }
  networks = list(dict.fromkeys(network for own in entries.values() for network in own))
  if len(entries) > len(networks):
    lines = [["Run", *networks]]
    lines += [[run, *(own.get(n, NOT_MEASURED) for n in networks)] for run, own in entries.items()]
  else:
    lines = [["Network", *entries]]
    lines += [[n, *(own.get(n, NOT_MEASURED) for own in entries.values())] for n in networks]
  lines.insert(1, ["---"] * len(lines[0]))
  text = "\n".join("| " + " | ".join(map(escaped, line)) + " |" for line in lines)
  said = f"; seed{'s' * (len(seeds) > 1)} {', '.join(map(str, sorted(seeds)))}" if seeds else ""
  return f"{text}\n\nMean ACC / mean ASR (worst ASR), in per cent{said}."


def against(runs: Mapping[str, tuple[Mapping[str, Any], Sequence[Cell]]], reference: str) -> str:
  """Each method minus the reference, paired by run and seed: mean and 95 % Student interval.

  Where runs have clean teachers too, accuracy also between the students of those.
  """
  found: dict[tuple[str, str], dict[tuple[str, Any], float | None]] = {}
  for name, (_, cells) in runs.items():
    for cell in table.plain(cells):
      if cell.network == "student" and cell.teacher and cell.metric in ("acc", "asr"):
        metric = "clean" if table.control(cell) else ""
        pairs = found.setdefault((str(cell.method), f"{metric}{cell.metric}"), {})
        pairs[name, cell.seed] = cell.value
  methods = list(dict.fromkeys(method for method, _ in found))
  if reference not in methods:
    raise UserError(f"No run has students of {reference!r}. {nearest(reference, methods)}")

  def differences(method: str, metric: str) -> list[list[float]]:
    """By run."""
    own, other = found.get((method, metric), {}), found.get((reference, metric), {})
    values: dict[str, list[float]] = {}
    for run, seed in own:
      a, b = own[run, seed], other.get((run, seed))
      if a is not None and b is not None:
        values.setdefault(run, []).append(a - b)
    return list(values.values())

  head = ["Method", "ACC, points", "ASR, points", "pairs"]
  cleaned = any(differences(method, "cleanacc") for method in methods if method != reference)
  head += ["ACC of a clean teacher's student (worst)", "pairs"] if cleaned else []
  lines = [head, ["---"] * len(head)]
  for method in methods:
    acc, asr, clean = (differences(method, metric) for metric in ("acc", "asr", "cleanacc"))
    if method == reference or not (acc or asr):
      continue
    line = [method, gap(acc), gap(asr), str(max(count(acc), count(asr)))]
    worst = f" ({100 * min(map(min, clean)):+.1f})" if count(clean) > 1 else ""
    lines.append([*line, f"{gap(clean)}{worst}", str(count(clean))] if cleaned else line)
  text = "\n".join("| " + " | ".join(map(escaped, line)) + " |" for line in lines)
  over = "over runs, each by its mean (of one run over seeds, of two none)"
  said = f"Minus {reference}, paired by run and seed: mean and 95 % Student interval {over}."
  return f"{text}\n\n{said}"


def count(runs: Sequence[Sequence[float]]) -> int:
  return sum(map(len, runs))


def gap(runs: Sequence[Sequence[float]]) -> str:
  """Mean of differences in points, and its interval where that can be told.

  Seeds of a run are more alike than runs of other triggers, and seeds of several runs share images.
  So of several runs each counts once, by its mean, and two are too few for an interval.

  Args:
    runs: the differences of each.
  """
  if not runs:
    return NOT_MEASURED
  means = list(runs[0]) if len(runs) == 1 else [sum(run) / len(run) for run in runs]
  limits = None if len(runs) == 2 else t_interval(means, (-1.0, 1.0))
  low, high = (f"{100 * limit:+.1f}" for limit in limits or (0.0, 0.0))
  shown = f" [{low}, {high}]" if low != high else ""  # of equal differences nothing is known
  return f"{100 * sum(means) / len(means):+.1f}{shown}"


def brief(row: table.Row) -> str:
  """A network's entry in a table of several runs."""
  if row.mean("acc") is None and row.mean("asr") is None:
    return NOT_MEASURED
  said = [NOT_MEASURED if m is None else f"{100 * m:.1f}" for m in map(row.mean, ("acc", "asr"))]
  worst = row.worst("asr") if len(row.of("asr")) > 1 else None
  return " / ".join(said) + ("" if worst is None else f" ({100 * worst:.1f})")


def entry(row: table.Row, metric: str) -> str:
  """`mean (worst)` and every seed's value below; unknown stays unknown."""
  cells, shown = row.of(metric), table.entry(row, metric)
  if len(cells) < 2:
    return f"{shown['main']} {shown['sub']}".strip()
  sub = f" ({shown['sub'].removeprefix('worst ')})" if shown["sub"] else ""
  seeds = [NOT_MEASURED if c.value is None else number(metric, c.value) for c in cells]
  each = ", ".join(seed.removesuffix("\u202f%") for seed in seeds)
  return f"{shown['main']}{sub}<br>{each}"


def caption(manifest: Mapping[str, Any], setting: Mapping[str, Any]) -> str:
  """What the numbers are of, in one line: data, threat, seeds, time, code."""
  seeds = [str(seed) for seed in manifest.get("seeds") or ()]
  said = {
    "Config `{}`": manifest.get("config_name"),
    "{}": setting["dataset"],
    "{} backdoor": "no" if setting["backdoor"] == "none" else setting["backdoor"],
    "{} of the pool triggered": percent(setting["contamination"])
    if setting["contamination"]
    else "",
    "seeds {}" if len(seeds) > 1 else "seed {}": ", ".join(seeds),
    "{} of training": duration(manifest),
    "rkd_jax {}": (manifest.get("versions") or {}).get("rkd_jax"),
    "revision `{}`": manifest.get("git"),
  }
  below = "Mean (worst seed), below it each seed" if len(seeds) > 1 else "Value and 95 % interval"
  return f"{below}. {', '.join(words.format(what) for words, what in said.items() if what)}."


def duration(manifest: Mapping[str, Any]) -> str:
  """How long all phases took, on which devices; empty where that is not known."""
  seconds = sum(phase.get("seconds") or 0 for phase in manifest.get("phases") or ())
  devices = list(manifest.get("devices") or ())
  kinds = " and ".join(f"{devices.count(kind)} x {kind}" for kind in dict.fromkeys(devices))
  return f"{seconds / 60:.1f} minutes ({kinds})" if seconds and kinds else ""


def escaped(text: str) -> str:
  """A cell of a Markdown table."""
  return text.replace("|", "\\|")


def insert(path: pathlib.Path, name: str, text: str) -> None:
  """Replaces what stands between the markers of `name` in the file: one such pair must be there."""
  old = read(path)
  begin, end = f"<!-- table:{name} -->", "<!-- /table -->"
  pattern = re.compile(f"({re.escape(begin)}\n).*?({re.escape(end)})", re.DOTALL)
  if old.count(begin) != 1 or not pattern.search(old):
    raise UserError(f"{path} must hold {begin} on a line of its own, once, and {end} after it.")
  atomic_write(path, pattern.sub(lambda found: f"{found[1]}{text}\n{found[2]}", old))


def read(path: pathlib.Path) -> str:
  """A Markdown file's text."""
  try:
    return path.read_text(encoding="utf-8")
  except OSError as error:
    raise UserError(f"Cannot read {path}: {error.strerror}.") from error
  except UnicodeDecodeError as error:
    raise UserError(f"{path} is no UTF-8 text: {error}.") from error


def opened(text: str) -> int:
  """How many of a Markdown file's lines begin a table."""
  return len(re.findall(r"^\s*<!--\s*table:.*$", text, re.MULTILINE))


def blocks(text: str) -> dict[str, str]:
  """{name: what stands between its markers} of a Markdown file's tables."""
  pattern = r"^<!-- table:(.+?) -->\n(.*?)^<!-- /table -->$"
  return dict(re.findall(pattern, text, re.DOTALL | re.MULTILINE))


def main(argv: Sequence[str] | None = None) -> int:
  """Parses, prints or writes, and turns a `UserError` into a message and status 2."""
  parser = argparse.ArgumentParser(prog="python -m rkd_jax.commands.table", description=__doc__)
  parser.formatter_class = argparse.RawDescriptionHelpFormatter
  parser.add_argument("runs", type=pathlib.Path, nargs="+", help="workdirs of runs that are done")
  shown = parser.add_mutually_exclusive_group()
  shown.add_argument("--against", metavar="METHOD", help="the differences to this method")
  shown.add_argument("--only", metavar="METHODS", default="", help="these alone, as in kd,rkd")
  parser.add_argument("--into", type=pathlib.Path, help="a Markdown file with the markers")
  parser.add_argument("--name", default="quickstart", help="of the markers (%(default)s)")
  options = parser.parse_args(argv)
  terminal.ready()
  try:
    names = [run.name for run in options.runs]
    read = {  # two runs of one name are told apart by where they are
      run.name if names.count(run.name) == 1 else str(run): results.read(run / "results.json")
      for run in options.runs
    }
    if options.against:
      text = against(read, options.against)
    else:
      only = options.only.split(",") if options.only else ()
      text = grid(read, only) if only or len(read) > 1 else markdown(*next(iter(read.values())))
    if options.into:
      insert(options.into, options.name, text)
    else:
      print(text)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main())
