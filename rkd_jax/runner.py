"""Runs one phase to its artefact, or loads it: whole, made from the same config, or made again.

An artefact is a directory: `final/` (the roles and the method's state), `metrics.jsonl`, and
`done.json`, written last. A phase that is interrupted goes on from `checkpoints/`.
"""

import contextlib
import dataclasses
import functools
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from rkd_jax import hosts, lookup, workdir
from rkd_jax.backdoors import learned
from rkd_jax.backdoors.base import Backdoor
from rkd_jax.data import augment, seeds
from rkd_jax.data.augment import Augment
from rkd_jax.data.parts import Parts
from rkd_jax.data.sources import Dataset
from rkd_jax.data.stream import Nothing, Resident, Streamed
from rkd_jax.errors import UserError
from rkd_jax.evaluation.predictions import Questions
from rkd_jax.given import Given
from rkd_jax.methods.base import Example, Role
from rkd_jax.models.network import Network
from rkd_jax.networks import Networks
from rkd_jax.phases import Config, Delivery, Phase
from rkd_jax.reporting.files import read_json, write_json
from rkd_jax.reporting.progress import Reporter
from rkd_jax.reporting.writer import read_lines, written
from rkd_jax.setup import Setup
from rkd_jax.spent import Spent, peak_memory
from rkd_jax.training import checkpoint, loop, sharding, start
from rkd_jax.training.optimizer import Optimizer
from rkd_jax.training.state import Program, make_program

Tree = Any
LINES = 20  # of metrics, about, for a phase of many short epochs
MAPPINGS = 20_000
CURVE = 1000  # hold-out images behind a point of the training curve, which selects nothing


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

  def outcome(self) -> str:
    """What its method decided while it trained; "": nothing."""
    return self.program.method.outcome(self.program.bind(self.trees), self.memory)

  def answer(self, questions: Questions) -> np.ndarray:
    """int32[N]: the class of every image."""
    return questions.ask(self.program, self.trees, self.memory)


class Ready(NamedTuple):
  """All that a phase needs before its first state."""

  program: Program
  roles: dict[str, Role]
  given: dict[str, Tree]
  stream: Any
  example: Example


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
    self.teachers = workdir.path(config.teachers_dir or str(directory.parent / "teachers"))
    self.curve = Questions(self.mesh, dataset.holdout.images[:CURVE], config.eval_batch)
    self.holdout = Questions(self.mesh, dataset.holdout.images, config.eval_batch)
    self._done: dict[str, Finished] = {}
    self._parts: dict[int, Parts] = {}

  # What a seed's phases share.

  def parts(self, seed: int) -> Parts:
    """Who sees which images."""
    if seed not in self._parts:
      config = self.config
      rates = config.labels, config.teacher.poison, config.contamination
      plans = config.teacher.plan, config.plan
      score = functools.partial(self._score, seed) if config.plan == "boundary" else None
      self._parts[seed] = Parts(self.dataset, seed, *rates, self._planner(), *plans, score)
    return self._parts[seed]

  def _score(self, seed: int) -> np.ndarray:
    """float[N]: how likely the attacker's witnesses find the target in each triggered image."""
    images, batch = self.parts(seed).pool_images, self.config.eval_batch
    triggered = Questions(self.mesh, images, batch, self.backdoor(seed))
    witnesses = [self.finish(p) for p in Setup(self.config, self.dataset, seed).attackers()]
    said = [triggered.probabilities(w.program, w.trees, w.memory) for w in witnesses]
    return np.mean(said, axis=0)[:, self.config.target]

  def backdoor(self, seed: int) -> Backdoor:
    """The trigger of this seed, delivered by its teacher's phase if it is learned."""
    setup = Setup(self.config, self.dataset, seed)
    if setup.trigger is None:
      return self._planner()
    found = self.deliver(setup.trigger)
    return sharding.replicate(self.mesh, learned.Backdoor(target=self.config.target, **found))

  def _planner(self) -> Backdoor:
    """The backdoor as far as planning goes; for a fixed trigger that is all of it."""
    name, target = self.config.backdoor, {"target": self.config.target}
    if not lookup.defines("backdoors", name):
      return learned.Backdoor(**target)
    fields = self.config.trigger.get(name, ConfigDict()).to_dict()
    return lookup.build("backdoors", name, fields | target)

  # Phases.

  def check(self, phase: Phase) -> set[str]:
    """Raises a `UserError` if the phase's networks cannot see its batches; the roles it trains."""
    train, names = phase.setting("train"), phase.setting("networks")
    networks = Networks(self.config, self.dataset, names, phase.setting("normalisation"))
    if phase.part == "nothing":
      batch = train["batch_size"]
    else:
      batch = min(train["batch_size"], self.parts(phase.seed).count(phase.part))
      self._check_shares(batch, train["augment"])
    for role in names:
      traced(networks[role], batch, Augment(**train["augment"]))
    return {name for name, role in phase.method.roles(networks).items() if role.player}

  def _check_shares(self, batch: int, moves: dict[str, Any]) -> None:
    """Raises a `UserError` where several processes cannot share what is read for a batch."""
    resident = isinstance(self.dataset.train.images, np.ndarray) and not moves["resized_crop"]
    if hosts.count() > 1 and not resident and batch % self.mesh.size:
      raise UserError(
        f"A batch of {batch} cannot be shared by the {self.mesh.size} devices of {hosts.count()} "
        "processes; make batch_size a multiple (a phase of fewer images takes them all at once)."
      )

  def finish(self, phase: Phase) -> Finished:
    """The phase's result; trains it where there is none."""
    if phase.key not in self._done:
      self.stop.check("between two phases")
      for _, delivery in phase.given:
        if isinstance(delivery, Delivery):
          self.finish(delivery.phase)
      setup = Setup(self.config, self.dataset, phase.seed)
      if setup.poison(phase.part):  # what is in its data must be there first
        for needed in [*setup.attackers(), *([setup.trigger.phase] if setup.trigger else [])]:
          self.finish(needed)
      directory = self.directory(phase)
      with workdir.making(directory, self.say.say, self.stop.check):
        self._done[phase.key] = self._load(phase, directory) or self._train(phase, directory)
    return self._done[phase.key]

  def finished(self) -> Iterator[Finished]:
    """What was made or loaded so far, in that order."""
    return iter(self._done.values())

  def directory(self, phase: Phase) -> pathlib.Path:
    """What other runs may want lies outside this one's workdir."""
    if phase.shared:
      return self.teachers / phase.key
    return self.workdir / "phases" / f"seed{phase.seed}" / f"{phase.name}-{phase.key[:8]}"

  def deliver(self, delivery: Delivery | Given) -> Tree:
    if isinstance(delivery, Given):
      return delivery.variables()
    return self.finish(delivery.phase).deliver(delivery.name)

  def steps(self, phase: Phase) -> int:
    """How many rounds the phase has, unless its method stops early."""
    train, epoch = phase.setting("train"), phase.setting("train")["rounds_per_epoch"]
    if phase.part != "nothing":
      size = self.parts(phase.seed).count(phase.part)
      epoch = size // min(train["batch_size"], size)
    return train["steps"] or train["epochs"] * epoch

  def prepare(self, phase: Phase, given: dict[str, Tree]) -> Ready:
    """The phase's program and data, its roles' values as far as they are given."""
    names, norms = phase.setting("networks"), phase.setting("normalisation")
    roles = phase.method.roles(Networks(self.config, self.dataset, names, norms))
    train, stream = phase.setting("train"), self._stream(phase)
    optimizer, changes = Optimizer(**hashable(train["optimizer"])), train["optimizers"]
    changes = {role: hashable(fields) for role, fields in changes.items()}
    moves = Augment(**train["augment"])
    program = make_program(
      phase.method, roles, self.steps(phase), moves, self.mesh, optimizer, changes
    )
    example = start.example_of(stream, self.dataset.image_shape, self.dataset.classes)
    return Ready(program, roles, given, stream, example)

  def _stream(self, phase: Phase) -> Any:
    train, seed = phase.setting("train"), seeds.fold(phase.seed, phase.name)
    put = functools.partial(sharding.replicate, self.mesh)
    if phase.part == "nothing":
      return Nothing(train["batch_size"], train["rounds_per_epoch"], seed, put)
    rows, crop = self.parts(phase.seed).rows(phase.part), train["augment"]["resized_crop"]
    backdoor = None if rows.kind is None else self.backdoor(phase.seed)
    if isinstance(rows.image, np.ndarray) and not crop:
      return Resident(rows, train["batch_size"], seed, put, backdoor)
    spread = functools.partial(sharding.spread, self.mesh)
    share = jax.process_index(), jax.process_count()
    return Streamed(rows, train["batch_size"], seed, put, spread, backdoor, crop, share)

  def _load(self, phase: Phase, directory: pathlib.Path) -> Finished | None:
    """The finished phase, if its artefact is there, whole, and made from the same description."""
    if not hosts.decide((directory / "done.json").exists):
      return None
    try:
      record = read_json(directory / "done.json")
      saved = checkpoint.load_tree(directory / "final")
      whole = checkpoint.digest(saved) == record["sha256"]
    except (PermissionError, MemoryError):
      raise  # not the artefact's fault
    except Exception as error:  # a file of ours or of Orbax that is damaged in whatever way
      checkpoint.alone(directory, error)
      whole, saved, record = False, {}, {}
    if not whole:
      aside = directory.with_name(f"{directory.name}.unreadable")
      kept = f"What was there is kept as {aside.name}."
      self.say.warn(f"{directory} is damaged; the phase {phase.name!r} is made again. {kept}")
      checkpoint.put_aside(directory, aside)
      return None
    ready = self.prepare(phase, self._given(phase))
    state, frozen = start.begin(*ready, surveyed=True)
    trees = frozen | refill(self.mesh, state.roles, saved["roles"])
    memory = refill(self.mesh, state.memory, saved.get("state", {}))
    self._clear(directory)
    self.say.found(described(phase))
    return Finished(phase, ready.program, trees, memory, directory, record)

  def _given(self, phase: Phase) -> dict[str, Tree]:
    return {role: self.deliver(delivery) for role, delivery in phase.given}

  def _train(self, phase: Phase, directory: pathlib.Path) -> Finished:
    workdir.make(directory)
    make_room()
    ready = self.prepare(phase, self._given(phase))
    lines, program = directory / "metrics.jsonl", ready.program
    checkpoints = checkpoint.Checkpoints(directory / "checkpoints", warn=self.say.warn)
    with contextlib.closing(checkpoints), contextlib.closing(ready.stream):
      state, frozen = start.resumed(*ready, checkpoints)
      start.cache_targets(program, program.still(frozen, state.roles), ready.stream)
      step = int(state.step)
      spent = Spent(directory / "spent.json", step)
      with (
        written(lines, directory / "tensorboard", step + 1 if step else 0) as writer,
        self.say.phase(described(phase), step, program.rounds) as tick,
      ):
        stopped = hosts.decide(lambda: had_stopped(lines))  # of the lines that are left
        evaluate = self._evaluator(program, frozen)

        def flush() -> None:
          writer.flush()
          spent.save()

        running = loop.Running(
          program=program,
          roles=ready.roles,
          stream=ready.stream,
          frozen=frozen,
          example=ready.example,
          log_every=log_every(program.rounds, ready.stream.steps_per_epoch),
          save_every=self.config.save_every,
          hooks=loop.Hooks(evaluate, writer.write, flush, tick),
        )
        state = loop.train(running, state, checkpoints, self.stop, stopped)
        jax.block_until_ready(state)
    seconds, images = spent.seconds(), int(state.step) * ready.stream.batch
    record = {"steps": int(state.step), "seconds": seconds}
    record["images_per_second"] = images / seconds if images else None  # none was trained on
    record["peak_memory"] = peak_memory()
    return self._deliver(phase, directory, program, state, frozen, record)

  def _evaluator(self, program: Program, frozen: Tree) -> Any:
    labels = self.dataset.holdout.labels[:CURVE]

    def evaluate(state: Any) -> dict[str, float]:
      answers = self.curve.ask(program, frozen | state.roles, state.memory)
      return {"holdout_acc": float(np.mean(answers == labels))}

    return evaluate

  def _deliver(
    self, phase: Phase, directory: pathlib.Path, program: Program, state: Any, frozen: Tree,
    record: dict[str, Any],
  ) -> Finished:  # fmt: skip
    saved = {"roles": state.roles, "state": checkpoint.flat(state.memory)}
    checkpoint.save_tree(directory / "final", saved)
    record = {"phase": phase.describe(), "sha256": checkpoint.digest(saved)} | record
    write_json(directory / "done.json", record)
    self._clear(directory)
    return Finished(phase, program, frozen | state.roles, state.memory, directory, record)

  def _clear(self, directory: pathlib.Path) -> None:
    """Removes what a phase that is done needs no more."""
    if hosts.first():
      (directory / "spent.json").unlink(missing_ok=True)
      shutil.rmtree(directory / "checkpoints", ignore_errors=True)


@functools.lru_cache
def traced(network: Network, batch: int, augmentation: Augment) -> None:
  """Runs a training step's images through a network, as shapes: mistakes show, nothing is done."""
  image = jax.ShapeDtypeStruct((batch, *network.image_shape), np.float32)
  label = jax.ShapeDtypeStruct((batch,), np.int32)

  def forward(variables: Tree, keys: jax.Array, seen: dict[str, jax.Array]) -> Tree:
    seen = augment.apply(augmentation, keys, seen)
    return network.apply(variables, seen["image"], train=True)

  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
  variables = jax.eval_shape(network.init, jax.random.key(0))
  jax.eval_shape(forward, variables, keys, {"image": image, "label": label, "index": label})


def described(phase: Phase) -> str:
  """A line's worth of what a phase is."""
  method = type(phase.method).__module__.rsplit(".", 1)[-1]
  whose = phase if phase.shared else phase.teacher
  note = f" ({kind(whose)} teacher)" if whose and kind(whose) == "clean" else ""
  return f"seed {phase.seed}  {phase.name}: {method}{note}"


def kind(teacher: Phase | Given) -> str:
  """Whether a teacher, or what it was repaired from, was given, or is the attacker's or the
  control's."""
  if isinstance(teacher, Given):
    return "given"
  if "trigger" in teacher.method.delivers or teacher.part == "poisoned":
    return "poisoned"
  return kind(teacher.teacher) if teacher.teacher else "clean"


def log_every(rounds: int, epoch: int) -> int:
  """Rounds between lines of metrics: an epoch, or several where epochs are short and many."""
  return epoch * max(1, rounds // (LINES * epoch))


def hashable(fields: dict[str, Any]) -> dict[str, Any]:
  """JSON has lists where a compiled program's description has tuples."""
  return {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}


def make_room() -> None:
  """Forgets compiled programs before they use up the process's memory mappings.

  Each takes several, and Linux kills what asks for more than 65,530: a run of hundreds of phases.
  """
  with contextlib.suppress(FileNotFoundError), open("/proc/self/maps", "rb") as maps:
    full = sum(1 for _ in maps) > MAPPINGS
    if any(hosts.every(full)):
      jax.clear_caches()


def had_stopped(lines: pathlib.Path) -> bool:
  """Whether the last line kept is that of a method which stopped early."""
  return "stopped" in (read_lines(lines) or [{}])[-1]


def refill(mesh: jax.sharding.Mesh, template: Tree, saved: Tree) -> Tree:
  """Saved leaves in the template's structure, on the devices."""
  leaves, structure = jax.tree.flatten(template)
  found = jax.tree.leaves(saved)
  if [leaf.shape for leaf in leaves] != [leaf.shape for leaf in found]:
    raise ValueError("an artefact of this key has other shapes")
  return sharding.replicate(mesh, jax.tree.unflatten(structure, found))
