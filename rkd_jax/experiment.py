"""A run: for every seed and method its phases, then predictions, cells, results and the report."""

import contextlib
import pathlib
import time
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from rkd_jax import config as configs
from rkd_jax import first_look, hosts, manifest, phases, workdir
from rkd_jax.data import sources
from rkd_jax.errors import UserError
from rkd_jax.evaluation import recount
from rkd_jax.phases import Config, Delivery, Phase
from rkd_jax.reporting import report, results, summary
from rkd_jax.reporting.files import sha256
from rkd_jax.reporting.plan import Work
from rkd_jax.reporting.progress import Reporter
from rkd_jax.runner import Runner, described
from rkd_jax.story import Story
from rkd_jax.training.loop import StopSignal

SHARED_SECONDS = 20  # that a file may take to be seen on another host
SHOWN = 10  # of the images that were left out


def run(
  config: Config,
  directory: pathlib.Path,
  name: str = "config",
  quiet: bool = False,
  debug: bool = False,
) -> pathlib.Path:
  """Runs a config to its report, going on from whatever the workdir already holds.

  Args:
    config: as `configs/<name>.py` makes it.
    directory: the workdir; made if it is not there, refused if another config made it.
    name: of the config, for the report.
    quiet: say nothing but warnings.
    debug: say also where things lie and what is ahead.

  Returns:
    The path of report.html; results.json lies beside it.

  Raises:
    UserError: a mistake that can be mended, before any training where that is possible.
    Preempted: a signal came; the same call goes on from there.
  """
  configs.check_keys(config)
  configs.normalise(config)
  configs.check(config)
  say = Reporter(quiet, debug)
  dataset = load(config, say)
  check_hosts(config, dataset, directory)
  with StopSignal() as stop, contextlib.ExitStack() as lock:
    runner = Runner(config, dataset, directory, say, stop)
    stories = [Story(runner, seed) for seed in config.seeds]
    for story in stories:
      story.check()

    def claim() -> None:
      workdir.make(directory)
      lock.enter_context(workdir.only_run(directory))
      workdir.claim(directory, config, dataset.fingerprint)

    hosts.decide(claim)
    check_shared(directory)
    looked = look(stories[0], say)
    ahead = expected(runner, stories)
    say.debug(f"{directory}, teachers in {runner.teachers}, {len(ahead)} phases")
    say.expect(ahead)
    cells = []
    for story in stories:
      story.run()
      cells += story.cells()
    told = {
      "selection": [s for t in stories for s in t.selected()],
      "outcomes": [o for t in stories for o in t.outcomes()],
      "costs": [c for t in stories for c in t.costs()],
      "attacks": [one for t in stories for one in t.attacked],
      "comparisons": [c for t in stories for c in t.compared()],
      "given": looked,
    }
    return pathlib.Path(hosts.decide(lambda: written(runner, name, told, cells)))


def written(runner: Runner, name: str, told: dict[str, Any], cells: list[results.Cell]) -> str:
  """Writes a finished run's results and report, and says what they are; the report's path."""
  directory, say = runner.workdir, runner.say
  saved = {path: sha256(directory / path) for path in map(recount.saved, runner.config.seeds)}
  made = manifest.make(runner, name) | told | {"predictions": saved}
  results.write(directory / "results.json", made, cells)
  path = report.write(directory)
  for line in summary.lines(made, cells, say.columns):
    say.say(line)
  say.say(f"Report: {path}")
  return str(path)


def check_hosts(config: Config, dataset: sources.Dataset, directory: pathlib.Path) -> None:
  """Raises a `UserError` for what several processes cannot do, or do not agree on."""
  if jax.process_count() != hosts.count():
    raise UserError(
      f"JAX was started as {jax.process_count()} processes that the run does not know of. Leave "
      "jax.distributed to rkd_jax.hosts.join, by the variables that launch/README.md names."
    )
  if hosts.count() == 1:
    return
  if config.eval.adversarial.eps:
    raise UserError(
      "config.eval.adversarial is not measured by several processes: leave its eps empty."
    )
  values = {key: v for key, v in configs.flatten(config.to_dict()).items() if "data_dir" not in key}
  told = {
    "configs": values,
    "images": dataset.fingerprint,
    "workdirs": str(directory.absolute()),
    "versions": [phases.common_code(), jax.__version__],
  }
  found = hosts.every(told)
  for number, other in enumerate(found):
    if odd := [what for what in told if other[what] != found[0][what]]:
      raise UserError(
        f"Processes 0 and {number} of the run have different {' and '.join(odd)}. Start all with "
        "the same command, on the same data, by the same code."
      )


def check_shared(directory: pathlib.Path) -> None:
  """Raises a `UserError` where some process does not see the first one's workdir."""
  seen = (directory / "config.json").exists
  for _ in range(SHARED_SECONDS):
    if hosts.count() == 1 or seen():
      break
    time.sleep(1)
  if blind := [number for number, sees in enumerate(hosts.every(seen())) if not sees]:
    raise UserError(
      f"{directory} of process 0 is not seen by process {blind[0]}. Several hosts need a --workdir "
      "(and --config.teachers_dir) on a file system that all of them have mounted."
    )


def look(story: Story, say: Reporter) -> dict[str, Any] | None:
  """What a given teacher says of the clean hold-out, for the manifest; None where none is given."""
  given = story.setup().given
  if given is None:
    return None
  named = story.config.backdoor not in ("none", "unknown")
  backdoor = story.runner.backdoor(story.seed) if named else None
  found = first_look.look(given, story.config, story.runner.dataset, backdoor)
  for line in found.lines:
    say.say(line)
  for line in found.warnings:
    say.warn(line)
  return found.record


def expected(runner: Runner, stories: Iterable[Story]) -> list[Work]:
  """(title, steps) of all phases of a run, each once, as far as they are known before."""
  found: dict[str, Phase] = {}

  def add(phase: Phase) -> None:
    for _, delivery in phase.given:
      if isinstance(delivery, Delivery):
        add(delivery.phase)
    found.setdefault(phase.key, phase)

  for story in stories:
    for phase in story.expected():
      add(phase)
  return [(described(phase), runner.steps(phase)) for phase in found.values()]


def load(config: Config, say: Reporter) -> sources.Dataset:
  """The config's data set; says which images were left out because they cannot be read."""
  data = config.data
  sizes = data.holdout, data.test, data.train
  crops = any(config[s].augment.resized_crop for s in ("teacher", "student", "labelled"))
  memory = 0 if crops else data.memory_mib * 2**20  # crops are made of the images as stored
  options = sources.Options(data.size, memory, data.skip_corrupt, data.unlabelled)
  dataset = sources.load(data.name, data.data_dir or None, data.split_seed, *sizes, options)
  if dataset.skipped:
    shown = "\n  ".join(dataset.skipped[:SHOWN])
    more = len(dataset.skipped) - SHOWN
    say.warn(f"Left out:\n  {shown}" + (f"\n  and {more} more" if more > 0 else ""))
  counts = np.bincount(dataset.test.labels, minlength=dataset.classes)
  if missing := [name for name, n in zip(dataset.class_names, counts, strict=True) if not n]:
    say.warn(
      f"The test part has no image of {len(missing)} of {dataset.classes} classes "
      f"({', '.join(missing[:SHOWN])}): no measured number says anything about them."
    )
  return dataset
