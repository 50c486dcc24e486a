"""How fast a training step is: bare, in the loop, and beside the same nets and math in PyTorch.

  python benchmarks/step.py
  python benchmarks/step.py --kdiga --pairs wideresnet-16-2:wideresnet-16-1
  python benchmarks/step.py --torch --pairs wideresnet-16-2:wideresnet-16-1,wideresnet-16-2
  python benchmarks/step.py --plain --torch --pairs wideresnet-16-2:wideresnet-16-1,wideresnet-16-2

Times whatever device JAX finds, on synthetic data of CIFAR-10's shape that lie there. Contestants
take turns within each round; figures are medians over the rounds in which other processes took no
more than a tenth of the processors. Asserts nothing about time. As in a run, memory is kept from
step to step on CPU (`rkd_jax/heap.py`), for all contestants; with --plain it is not, and
XLA compiles as it does by default (`rkd_jax/compiling.py`).
Writes `<out>/<device>/step.json`, with --kdiga `kdiga_step.json`, with --plain `plain_step.json`.
Needs rkd_jax installed (or its folder in PYTHONPATH) alone, and PyTorch for --torch.
"""

import argparse
import os
import pathlib
from typing import Any

import jax_cells
import measure
import numpy as np
from rich.console import Console
from rich.table import Table

from rkd_jax import compiling, heap
from rkd_jax.data.stream import Rows
from rkd_jax.methods import kdiga
from rkd_jax.reporting.files import write_json
from rkd_jax.training import update

PAIRS = "wideresnet-16-2:wideresnet-16-1,wideresnet-16-2"
# The rates to compare: {name: (over, under)}, by contestant.
RATIOS = {
  "loop_over_bare": ("loop", "bare"),
  "kdiga_over_bare": ("kdiga", "bare"),
  "jax_over_torch": ("bare", "torch"),
  "jax_over_torch_channels_last": ("bare", "torch channels_last"),
}


def arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "--pairs", default=PAIRS, help="teacher:student, or one net to train on labels"
  )
  parser.add_argument("--batch", type=int, default=128)
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
  parser.add_argument("--images", type=int, default=50_000, help="size of the synthetic data set")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--seconds", type=float, default=10.0, help="of a contestant in each round")
  parser.add_argument("--patience", type=float, default=5.0, help="seconds spent on finding quiet")
  parser.add_argument("--torch", action="store_true", help="time eager PyTorch too")
  parser.add_argument(
    "--kdiga", action="store_true", help="time KDIGA's step beside distillation's"
  )
  parser.add_argument("--plain", action="store_true", help="glibc's allocation, XLA's defaults")
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results/bench"))
  return parser.parse_args()


def main() -> None:
  options = arguments()
  if options.plain:
    compiling.TRAINING.clear()
  kept = not options.plain and heap.keep()
  if options.torch:  # leave it some of an accelerator's memory
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  report: dict[str, Any] = {"schema": 1, **measure.context(), "settings": settings(options)}
  report["memory_kept"] = kept
  if options.torch:
    report["torch"] = about_torch()
  rows = jax_cells.synthetic(options.images)
  report["cells"] = []
  name = f"{'plain_' * options.plain}{'kdiga_' * options.kdiga}step.json"
  path = options.out / measure.slug() / name
  for pair in options.pairs.split(","):
    report["cells"].append(cell(pair, rows, options))
    write_json(path, report | {"load_after": measure.load()})  # what is measured is kept
  show(report)
  Console().print(f"Written to {path}", highlight=False)


def settings(options: argparse.Namespace) -> dict[str, Any]:
  return {name: value for name, value in vars(options).items() if name != "out"}


def cell(pair: str, rows: Rows, options: argparse.Namespace) -> dict[str, Any]:
  """Everything measured of one "teacher:student" (or "student")."""
  teacher, _, student = pair.rpartition(":")
  ours = jax_cells.Cell(teacher, student, rows, options.batch, options.dtype)
  cost = measure.cost(update._round, *ours.arguments)
  runs: dict[str, measure.Run] = {"bare": ours.bare, "loop": ours.loop}
  costs = {"cost": cost}
  if options.kdiga and teacher:
    aligned = jax_cells.Cell(teacher, student, rows, options.batch, options.dtype, kdiga.Method())
    costs["kdiga_cost"] = measure.cost(update._round, *aligned.arguments)
    runs["kdiga"] = aligned.bare
  theirs = torch_cells(teacher, student, rows, options) if options.torch else {}
  limits = options.seconds, jax_cells.ROUNDS, options.patience
  steps = {"bare": measure.steps_for(ours.bare, *limits)}
  steps = dict.fromkeys(runs, steps["bare"])
  ours.loop(2)
  for name, contestant in theirs.items():
    runs[name] = contestant.run
    steps[name] = measure.steps_for(contestant.run, *limits)
  timed = measure.interleave(runs, steps, options.rounds, options.batch, options.patience)
  return {
    "teacher": teacher or None,
    "student": student,
    "params": {role: ours.params(role) for role in ("teacher", "student")},
    "log_every": ours.log_every(steps["loop"]),
    "timed": timed,
    "ratios": {name: measure.ratio(timed, *two) for name, two in RATIOS.items()},
    **costs,
    "cost": cost | achieved(cost, options.batch, timed["bare"]["images_per_second"]),
    "load": measure.load(),
  }


def achieved(cost: dict[str, Any], batch: int, rate: float) -> dict[str, Any]:
  """Arithmetic and traffic a second at `rate` images/s (traffic after fusion, as XLA counts it)."""
  per_second = {"flops_per_second": "flops", "bytes_per_second": "bytes"}
  return {name: cost[of] * rate / batch if cost[of] else None for name, of in per_second.items()}


def torch_cells(teacher: str, student: str, rows: Rows, options: argparse.Namespace) -> dict:
  """{contestant: torch_nets.Cell}; none for networks that are not written there."""
  import torch
  import torch_nets

  found = {}
  for name, last in (("torch", False), ("torch channels_last", True)):
    torch.manual_seed(0)
    mentor, pupil = (torch_nets.build(n, jax_cells.MEAN, jax_cells.STD) for n in (teacher, student))
    if pupil is None or (teacher and mentor is None):
      return {}
    found[name] = torch_nets.Cell(
      mentor,
      pupil,
      np.asarray(rows.image),
      rows.label,
      options.batch,
      jax_cells.CROP,
      options.dtype,
      last,
    )
  return found


def about_torch() -> dict[str, Any]:
  import torch

  cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else None
  return {"version": torch.__version__, "threads": torch.get_num_threads(), "cuda": cuda}


def show(report: dict[str, Any]) -> None:
  about = report["device"]
  title = f"{about['kind']}, {about['cores']} cores, {report['settings']['dtype']}"
  table = Table(title=f"{title}, batch {report['settings']['batch']}", title_justify="left")
  for name in ("phase", "contestant"):
    table.add_column(name)
  for name in ("images/s", "ms/step", "slowest", "fastest", "of bare", "quiet rounds"):
    table.add_column(name, justify="right")
  for found in report["cells"]:
    add_rows(table, found)
  console = Console()
  if not console.is_terminal:  # a log has room for the whole table
    console = Console(width=130)
  console.print(table)
  for found in report["cells"]:
    console.print(in_words(found), highlight=False, soft_wrap=True)


def add_rows(table: Table, found: dict[str, Any]) -> None:
  """A row for each contestant of a cell."""
  phase = title(found)
  for name, timed in found["timed"].items():
    rates = [sample["images_per_second"] for sample in timed["rounds"]]
    relative = measure.ratio(found["timed"], name, "bare") or {"median": 1.0}
    table.add_row(
      phase, name, f"{timed['images_per_second']:,.0f}", f"{timed['ms_per_step']:,.2f}",
      f"{min(rates):,.0f}", f"{max(rates):,.0f}", f"{relative['median']:.3f}",
      f"{timed['quiet_rounds']}/{len(rates)}",
    )  # fmt: skip
    phase = ""
  table.add_section()


def title(found: dict[str, Any]) -> str:
  return f"{found['teacher']} -> {found['student']}" if found["teacher"] else found["student"]


def in_words(found: dict[str, Any]) -> str:
  """A cell's ratios and what XLA says of it."""
  cost = found["cost"]
  ratios = [f"{k.replace('_', ' ')} {v['median']:.3f}" for k, v in found["ratios"].items() if v]
  scaled = (
    ("GFLOP", cost["flops"], 1e9),
    ("GB moved", cost["bytes"], 1e9),
    ("MiB peak", cost["peak_memory_bytes"], 2**20),
  )
  numbers = [f"{value / unit:,.2f} {what}" for what, value, unit in scaled if value]
  compiled = f"compiled in {cost['trace_s'] + cost['compile_s']:.1f} s"
  return f"{title(found)}: {', '.join([*ratios, *numbers, compiled])}"


if __name__ == "__main__":
  main()
