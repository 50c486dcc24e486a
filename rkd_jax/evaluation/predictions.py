"""Every number of a run is computed from these: the class each network gives each test image."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rkd_jax.data.stream import padded
from rkd_jax.training import sharding, update
from rkd_jax.training.state import Program

Tree = Any


@functools.partial(jax.jit, static_argnames="program")
def _answer(program: Program, trees: Tree, memory: Tree, images: jax.Array) -> jax.Array:
  variables = program.method.materialize(program.bind(trees))
  logits = program.method.predict(variables, memory, sharding.split(program.mesh, images))
  return sharding.keep_whole(program.mesh, logits.argmax(-1).astype(jnp.int32))


@functools.partial(jax.jit, static_argnames="mesh")
def _pixels(
  mesh: jax.sharding.Mesh, images: jax.Array, index: jax.Array, backdoor: Any
) -> jax.Array:
  """uint8 -> float32 in [0, 1], with the trigger at its test strength if there is a backdoor."""
  images = images.astype(jnp.float32) / 255
  if backdoor is not None:
    keys = update.example_keys(jnp.uint32(0), update.TRIGGER, 0, index)
    images = backdoor.trigger(images, keys, "test")
  return sharding.keep_whole(mesh, images)


class Split:
  """Images on the devices, asked about in batches of one size: exact, and compiled once."""

  def __init__(self, mesh: jax.sharding.Mesh, images: np.ndarray, batch: int, backdoor: Any = None):
    """Args:
    images: uint8[N, H, W, C].
    batch: how many at once; the last batch is filled up, the fill's answers dropped.
    backdoor: puts its trigger on every image.
    """
    self.size, self.batches = len(images), []
    batch = -(-batch // mesh.size) * mesh.size
    for index in padded(self.size, batch):
      rows = images[np.minimum(index, self.size - 1)]
      placed = sharding.replicate(mesh, (rows, index))
      self.batches.append(_pixels(mesh, *placed, backdoor))

  def pixels(self) -> np.ndarray:
    """uint8[N, H, W, C]: what the networks see, as an image file keeps it."""
    seen = np.concatenate(jax.device_get(self.batches))[: self.size]
    return np.round(seen * 255).astype(np.uint8)

  def predict(self, program: Program, trees: Tree, memory: Tree) -> np.ndarray:
    """int32[N]: the class that the program's method predicts for every image.

    Args:
      trees: {role: variables} of all its roles.
      memory: its method's state.
    """
    program = program.asking()
    pending = [_answer(program, trees, memory, images) for images in self.batches]
    return np.concatenate(jax.device_get(pending))[: self.size]
