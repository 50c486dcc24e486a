"""Networks that run elsewhere: python -m rkd_jax.commands.export DIR --format FORMAT [--int8]

DIR is the workdir of a finished run (then ACC, ASR and RA are measured again on the exported
network, and the report shows them), the folder of a phase, or a checkpoint's file. Every export is
held against JAX on real images; one that answers otherwise is not written. docs/export.md shows
how each format is run elsewhere.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from rkd_jax.errors import UserError
from rkd_jax.reporting import terminal

FORMATS = ("stablehlo", "onnx", "safetensors", "torch")
ADVICE = "export the folder of the phase, where nothing is measured"


def parser() -> argparse.ArgumentParser:
  found = argparse.ArgumentParser(prog="python -m rkd_jax.commands.export", description=__doc__)
  found.formatter_class = argparse.RawDescriptionHelpFormatter
  add = found.add_argument
  add("path", metavar="DIR", type=pathlib.Path, help="a run's workdir, a phase's folder, or a file")
  add("--format", required=True, choices=FORMATS, help="of the file")
  add("--int8", action="store_true", help="with onnx: also with int8 weights and activations")
  add("--method", default="", help="of a run: whose student (its last method with a teacher)")
  add("--seed", type=int, help="of a run: which of its seeds (the first)")
  add("--network", default="student", choices=("student", "teacher"), help="of a run: which")
  add("--out", type=pathlib.Path, metavar="FOLDER", help="where files go (DIR/exports)")
  add("--layout", default="", choices=("nchw", "nhwc"), help="of images (onnx nchw, else nhwc)")
  add("--names", default="", metavar="WHOSE", help="of safetensors, torch: as torchvision, timm")
  add("--calibration", default="minmax", choices=("minmax", "entropy", "percentile"),
      help="of int8: how ranges come from clean images")  # fmt: skip
  add("--least-agreement", type=float, default=0.9, metavar="SHARE",
      help="of clean test images on which int8 must say what JAX does (0.9)")  # fmt: skip
  add("--size", type=int, default=32, help="pixels of an image's side, where DIR is no run (32)")
  return found


def main(argv: Sequence[str] | None = None) -> int:
  """Exports one network; a `UserError` is a message and status 2."""
  options = parser().parse_args(argv)
  terminal.ready()
  try:
    export(options)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print("Interrupted. Nothing is half-written.", file=sys.stderr)
    return 130
  return 0


def export(options: argparse.Namespace) -> None:
  """Opens what is named, exports it, and writes a run's report again."""
  # JAX is imported once the command line is known to be right
  from rkd_jax import finished, workdir
  from rkd_jax.export import subject as subjects
  from rkd_jax.export.job import Job, Wanted
  from rkd_jax.export.ledger import FOLDER
  from rkd_jax.reporting import report

  path = options.path.expanduser()
  wanted = Wanted(
    options.format, options.int8, options.layout, options.names, options.calibration,
    least=options.least_agreement,
  )  # fmt: skip
  if not path.exists():
    raise UserError(f"There is no {path}. Name a run's workdir, a phase's folder, or a checkpoint.")
  if not finished.is_run(path):
    one = subjects.of_path(path, options.size)
    out = options.out or pathlib.Path(FOLDER)
    print(
      f"{one.title}: {one.architecture}. No run, so it is checked on noise; nothing is measured."
    )
    if one.doubt:
      print(f"warning: {one.doubt} Mean {one.network.mean}, std {one.network.std}.")
    Job(one, None, out, print).export(wanted)
    return
  run = finished.Run(path, advice=ADVICE)
  one = subjects.of_run(run, run.seed(options.seed), options.method, options.network)
  print(f"{one.title}: {one.architecture}")
  with workdir.only_run(path):
    Job(one, run, options.out or path / FOLDER, print).export(wanted)
    print(f"Report: {report.write(path)}")


if __name__ == "__main__":
  sys.exit(main())
