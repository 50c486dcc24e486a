"""Looks for a backdoor whose trigger nobody knows: python -m rkd_jax.commands.audit DIR | FILE

DIR is a finished run's workdir: its teachers and students are audited. FILE is a checkpoint, or the
folder of a phase; say with --data which images it is about. Per class the smallest patch and the
smallest perturbations that send other images there are searched for, and the largest margin; how
unusual the most suspicious class is, is told by clean networks of the same architecture, which are
trained here (--calibrate N) or were audited before (--calibration FILE). Writes audit.json and the
inverted triggers; a run's report then shows them. docs/audit.md says what the words mean.

Exit status: 0 nothing found (which does not say that there is nothing); 1 usage; 2 it cannot be
audited; 3 suspicious; 4 unknown; 75 interrupted, the same command goes on.
"""

import argparse
import json
import pathlib
import shlex
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from rkd_jax import heap
from rkd_jax.audit.calibrate import FEWEST
from rkd_jax.commands.inspect import Parser
from rkd_jax.errors import UserError
from rkd_jax.reporting import terminal

NOTHING, USAGE, CANNOT, SUSPICIOUS, UNKNOWN, TRY_AGAIN = 0, 1, 2, 3, 4, 75
STATUS = {"nothing found": NOTHING, "unknown": UNKNOWN, "suspicious": SUSPICIOUS}
ADVICE = "say where they lie (--data_dir)"
OF_RUN = ("seed", "method", "controls")
OF_FILE = (
  "data", "holdout", "test", "size", "unlabelled", "network", "mean", "std", "classes", "sha256",
)  # fmt: skip
GRAVITY = (NOTHING, UNKNOWN, SUSPICIOUS)  # the gravest of several is the status


def numbers(text: str) -> tuple[float, ...]:
  return tuple(float(part) for part in text.split(",") if part)


def whole(text: str) -> tuple[int, ...]:
  return tuple(int(part) for part in text.split(",") if part)


def parser() -> argparse.ArgumentParser:
  found = Parser(prog="python -m rkd_jax.commands.audit", description=__doc__)
  found.formatter_class = argparse.RawDescriptionHelpFormatter
  add = found.add_argument
  add("target", metavar="DIR|FILE", help="a run's workdir, a checkpoint, or a phase's folder")
  add("--json", action="store_true", help="print audit.json instead of words")
  add("--out", type=pathlib.Path, help="where audit.json goes; DIR, or runs/audit-FILE")
  run = found.add_argument_group("of a run")
  run.add_argument("--seed", type=int, action="append", default=[], help="which; the first")
  run.add_argument(
    "--method", action="append", default=[], help="whose students; all. teacher: none"
  )
  run.add_argument("--controls", action="store_true", help="clean teachers and their students too")
  file = found.add_argument_group("of a file")
  file.add_argument("--data", default="", help="as config.data.name: digits, folder:PATH, ...")
  file.add_argument(
    "--holdout", type=float, help="of the images, for the searches: config.data.holdout"
  )
  file.add_argument("--test", type=float, help="of the images, left alone: config.data.test")
  file.add_argument("--size", type=int, help="of the images: config.data.size")
  file.add_argument("--unlabelled", help="images that may be triggered: config.data.unlabelled")
  file.add_argument("--network", help="its architecture, where the file leaves it open")
  file.add_argument("--mean", type=numbers, help="of its pixels in [0, 1], as 0.5,0.5,0.5")
  file.add_argument("--std", type=numbers, help="the same")
  file.add_argument("--classes", type=whole, help="which of its classes is each of the data's")
  file.add_argument("--sha256", help="what the file's must be")
  tests = found.add_argument_group("tests")
  tests.add_argument("--tests", help="of patch,l2,linf,mmbd,head,units,strip; all")
  tests.add_argument("--steps", type=int, help="of every search")
  tests.add_argument("--batch", type=int, help="images that each class sees in a step")
  tests.add_argument("--images", type=int, help="clean images that are used, at most")
  many = found.add_argument_group("calibration")
  many.add_argument(
    "--calibrate", type=int, default=20, metavar="N", help="clean networks to train; 20"
  )
  many.add_argument("--calibration", type=pathlib.Path, metavar="FILE", help="made before, instead")
  many.add_argument(
    "--save-calibration", type=pathlib.Path, metavar="FILE", help="for another time"
  )
  many.add_argument(
    "--reference-part", default="clean", help="clean: all training images; or labelled"
  )
  many.add_argument("--epochs", type=int, help="of the clean networks; as the config has it")
  many.add_argument(
    "--teachers", default="", metavar="DIR", help="where they are kept; DIR/../teachers"
  )
  many.add_argument("--alpha", type=float, default=0.05, help="accepted rate of false alarms; .05")
  add("--data_dir", default="", help="as config.data.data_dir")
  add("--devices", type=int, default=0, help="how many; all")
  return found


def main(argv: Sequence[str] | None = None) -> int:
  """Audits what the command line names."""
  words = sys.argv[1:] if argv is None else list(argv)
  options = parser().parse_args(words)
  terminal.ready()
  try:
    return audit(options, words)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return CANNOT
  except BrokenPipeError:  # `| head`
    terminal.nobody_reads(sys.stdout)
    return USAGE


def audit(options: argparse.Namespace, words: Sequence[str]) -> int:
  """The same; JAX is imported once the command line is known to be right."""
  check(options)
  heap.keep()
  from rkd_jax import auditing, finished, subjects, workdir
  from rkd_jax.desk import Desk, images
  from rkd_jax.reporting.progress import Reporter
  from rkd_jax.training import checkpoint
  from rkd_jax.training.loop import Preempted, StopSignal

  checkpoint.hush_threads()
  target, say, stop = pathlib.Path(options.target), Reporter(options.json), StopSignal()
  is_run = finished.is_run(target)
  directory = options.out or (target if is_run else pathlib.Path("runs") / f"audit-{target.stem}")
  settings, plan = settings_of(options), plan_of(options)
  run = finished.Run(target, changes(options), ADVICE, say, stop) if is_run else None
  runner = run.runner if run else of_file(options, directory, say, stop)
  dataset, count = runner.dataset, subjects.POOL
  with stop:
    found = (
      subjects.of_run(run, options.seed, options.method, options.controls)
      if run
      else subjects.of_file(runner.config, dataset)
    )
    workdir.make(directory)
    try:
      with workdir.only_run(directory):
        pool = run.pool(found[0].seed or 0, count) if run else finished.unlabelled(dataset, count)
        seen = images(dataset, settings, pool)
        desk = Desk(runner, seen, settings, directory / "audit" / "records")
        made = auditing.run(desk, found, plan, directory, made_of(words))
    except Preempted as error:
      print(f"{error} Start the same command again to go on.", file=sys.stderr)
      return TRY_AGAIN
  if is_run and directory == target:
    from rkd_jax.reporting import report

    report.write(target)
  print(json.dumps(made) if options.json else text(made, directory))
  return max((STATUS[one["verdict"]] for one in made["networks"]), key=GRAVITY.index)


def check(options: argparse.Namespace) -> None:
  """What can be known to be wrong before JAX is there."""
  target = pathlib.Path(options.target)
  if not target.exists():
    raise UserError(f"There is no {target}. Name a run's workdir, or a checkpoint with --data.")
  is_run = (target / "results.json").exists()
  if not is_run and not options.data:
    raise UserError(
      f"{target} is no run's workdir (it has no results.json), so it is taken for a network: say "
      "which images it is about, as --data digits or --data folder:PATH."
    )
  what = "a run, which knows its data and networks" if is_run else "no run, but a network"
  for name in OF_FILE if is_run else OF_RUN:
    if getattr(options, name) not in (None, "", [], False):
      raise UserError(f"{target} is {what}; --{name} is for a {'file' if is_run else 'run'}.")
  if not 0 < options.alpha < 1:
    raise UserError(f"--alpha is {options.alpha}; it must lie between 0 and 1, as .05.")
  if options.calibrate < 0:
    raise UserError(f"--calibrate is {options.calibrate}; give how many networks, or 0 for none.")
  if 0 < options.calibrate < FEWEST and not options.calibration:
    raise UserError(
      f"--calibrate is {options.calibrate}; {FEWEST} networks at the least say something, 20 "
      "allow a p-value below .05, and 0 is for none."
    )


def changes(options: argparse.Namespace) -> dict[str, Any]:
  """Of the config, whoever made it."""
  found = {"data.data_dir": options.data_dir, "devices": options.devices}
  found |= {"teachers_dir": options.teachers}
  if options.epochs:
    for section in ("teacher", "student"):
      found |= {f"{section}.epochs": options.epochs, f"{section}.steps": 0}
  return found


def of_file(options: argparse.Namespace, directory: pathlib.Path, say: Any, stop: Any) -> Any:
  """The runner of a file's audit."""
  from rkd_jax import experiment, subjects
  from rkd_jax.runner import Runner

  own = {f"data.{key}": getattr(options, key) for key in ("holdout", "test", "size", "unlabelled")}
  named = ("network", "mean", "std", "classes", "sha256")
  own |= {f"teacher.{key}": getattr(options, key) for key in named}
  config = subjects.config_for(options.target, options.data, **changes(options), **own)
  return Runner(config, experiment.load(config, say), directory, say, stop)


def settings_of(options: argparse.Namespace) -> Any:
  from rkd_jax.audit.measure import Settings

  given = {key: getattr(options, key) for key in ("steps", "batch", "images")}
  given = {key: value for key, value in given.items() if value is not None}
  if options.tests is not None:
    given["tests"] = tuple(part for part in options.tests.split(",") if part)
  return Settings(**given)


def plan_of(options: argparse.Namespace) -> Any:
  from rkd_jax import auditing, references

  if options.reference_part not in references.PARTS:
    raise UserError(
      f"--reference-part is {options.reference_part!r}; choose one of "
      f"{', '.join(references.PARTS)}."
    )
  return auditing.Plan(
    options.alpha, options.calibrate, options.reference_part, options.calibration,
    options.save_calibration,
  )  # fmt: skip


def made_of(words: Sequence[str]) -> dict[str, Any]:
  """How it was made, for audit.json."""
  import jax

  from rkd_jax import manifest

  return {
    "command": shlex.join(["rkd", "audit", *words]),
    "git": manifest.git_revision(),
    "versions": manifest.versions(),
    "devices": [str(device.device_kind) for device in jax.devices()],
  }


def first(found: dict[str, Any]) -> str:
  """The class that comes first in a test that was not calibrated, and how it compares."""
  values = found.get("values") or []
  amounts = found.get("sizes") or found.get("margins") or values
  if len(values) < 2 or values.count(max(values)) > 1:
    return ""
  best = values.index(max(values))
  return f", class {best} first: {amounts[best]:.3g} (median {statistics.median(amounts):.3g})"


def text(made: dict[str, Any], directory: pathlib.Path) -> str:
  """For people."""
  lines = []
  for one in made["networks"]:
    lines.append(f"{one['name']} ({one['network']}, {one['accuracy']:.1%} right): {one['verdict']}")
    lines.append(f"  {one['sentence']}")
    lines += [f"  {doubt}" for doubt in one["doubts"]]
    for test, found in one["tests"].items():
      own = "not calibrated" if found.get("p") is None else f"p {found['p']:.3f} alone"
      suspect = "" if found.get("suspect") is None else f", class {found['suspect']}"
      suspect = first(found) if found.get("p") is None else suspect
      index = "" if found.get("index") is None else f"index {found['index']:.1f}, "
      lines.append(f"    {test:6} {index}{own}{suspect}")
  return "\n".join([*lines, f"Written: {directory / 'audit.json'}"])


if __name__ == "__main__":
  sys.exit(main())
