"""A run: for every seed and method its phases, then predictions, cells, results and the report."""

import contextlib
import pathlib

from rkd_jax import config as configs
from rkd_jax import manifest, workdir
from rkd_jax.data import sources
from rkd_jax.phases import Config
from rkd_jax.reporting import report, results
from rkd_jax.reporting.progress import Reporter
from rkd_jax.runner import Runner
from rkd_jax.story import Story
from rkd_jax.training.loop import StopSignal


def run(
  config: Config, directory: pathlib.Path, name: str = "config", quiet: bool = False
) -> pathlib.Path:
  """Runs a config to its report, going on from whatever the workdir already holds.

  Args:
    config: as `configs/<name>.py` makes it.
    directory: the workdir; made if it is not there, refused if another config made it.
    name: of the config, for the report.
    quiet: say nothing but warnings.

  Returns:
    The path of report.html; results.json lies beside it.

  Raises:
    UserError: a mistake that can be mended, before any training where that is possible.
    Preempted: a signal came; the same call goes on from there.
  """
  configs.normalise(config)
  configs.check(config)
  data, say = config.data, Reporter(quiet)
  sizes = data.holdout, data.test, data.train
  dataset = sources.load(data.name, data.data_dir or None, data.split_seed, *sizes)
  with StopSignal() as stop, contextlib.ExitStack() as lock:
    runner = Runner(config, dataset, directory, say, stop)
    stories = [Story(runner, seed) for seed in config.seeds]
    for story in stories:
      story.check()
    workdir.make(directory)
    lock.enter_context(workdir.only_run(directory))
    workdir.claim(directory, config)
    cells = []
    for story in stories:
      story.run()
      cells += story.cells()
    made = manifest.make(runner, name) | {"selection": [s for t in stories for s in t.selected()]}
    results.write(directory / "results.json", made, cells)
    path = report.write(directory)
  say.say(f"Report: {path}")
  return path
