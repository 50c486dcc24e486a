"""What a stranger's checkpoint holds: python -m rkd_jax.commands.inspect FILE [--json]

Reads PyTorch's files, safetensors, NumPy's, Flax's, and phases of this package as data: nothing in
them is run, so this is the first thing to do with a download. Shows what it is, its tensors, what
its pickle names, and values that are not finite.

Exit status: 0 it is readable, whether its architecture is known or not; 2 it is refused; 1 usage,
or no such file.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from rkd_jax.errors import UserError
from rkd_jax.interop import RefusedError, read
from rkd_jax.interop.refusals import shown
from rkd_jax.interop.summary import summary

READABLE, USAGE, REFUSED = 0, 1, 2
FEW = 10  # tensors and values that are shown without --all


class Parser(argparse.ArgumentParser):
  """One whose status for wrong usage is 1: 2 says that the file is refused."""

  def error(self, message: str) -> NoReturn:
    self.print_usage(sys.stderr)
    self.exit(USAGE, f"{self.prog}: error: {message}\n")


def text(found: dict[str, Any], everything: bool = False) -> str:
  """A summary for people. What strangers wrote is shown as printable ASCII."""
  dtypes = ", ".join(f"{count} {name}" for name, count in found["dtypes"].items()) or "none"
  lines = [
    ("file", shown(found["path"], 1000)),
    ("kind", found["kind"]),
    ("size", f"{found['size']:,} bytes"),
    ("sha256", found["sha256"]),
    ("tensors", f"{found['count']} ({dtypes})"),
    ("total", f"{found['elements']:,} numbers, {found['bytes']:,} bytes"),
    ("globals", ", ".join(found["globals"]) or "none"),
    ("not finite", listed(found["non_finite"], everything) or "none"),
    ("architecture", found["architecture"] or "not recognised"),
  ]
  parts = [f"{name + ':':13} {value}" for name, value in lines]
  tensors = [
    f"  {row['dtype']:10} {shape(row):20} {shown(row['name'])}" for row in found["tensors"]
  ]
  values = [f"  {shown(name)} = {shown(value)}" for name, value in found["metadata"].items()]
  return "\n".join(
    [*parts, *first(tensors, everything), *first(values, everything), verdict(found)]
  )


def listed(counts: dict[str, int], everything: bool) -> str:
  """Names with their counts, the first ones."""
  names = [f"{count:,} in {shown(name)}" for name, count in counts.items()]
  return ", ".join(part.strip() for part in first(names, everything))


def first(lines: list[str], everything: bool) -> list[str]:
  """The first few of them, and how many there are besides."""
  if everything or len(lines) <= FEW:
    return lines
  return [*lines[:FEW], f"  ... and {len(lines) - FEW} more (--all)"]


def shape(row: dict[str, Any]) -> str:
  return "x".join(map(str, row["shape"])) or "scalar"


def verdict(found: dict[str, Any]) -> str:
  """One line: what this says, and what it does not."""
  if not found["count"]:
    return "verdict: readable, but it holds no tensors"
  odd = ", with values that are not finite" if found["non_finite"] else ""
  known = found["architecture"] or "architecture not recognised"
  return (
    f"verdict: readable, {known}{odd}. Nothing in the file was run. Whether the network has a "
    "backdoor cannot be seen from its file."
  )


def parser() -> argparse.ArgumentParser:
  found = Parser(prog="python -m rkd_jax.commands.inspect", description=__doc__)
  found.formatter_class = argparse.RawDescriptionHelpFormatter
  found.add_argument("file", help="a checkpoint, its *.index.json, or the folder of a phase")
  found.add_argument("--json", action="store_true", help="print one JSON object, with every tensor")
  found.add_argument("--all", action="store_true", help="show every tensor and value")
  found.add_argument("--sha256", default="", metavar="HEX", help="what the file's must be")
  found.add_argument(
    "--opaque",
    action="append",
    default=[],
    metavar="CLASS",
    help="a class that its pickle may name: noted, never made (may be repeated)",
  )
  return found


def main(argv: Sequence[str] | None = None) -> int:
  """Inspects one file."""
  options = parser().parse_args(argv)
  try:
    status = inspect(options)
    sys.stdout.flush()
  except BrokenPipeError:  # `| head`
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return USAGE
  return status


def inspect(options: argparse.Namespace) -> int:
  """Prints what the file holds, or why it is refused."""
  try:
    found = summary(read(options.file, sha256=options.sha256, opaque=options.opaque))
  except RefusedError as error:
    if options.json:
      reason = {"cause": error.cause, "advice": error.advice, "globals": list(error.globals)}
      print(json.dumps({"path": options.file, "verdict": "refused", **reason}))
    else:
      print(f"refused: {error}", file=sys.stderr)
    return REFUSED
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return USAGE
  print(json.dumps({**found, "verdict": "readable"}) if options.json else text(found, options.all))
  return READABLE


if __name__ == "__main__":
  sys.exit(main())
