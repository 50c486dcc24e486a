"""Runs one phase to its artefact, or loads it: whole, made from the same config, or made again.

An artefact is a directory: `final/` (the roles and the method's state), `metrics.jsonl`, and
`done.json`, written last. A phase that is interrupted goes on from `checkpoints/`.
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
import shutil
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from rkd_jax import config as configs
from rkd_jax import lookup, workdir
from rkd_jax.backdoors import learned
from rkd_jax.backdoors.base import Backdoor
from rkd_jax.data import seeds
from rkd_jax.data.augment import Augment
from rkd_jax.data.parts import Parts
from rkd_jax.data.sources import Dataset
from rkd_jax.data.stream import Nothing, Resident
from rkd_jax.evaluation.predictions import Split
from rkd_jax.phases import Config, Delivery, Phase
from rkd_jax.recipes import Setup
from rkd_jax.reporting.files import read_json, write_json
from rkd_jax.reporting.progress import Reporter
from rkd_jax.reporting.writer import MetricsWriter, read_lines
from rkd_jax.training import checkpoint, loop, sharding, start
from rkd_jax.training.optimizer import Optimizer
from rkd_jax.training.state import Program, make_program

Tree = Any


@dataclasses.dataclass
class Finished:
  """A phase that is done: what it delivers, and what it answers."""

  phase: Phase
  program: Program
  trees: dict[str, Tree]
  memory: Tree
  directory: pathlib.Path
  record: dict[str, Any]

  def deliver(self, name: str) -> Tree:
    variables = self.program.method.materialize(self.program.bind(self.trees))
    return self.program.method.deliver(variables, self.memory)[name]

  def predict(self, split: Split) -> np.ndarray:
    """int32[N]: the class of every image of the split."""
    return split.predict(self.program, self.trees, self.memory)


class Runner:
  """Makes phases of one config on one data set."""

  def __init__(
    self,
    config: Config,
    dataset: Dataset,
    directory: pathlib.Path,
    say: Reporter,
    stop: loop.StopSignal,
  ):
    self.config, self.dataset, self.workdir = config, dataset, directory
    self.say, self.stop = say, stop
    self.mesh = sharding.make_mesh(config.devices)
    self.teachers = pathlib.Path(config.teachers_dir or directory.parent / "teachers")
    self.holdout = Split(self.mesh, dataset.holdout.images, config.eval_batch)
    self._done: dict[str, Finished] = {}

  def check(self) -> None:
    """Makes every seed's plans and networks now, so that mistakes show before any training."""
    for seed in self.config.seeds:
      self.parts(seed)
    for role in ("teacher", "student"):
      configs.network(self.config, self.config[role].network, self.dataset).shapes()

  def finish(self, phase: Phase) -> Finished:
    """The phase's result; trains it where there is none."""
    if phase.key not in self._done:
      self.stop.check("between two phases")
      for _, delivery in phase.given:
        self.finish(delivery.phase)
      if self.setup(phase).learned and phase.part == "pool" and self.config.contamination:
        self.finish(self.setup(phase).poisoned_teacher())
      directory = self.directory(phase)
      with workdir.making(directory, self.say.say):
        self._done[phase.key] = self._load(phase, directory) or self._train(phase, directory)
    return self._done[phase.key]

  def finished(self) -> Iterator[Finished]:
    """What was made or loaded so far, in that order."""
    return iter(self._done.values())

  def setup(self, phase: Phase) -> Setup:
    return Setup(self.config, self.dataset.fingerprint, phase.seed)

  def directory(self, phase: Phase) -> pathlib.Path:
    """Teachers are shared between runs; everything else belongs to this one."""
    if phase.section == "teacher":
      return self.teachers / phase.key
    name = phase.name.replace("/", "-")
    return self.workdir / "phases" / f"seed{phase.seed}" / f"{name}-{phase.key[:8]}"

  def deliver(self, delivery: Delivery) -> Tree:
    return self.finish(delivery.phase).deliver(delivery.name)

  # The story of a seed.

  def backdoor(self, seed: int) -> Backdoor:
    """The trigger of this seed, delivered by its teacher's phase if it is learned."""
    setup = Setup(self.config, self.dataset.fingerprint, seed)
    if not setup.learned:
      return self._planner()
    found = self.deliver(setup.poisoned_teacher()["trigger"])
    trigger = learned.Backdoor(target=self.config.target, **found)
    return sharding.replicate(self.mesh, trigger)

  def _planner(self) -> Backdoor:
    """The backdoor as far as planning goes; for a fixed trigger that is all of it."""
    if self.config.backdoor not in lookup.names("backdoors"):
      return learned.Backdoor(target=self.config.target)
    fields = self.config.trigger.get(self.config.backdoor, ConfigDict()).to_dict()
    return lookup.build("backdoors", self.config.backdoor, fields | {"target": self.config.target})

  @functools.lru_cache  # noqa: B019 (a runner lives as long as its run)
  def parts(self, seed: int) -> Parts:
    config = self.config
    return Parts(
      self.dataset,
      seed,
      config.labels,
      config.teacher.poison,
      config.contamination,
      self._planner(),
    )

  # One phase.

  def _networks(self, phase: Phase) -> dict[str, Any]:
    names = json.loads(phase.settings)["networks"]
    return {role: configs.network(self.config, name, self.dataset) for role, name in names.items()}

  def _stream(self, phase: Phase) -> Any:
    section = self.config[phase.section]
    seed, put = seeds.fold(phase.seed, phase.name), functools.partial(sharding.replicate, self.mesh)
    if phase.part == "nothing":
      return Nothing(section.batch_size, max(section.steps // max(section.epochs, 1), 1), seed, put)
    rows = self.parts(phase.seed).rows(phase.part)
    backdoor = None if rows.kind is None else self.backdoor(phase.seed)
    return Resident(rows, section.batch_size, seed, put, backdoor)

  def _program(self, phase: Phase, roles: Mapping[str, Any], stream: Any) -> Program:
    section = self.config[phase.section]
    augment = Augment(**section.augment)
    rounds = section.steps or section.epochs * stream.steps_per_epoch
    optimizer = Optimizer(**section.optimizer)
    return make_program(
      phase.method, roles, rounds, augment, self.mesh, optimizer, section.optimizers.to_dict()
    )

  def _load(self, phase: Phase, directory: pathlib.Path) -> Finished | None:
    """The finished phase, if its artefact is there, whole, and made from the same description."""
    if not (directory / "done.json").exists():
      return None
    try:
      record = read_json(directory / "done.json")
      saved = checkpoint.load_tree(directory / "final")
      whole = checkpoint.digest(saved) == record["sha256"]
    except Exception:  # a file of ours or of Orbax that is damaged in whatever way
      whole, saved, record = False, {}, {}
    if not whole:
      self.say.warn(f"{directory} is damaged; the phase {phase.name!r} is made again.")
      shutil.rmtree(directory)
      return None
    roles, program, stream, given, example = self._begin(phase)
    state, frozen = start.begin(program, roles, given, stream, example, surveyed=True)
    trained = refill(state.roles, saved["roles"])
    memory = refill(state.method, saved.get("state", {}))
    trees = frozen | sharding.replicate(self.mesh, trained)
    memory = sharding.replicate(self.mesh, memory)
    self.say.found(described(phase))
    return Finished(phase, program, trees, memory, directory, record)

  def _begin(self, phase: Phase) -> tuple[Any, Program, Any, dict[str, Tree], Any]:
    roles = phase.method.roles(self._networks(phase))
    stream = self._stream(phase)
    program = self._program(phase, roles, stream)
    given = {role: self.deliver(delivery) for role, delivery in phase.given}
    example = start.example_of(stream, self.dataset.image_shape, self.dataset.classes)
    return roles, program, stream, given, example

  def _train(self, phase: Phase, directory: pathlib.Path) -> Finished:
    began = time.monotonic()
    directory.mkdir(parents=True, exist_ok=True)
    roles, program, stream, given, example = self._begin(phase)
    checkpoints = checkpoint.Checkpoints(directory / "checkpoints", warn=self.say.warn)
    resuming = checkpoints.latest() is not None
    state, frozen = start.begin(program, roles, given, stream, example, surveyed=resuming)
    restored = checkpoints.restore(state)
    if restored:
      step, state = restored
    else:
      step = 0
      if resuming:  # nothing readable was left: from the beginning, survey and all
        state, frozen = start.begin(program, roles, given, stream, example)
    start.cache_targets(program, frozen, stream)
    lines = directory / "metrics.jsonl"
    title = described(phase)
    with (
      contextlib.closing(checkpoints),
      MetricsWriter(lines, directory / "tensorboard", step + 1 if step else 0) as writer,
      self.say.phase(title, step, program.rounds) as tick,
    ):
      evaluate = self._evaluator(program, frozen)
      hooks = loop.Hooks(evaluate, writer.write, writer.flush, tick)
      running = loop.Phase(
        program,
        roles,
        stream,
        frozen,
        example,
        stream.steps_per_epoch,
        self.config.save_every,
        hooks,
      )
      state = loop.train(running, state, checkpoints, self.stop, had_stopped(lines))
      jax.block_until_ready(state)
    seconds, images = time.monotonic() - began, (program.rounds - step) * stream.batch
    record = {"steps": int(state.step), "seconds": seconds, "images_per_second": images / seconds}
    return self._deliver(phase, directory, program, state, frozen, record)

  def _evaluator(self, program: Program, frozen: Tree) -> Any:
    labels = self.dataset.holdout.labels

    def evaluate(state: Any) -> dict[str, float]:
      answers = self.holdout.predict(program, frozen | state.roles, state.method)
      return {"holdout_acc": float(np.mean(answers == labels))}

    return evaluate

  def _deliver(
    self, phase: Phase, directory: pathlib.Path, program: Program, state: Any, frozen: Tree,
    record: dict[str, Any],
  ) -> Finished:  # fmt: skip
    saved = {"roles": state.roles, "state": checkpoint.flat(state.method)}
    checkpoint.save_tree(directory / "final", saved)
    record = {"phase": phase.describe(), "sha256": checkpoint.digest(saved)} | record
    write_json(directory / "done.json", record)
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)
    return Finished(phase, program, frozen | state.roles, state.method, directory, record)


def described(phase: Phase) -> str:
  """A line's worth of what a phase is."""
  method = type(phase.method).__module__.rsplit(".", 1)[-1]
  teacher = dict(phase.given).get("teacher")
  control = teacher is not None and teacher.phase.part == "clean"
  clean = phase.section == "teacher" and phase.part == "clean"
  learned = "trigger" in (teacher.phase if teacher else phase).method.delivers
  note = (
    " (clean teacher)" if control and not learned else " (clean)" if clean and not learned else ""
  )
  return f"seed {phase.seed}  {phase.name}: {method}{note}"


def had_stopped(lines: pathlib.Path) -> bool:
  """Whether the last line kept is that of a method which stopped early."""
  return "stopped" in (read_lines(lines) or [{}])[-1]


def refill(template: Tree, saved: Tree) -> Tree:
  """Saved leaves in the template's structure."""
  leaves, structure = jax.tree.flatten(template)
  found = jax.tree.leaves(saved)
  shapes = [leaf.shape for leaf in leaves], [leaf.shape for leaf in found]
  assert shapes[0] == shapes[1], f"an artefact of the same key has other shapes: {shapes}"
  return jax.tree.unflatten(structure, found)
