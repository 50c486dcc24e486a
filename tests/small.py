"""Small phases for tests: a tiny network on 8x8 images, put together as the runner does it."""

import contextlib
import dataclasses
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent / "contracts"))  # the toys are no package

from toys import tiny

from rkd_jax.data.augment import Augment
from rkd_jax.data.stream import Nothing, Resident, Rows, Streamed
from rkd_jax.methods.base import Bound, Method
from rkd_jax.models.network import Outputs
from rkd_jax.training import checkpoint, loop, sharding, start, update
from rkd_jax.training.optimizer import Optimizer
from rkd_jax.training.state import make_program

NETWORKS = {"teacher": tiny.network(), "student": tiny.network(), "shadow": tiny.network()}
PLAIN = Optimizer(learning_rate=0.05)


def rows(size: int = 16, unlabelled: int = 0, kind: Any = None) -> Rows:
  """Images that show their class; the first `unlabelled` have no label."""
  labels = np.arange(size, dtype=np.int32) % 3
  noise = np.random.default_rng(0).integers(0, 120, (size, 8, 8, 1))
  images = (noise + 60 * labels.reshape(-1, 1, 1, 1)).astype(np.uint8)
  return Rows(images, np.where(np.arange(size) < unlabelled, -1, labels).astype(np.int32), kind)


def network(seed: int) -> dict[str, Any]:
  """A tiny network's variables."""
  return start.fresh(tiny.network(), jax.random.key(seed))


@dataclasses.dataclass
class Small:
  """One phase."""

  method: Method
  rows: Rows = dataclasses.field(default_factory=rows)
  rounds: int = 6
  batch: int = 8
  devices: int = 1
  augment: Augment = Augment()  # noqa: RUF009 (frozen)
  optimizer: Optimizer = PLAIN
  given: dict[str, Any] | None = None
  backdoor: Any = None
  networks: dict[str, Any] = dataclasses.field(default_factory=lambda: NETWORKS)
  cached: bool = False
  streamed: bool = False

  def __post_init__(self):
    self.mesh = sharding.make_mesh(self.devices)
    self.roles = self.method.roles(self.networks)
    put = lambda tree: sharding.replicate(self.mesh, tree)  # noqa: E731
    if self.method.part == "nothing":
      self.stream = Nothing(self.batch, self.method.trains().get("rounds_per_epoch", 2), 7, put)
    elif self.streamed:
      spread = lambda tree: sharding.spread(self.mesh, tree)  # noqa: E731
      share = jax.process_index(), jax.process_count()
      self.stream = Streamed(self.rows, self.batch, 7, put, spread, self.backdoor, share=share)
    else:
      self.stream = Resident(self.rows, self.batch, 7, put, self.backdoor)
    self.program = make_program(
      self.method, self.roles, self.rounds, self.augment, self.mesh, self.optimizer
    )
    self.example = start.example_of(self.stream, self.rows.image.shape[1:], 3)
    if self.given is None:
      own = ("player", "init", "from_state", "copy")
      waiting = [n for n, r in self.roles.items() if not any(getattr(r, way) for way in own)]
      self.given = {name: network(3 + i) for i, name in enumerate(waiting)}

  def begin(self, surveyed: bool = False):
    """(first state, frozen roles)."""
    state, frozen = start.begin(
      self.program, self.roles, self.given, self.stream, self.example, surveyed
    )
    state = update.with_metrics(self.program, state, frozen, self.stream.source(0))
    if self.cached:
      start.cache_targets(self.program, self.program.still(frozen, state.roles), self.stream)
    return state, frozen

  def play(self, rounds: int):
    """(state after some rounds, frozen roles), without a loop."""
    state, frozen = self.begin()
    for step in range(rounds):
      state = update.play_round(self.program, state, frozen, self.stream.source(step))
    return state, frozen

  def round(self, state, frozen):
    return update.play_round(self.program, state, frozen, self.stream.source(int(state.step)))

  def train(self, directory: pathlib.Path, hooks: loop.Hooks | None = None, **every: int):
    """The state at the end, going on from the directory's checkpoints, as the runner does."""
    checkpoints = checkpoint.Checkpoints(directory, warn=self.warn)
    state, frozen = start.resumed(
      self.program, self.roles, self.given, self.stream, self.example, checkpoints
    )
    if self.cached:
      start.cache_targets(self.program, self.program.still(frozen, state.roles), self.stream)
    every = {"log_every": self.stream.steps_per_epoch, "save_every": 2} | every
    phase = loop.Running(
      self.program, self.roles, self.stream, frozen, self.example, hooks=hooks or loop.Hooks(),
      **every,
    )  # fmt: skip
    self.frozen = frozen
    with contextlib.closing(checkpoints), loop.StopSignal() as stop:
      return loop.train(phase, state, checkpoints, stop, self.stopped)

  stopped: bool = False

  def warn(self, text: str) -> None:
    self.warnings.append(text)

  warnings: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Fixed:
  """A network whose answer to an image is its first pixel times 255, as a class."""

  classes: int = 3

  def init(self, key):
    return {"params": {"shift": jnp.zeros(())}}

  def apply(self, variables, images, train, key=None, edit=None, capture=False):
    found = jnp.round(images[:, 0, 0, 0] * 255 + variables["params"]["shift"]).astype(int)
    return Outputs(10.0 * jax.nn.one_hot(found % self.classes, self.classes)), {}


def fixed(shift: int = 0) -> Bound:
  return Bound(Fixed(), {"params": {"shift": jnp.float32(shift)}})


def close(a, b, rtol: float = 1e-6, atol: float = 1e-6) -> None:
  """Two trees agree."""
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(jax.device_get(x), jax.device_get(y), rtol=rtol, atol=atol)


class Killed(Exception):  # noqa: N818 (what befalls a process)
  """The phase is gone in the middle of everything."""


def killed(phase: Small, directory: pathlib.Path, step: int) -> None:
  """Trains the phase and lets it die where it would log this step: its last checkpoint is older."""

  def die(at: int, metrics: Any) -> None:
    if at >= step:
      raise Killed

  with contextlib.suppress(Killed):
    phase.train(directory, loop.Hooks(log=die))
