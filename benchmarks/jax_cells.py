"""What `step.py` times of rkd_jax: one phase's bare jitted step, and the loop around it."""

import dataclasses
import math
import pathlib
import tempfile
import time
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from rkd_jax import config as configs
from rkd_jax import networks
from rkd_jax.data.augment import Augment
from rkd_jax.data.sources import Dataset, Split
from rkd_jax.data.stream import Resident, Rows
from rkd_jax.methods import kd, supervised
from rkd_jax.methods.base import Method
from rkd_jax.reporting.writer import MetricsWriter
from rkd_jax.training import loop, sharding, start, update
from rkd_jax.training.checkpoint import Checkpoints
from rkd_jax.training.optimizer import Optimizer
from rkd_jax.training.state import make_program

ROUNDS = 100_000  # of the phase's schedule; what is timed are its last steps
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # CIFAR-10's
CROP = 4


def synthetic(size: int) -> Rows:
  """Random pixels and labels in CIFAR-10's shapes: uint8[N, 32, 32, 3], int32[N] in [0, 10)."""
  draw = np.random.default_rng(0)
  images = draw.integers(0, 256, (size, 32, 32, 3), dtype=np.uint8)
  return Rows(images, draw.integers(0, 10, size, dtype=np.int32))


def network(name: str, dtype: str) -> Any:
  """The `Network` that a config would name so, for CIFAR-10's shapes."""
  config = configs.default()
  config.dtype = dtype
  one = synthetic(1)
  few = Split(one.image, one.label)
  classes = tuple(str(i) for i in range(10))
  return networks.build(config, name, Dataset("bench", few, few, few, classes, MEAN, STD, ""))


class Cell:
  """A phase on synthetic data: `taught` from `teacher`, or supervised where there is none.

  Augmentation is on (flip, crop 4), so the teacher runs in every step: no targets are cached.
  """

  def __init__(
    self,
    teacher: str,
    student: str,
    rows: Rows,
    batch: int,
    dtype: str,
    taught: Method = kd.Method(),  # noqa: B008 (frozen)
  ):
    mesh = sharding.make_mesh()
    nets = {"student": network(student, dtype)}
    if teacher:
      nets["teacher"] = network(teacher, dtype)
    method = taught if teacher else supervised.Method()
    self.roles = method.roles(nets)
    augment = Augment(flip=True, crop=CROP)
    self.program = make_program(method, self.roles, ROUNDS, augment, mesh, Optimizer())
    self.stream = Resident(rows, batch, seed=0, put=lambda tree: sharding.replicate(mesh, tree))
    self.example = start.example_of(self.stream, (32, 32, 3), 10)
    given = {}
    if teacher:
      given["teacher"] = start.fresh(nets["teacher"], jax.random.key(1))
    phase = self.program, self.roles, given, self.stream, self.example
    first, self.frozen = start.begin(*phase)
    self.first = update.with_metrics(self.program, first, self.frozen, self.stream.source(0))

  @property
  def arguments(self) -> tuple[Any, ...]:
    """What `update._round` takes."""
    return self.program, self.first, self.frozen, self.stream.source(0)

  def params(self, role: str) -> int:
    """How many parameters the role has."""
    tree = (self.frozen | self.first.roles).get(role, {"params": {}})["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(tree))

  def state_before_last(self, steps: int) -> Any:
    """A state of its own buffers (they will be donated), so many steps before the phase's end."""
    state = jax.tree.map(jnp.copy, self.first)
    step = sharding.replicate(self.program.mesh, np.int32(ROUNDS - steps))
    return jax.block_until_ready(dataclasses.replace(state, step=step))

  def bare(self, steps: int) -> float:
    """Seconds of so many calls of the jitted step on one unchanging source."""
    state, source = self.state_before_last(steps), self.stream.source(0)
    began = time.perf_counter()
    for _ in range(steps):
      state = update._round(self.program, state, self.frozen, source)
    jax.block_until_ready(state)
    return time.perf_counter() - began

  def log_every(self, steps: int) -> int:
    """Steps between lines: an epoch, but at least two lines in what is timed."""
    return min(self.stream.steps_per_epoch, math.ceil(steps / 2))

  def loop(self, steps: int) -> float:
    """Seconds of the same steps in `loop.train`: orders drawn, lines written, up to the save."""
    state = self.state_before_last(steps)
    self.stream.source(0)  # so that the order of the epoch to come has to be drawn
    with tempfile.TemporaryDirectory() as name, loop.StopSignal() as stop:
      folder, end = pathlib.Path(name), _End()
      with MetricsWriter(folder / "metrics.jsonl", folder / "tensorboard") as writer:
        hooks = loop.Hooks(log=writer.write)
        phase = loop.Running(
          self.program, self.roles, self.stream, self.frozen, self.example,
          self.log_every(steps), ROUNDS + 1, hooks,
        )  # fmt: skip
        began = time.perf_counter()
        loop.train(phase, state, cast(Checkpoints, end), stop)
    return end.reached - began


class _End:
  """In the place of `Checkpoints`: notes when the first save is asked for and saves nothing."""

  reached = math.nan

  def save(self, step: int, state: Any) -> None:
    jax.block_until_ready(state)
    self.reached = time.perf_counter()
