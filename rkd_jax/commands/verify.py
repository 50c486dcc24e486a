"""Makes every number of finished runs again: python -m rkd_jax.commands.verify DIR... [--docs FILE]

For each run: all cells of results.json (counts, values, intervals, composites) and the strengths
that were chosen are computed again from `predictions/`; what differs is named. With `--docs` the
tables between `<!-- table:NAME -->` and `<!-- /table -->` in Markdown files are made again from
`results/NAME` in a folder above the file; `table:NAME against=METHOD` are differences, and
`NAME+OTHER` are the runs of both.

Status 0: all is as it should be; 1: something differs; 2: something cannot be read; 3: nothing
differs, but a run of an older version lacks some of what is needed to tell.
"""

import argparse
import pathlib
import sys
from collections.abc import Callable, Sequence

from rkd_jax.commands import table
from rkd_jax.errors import UserError
from rkd_jax.reporting import results, terminal

EQUAL, DIFFERS, UNREADABLE, PARTLY = 0, 1, 2, 3
GRAVITY = (EQUAL, PARTLY, UNREADABLE, DIFFERS)  # the gravest of several is the status
SHOWN = 20  # differences, for each run


def run(directory: pathlib.Path) -> int:
  """Prints what is found of one run, and returns its status."""
  from rkd_jax import evidence  # it imports JAX, which tables do not need

  found = evidence.check(directory)
  for text in found.differences[:SHOWN]:
    print(f"  differs: {text}")
  if len(found.differences) > SHOWN:
    print(f"  and {len(found.differences) - SHOWN} more")
  for text in found.unverified:
    print(f"  not verified: {text}")
  for metric in found.absent:
    print(f"  without {metric}, as runs of an older version are")
  amount = f"{found.cells} cells and {found.strengths} choices of {found.files} predictions files"
  if found.differences:
    print(f"{directory}: DIFFERS, {len(found.differences)} differences ({amount} made again).")
    return DIFFERS
  if found.unverified:
    print(f"{directory}: equal as far as it goes, {amount} made again; see what was not verified.")
    return PARTLY
  print(f"{directory}: verified, {amount} made again.")
  return EQUAL


def tables(file: pathlib.Path) -> int:
  """The same for the tables in a Markdown file."""
  status, text = EQUAL, table.read(file)
  found = table.blocks(text)
  if table.opened(text) != len(found):
    raise UserError(
      f"{file}: a table has no end, or two have one name. Each begins with <!-- table:NAME --> and "
      "ends with <!-- /table -->, both on lines of their own."
    )
  for name, block in found.items():
    wanted = rendered(name, file)
    if block.strip() == wanted.strip():
      continue
    pairs = zip(block.splitlines(), [*wanted.splitlines(), ""], strict=False)
    there, here = next(((a, b) for a, b in pairs if a != b), ("it is too short", wanted))
    print(f"  differs: the table {name}\n    there: {there[:2000]}\n    run:   {here[:2000]}")
    status = DIFFERS
  amount = f"{len(found)} table{'s' * (len(found) != 1)} made again from results/"
  print(f"{file}: {'DIFFERS' if status else 'verified'}, {amount}.")
  return status


def rendered(name: str, file: pathlib.Path) -> str:
  """The table of that name, from its runs: results/NAME, or the runs in that folder, or in several
  (`NAME+OTHER`); `NAME against=METHOD`, `NAME only=METHODS` as the options of `table`."""
  folders, _, option = name.partition(" ")
  kind, _, value = option.partition("=")
  runs = {}
  for folder in folders.split("+"):
    above = (parent / "results" / folder for parent in file.resolve().parents)
    where = next((path for path in above if path.is_dir()), None)
    if where is None:
      raise UserError(f"{file} has a table {name}, but no folder above it has results/{folder}.")
    found = [where] if (where / "results.json").exists() else sorted(where.glob("*/"))
    if not found:
      raise UserError(f"{where} holds no run; the table {name} of {file} cannot be made.")
    for path in found:
      known = path.name if path.name not in runs else f"{folder}/{path.name}"
      runs[known] = results.read(path / "results.json")
  if kind == "against":
    return table.against(runs, value)
  if kind == "only":
    return table.grid(runs, value.split(","))
  if kind:
    raise UserError(f"{file} has a table {name}: after a space, against= or only=, not {option!r}.")
  return table.grid(runs) if len(runs) > 1 else table.markdown(*next(iter(runs.values())))


def main(argv: Sequence[str] | None = None) -> int:
  """Looks at everything that is named, whatever is found on the way."""
  parser = argparse.ArgumentParser(prog="python -m rkd_jax.commands.verify", description=__doc__)
  parser.formatter_class = argparse.RawDescriptionHelpFormatter
  parser.add_argument(
    "runs", metavar="DIR", type=pathlib.Path, nargs="*", help="workdirs, or copies of them"
  )
  parser.add_argument("--docs", type=pathlib.Path, nargs="+", default=[], help="Markdown files")
  options = parser.parse_args(argv)
  if not options.runs and not options.docs:
    parser.error("name a run's workdir, or --docs FILE")
  terminal.ready()
  calls = [(run, path) for path in options.runs] + [(tables, path) for path in options.docs]
  try:
    status = max((look(call, path) for call, path in calls), key=GRAVITY.index)
    sys.stdout.flush()
  except BrokenPipeError:  # `| head`: who has seen enough still gets a status that is no 0
    terminal.nobody_reads(sys.stdout)
    return UNREADABLE
  return status


def look(call: Callable[[pathlib.Path], int], path: pathlib.Path) -> int:
  """One run or file; what is wrong with it hides nothing of the others."""
  try:
    return call(path)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return UNREADABLE


if __name__ == "__main__":
  sys.exit(main())
