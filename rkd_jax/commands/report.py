"""A run's report, made again, or one page of several: python -m rkd_jax.commands.report DIR...

With one DIR, a run's workdir, writes DIR/report.html from the files in it; only results.json must
be there. With several, writes one page that compares them, <first DIR>/comparison.html. Or FILE,
with `--out FILE`. Nothing is trained, and no network is asked.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from rkd_jax.errors import UserError
from rkd_jax.reporting import comparison, report


def main(argv: Sequence[str] | None = None) -> int:
  """Parses, writes the page, prints its path; a `UserError` is a message and status 2."""
  parser = argparse.ArgumentParser(prog="python -m rkd_jax.commands.report", description=__doc__)
  parser.formatter_class = argparse.RawDescriptionHelpFormatter
  parser.add_argument("runs", metavar="DIR", type=pathlib.Path, nargs="+", help="a run's workdir")
  parser.add_argument("--out", metavar="FILE", type=pathlib.Path, help="where the page goes")
  options = parser.parse_args(argv)
  try:
    print(write(options.runs, options.out))
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


def write(runs: Sequence[pathlib.Path], out: pathlib.Path | None) -> pathlib.Path:
  """The page about these runs; its path."""
  if out is not None and out.is_dir():
    raise UserError(f"--out {out} is a directory; name the file, as {out / 'report.html'}.")
  if len(runs) == 1:
    return report.write(runs[0], out)
  return comparison.write(runs, out or runs[0] / "comparison.html")


if __name__ == "__main__":
  sys.exit(main())
