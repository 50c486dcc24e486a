"""Every number of a run is computed from these: the class each network gives each test image."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rkd_jax.data import lazy
from rkd_jax.data.stream import ahead, padded
from rkd_jax.training import sharding, update
from rkd_jax.training.state import Program

Tree = Any


@functools.partial(jax.jit, static_argnames=("program", "soft"))
def _answer(
  program: Program, trees: Tree, memory: Tree, images: jax.Array, soft: bool = False
) -> jax.Array:
  variables = program.method.materialize(program.bind(trees))
  logits = program.method.predict(variables, memory, sharding.split(program.mesh, images))
  said = jax.nn.softmax(logits) if soft else logits.argmax(-1).astype(jnp.int32)
  return sharding.keep_whole(program.mesh, said)


@functools.partial(jax.jit, static_argnames="mesh")
def _pixels(
  mesh: jax.sharding.Mesh, images: jax.Array, index: jax.Array, backdoor: Any
) -> jax.Array:
  """uint8 -> float32 in [0, 1], with the trigger at its test strength if there is a backdoor."""
  images = images.astype(jnp.float32) / 255
  if backdoor is not None:
    keys = update.example_keys(jnp.uint32(0), update.TRIGGER, 0, index)
    images = backdoor.trigger(images, keys, "test")
  return sharding.split(mesh, images)


_whole = jax.jit(sharding.keep_whole, static_argnums=0)


class Questions:
  """Images to ask networks about, in batches of one size: exact, and compiled once."""

  def __init__(
    self, mesh: jax.sharding.Mesh, images: lazy.Images, batch: int, backdoor: Any = None
  ):
    """Args:
    images: uint8[N, H, W, C], kept on the host, or read when they are asked about.
    batch: how many at once; the last batch is filled up, the fill's answers dropped.
    backdoor: puts its trigger on every image.
    """
    self.mesh, self.images, self.backdoor = mesh, images, backdoor
    self.batch = -(-batch // mesh.size) * mesh.size

  def batches(self) -> Iterator[jax.Array]:
    """float32[batch, H, W, C] in [0, 1], as the networks see them."""
    batches = list(padded(len(self.images), self.batch))
    if isinstance(self.images, np.ndarray):
      yield from map(self._seen, batches, map(self._read, batches))
      return
    with contextlib.closing(ahead(lambda k: self._read(batches[k]), 0, len(batches))) as reader:
      yield from map(self._seen, batches, reader)

  def _read(self, index: np.ndarray) -> np.ndarray:
    return self.images[np.minimum(index, len(self.images) - 1)]

  def _seen(self, index: np.ndarray, images: np.ndarray) -> jax.Array:
    return _pixels(self.mesh, *sharding.replicate(self.mesh, (images, index)), self.backdoor)

  def pixels(self, rows: np.ndarray) -> np.ndarray:
    """uint8[n, H, W, C]: what the networks see of these images, as an image file keeps it."""
    rows = np.asarray(rows, np.int32)
    seen = jax.device_get(_whole(self.mesh, self._seen(rows, self.images[rows])))
    return np.round(seen * 255).astype(np.uint8)

  def ask(self, program: Program, trees: Tree, memory: Tree) -> np.ndarray:
    """int32[N]: the class that the program's method predicts for every image.

    Args:
      trees: {role: variables} of all its roles.
      memory: its method's state.
    """
    return self._ask(program, trees, memory, soft=False)

  def probabilities(self, program: Program, trees: Tree, memory: Tree) -> np.ndarray:
    """float32[N, K]: the softmax of its logits."""
    return self._ask(program, trees, memory, soft=True)

  def _ask(self, program: Program, trees: Tree, memory: Tree, soft: bool) -> np.ndarray:
    program = program.for_prediction()
    asked = dict(program.modules)
    if len(asked) < len(trees):  # a student alone: neither the others nor the state is looked at
      trees, memory = {role: trees[role] for role in asked}, ()
    answers = [_answer(program, trees, memory, images, soft) for images in self.batches()]
    return np.concatenate(jax.device_get(answers))[: len(self.images)]
