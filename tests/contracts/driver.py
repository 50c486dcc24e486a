"""Runs a toy: `driver.py NAME DIRECTORY KILL_AT` dies by SIGKILL before that dispatch."""

import dataclasses
import importlib
import os
import pathlib
import signal
import sys

import jax
import numpy as np
from toys import tiny

from rkd_jax.data.augment import Augment
from rkd_jax.data.stream import Nothing, Resident, Rows
from rkd_jax.methods.base import Method, Plugin
from rkd_jax.training import checkpoint, loop, sharding, start, update
from rkd_jax.training.optimizer import Optimizer
from rkd_jax.training.state import make_program

TOYS = ("kdiga", "zskt", "abd", "cmi", "disk", "samerging", "reaugkd", "adba")
DATA_FREE = ("zskt", "abd", "cmi")
ROUNDS, SIZE, BATCH = 6, 16, 8


def method(name: str) -> Method:
  part = importlib.import_module(f"toys.{name}").Method
  return part(base=method("zskt")) if issubclass(part, Plugin) else part()


@dataclasses.dataclass
class Toy:
  """One phase of a toy, as the runner would make it."""

  name: str
  devices: int = 1

  def __post_init__(self):
    self.method = method(self.name)
    self.mesh = sharding.make_mesh(self.devices)
    networks = {"teacher": tiny.network(), "student": tiny.network()}
    self.roles = self.method.roles(networks)
    self.stream = self.make_stream()
    optimizer = Optimizer(learning_rate=0.05)
    augment = Augment() if self.name in DATA_FREE else Augment(flip=True, crop=1)
    self.program = make_program(self.method, self.roles, ROUNDS, augment, self.mesh, optimizer)
    self.example = start.example_of(self.stream, (8, 8, 1), 3)

  def make_stream(self):
    put = lambda tree: sharding.replicate(self.mesh, tree)  # noqa: E731
    if self.name in DATA_FREE:
      return Nothing(BATCH, 2, 7, put)
    draw = np.random.default_rng(0)
    labels = np.arange(SIZE, dtype=np.int32) % 3
    images = draw.integers(0, 120, (SIZE, 8, 8, 1)) + 60 * labels.reshape(-1, 1, 1, 1)
    return Resident(Rows(images.astype(np.uint8), labels), BATCH, 7, put)

  def given(self):
    """Delivered values for the frozen networks."""
    frozen = {name: role for name, role in self.roles.items() if not role.player}
    keys = jax.random.split(jax.random.key(3), len(frozen))
    return {
      name: start.fresh(role.module, key)
      for (name, role), key in zip(frozen.items(), keys, strict=True)
    }

  def run(self, directory: pathlib.Path):
    """The state at the end, going on from the directory's checkpoints."""
    checkpoints = checkpoint.Checkpoints(directory)
    state, frozen = start.resumed(
      self.program, self.roles, self.given(), self.stream, self.example, checkpoints
    )
    phase = loop.Running(
      self.program, self.roles, self.stream, frozen, self.example, log_every=2, save_every=2
    )
    with loop.StopSignal() as stop:
      state = loop.train(phase, state, checkpoints, stop)
    checkpoints.close()
    self.frozen = frozen
    return state


def die_at(dispatch: int) -> None:
  """Makes the process kill itself before this dispatch of a step's program."""
  count = iter(range(dispatch))

  def counted(call):
    def wrapped(*args, **kwargs):
      if next(count, None) is None:
        os.kill(os.getpid(), signal.SIGKILL)
      return call(*args, **kwargs)

    return wrapped

  update._turn, update._round = counted(update._turn), counted(update._round)


if __name__ == "__main__":
  if len(sys.argv) > 3:
    toy = Toy(sys.argv[1])
    die_at(int(sys.argv[3]))
    toy.run(pathlib.Path(sys.argv[2]))
