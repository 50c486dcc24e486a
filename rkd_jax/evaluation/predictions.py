"""Every number of a run is computed from these: the class each network gives each test image."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rkd_jax.backdoors import base as backdoors
from rkd_jax.backdoors import poison
from rkd_jax.data.stream import padded
from rkd_jax.training import sharding, update
from rkd_jax.training.state import Program

Tree = Any


@functools.partial(jax.jit, static_argnames="program")
def _answer(
  program: Program, trees: Tree, memory: Tree, images: jax.Array, index: jax.Array, backdoor: Any
) -> jax.Array:
  rows = jnp.minimum(index, images.shape[0] - 1)
  batch = sharding.split(program.mesh, images[rows]).astype(jnp.float32) / 255
  if backdoor is not None:
    keys = update.example_keys(jnp.uint32(0), update.TRIGGER, 0, index)
    kinds = jnp.full(index.shape, backdoors.POISONED, jnp.int8)
    batch, _ = poison.apply(backdoor, batch, jnp.zeros_like(index), kinds, keys, mode="test")
  variables = program.method.materialize(program.bind(trees))
  logits = program.method.predict(variables, memory, batch)
  return sharding.keep_whole(program.mesh, logits.argmax(-1).astype(jnp.int32))


class Split:
  """Images on the devices, ready to be asked about in batches of one size, exactly."""

  def __init__(self, mesh: jax.sharding.Mesh, images: np.ndarray, batch: int):
    self.size = len(images)
    self.images = sharding.replicate(mesh, images)
    batch = min(batch, -(-self.size // mesh.size) * mesh.size)
    self.batches = [sharding.replicate(mesh, rows) for rows in padded(self.size, batch)]

  def predict(
    self, program: Program, trees: Tree, memory: Tree, backdoor: Any = None
  ) -> np.ndarray:
    """int32[N]: the predicted class of every image, triggered if a backdoor is given.

    Args:
      program: whose method's `predict` is asked.
      trees: {role: variables} of all its roles.
      memory: its method's state.
    """

    def answers() -> Iterator[np.ndarray]:
      pending = [_answer(program, trees, memory, self.images, b, backdoor) for b in self.batches]
      yield from jax.device_get(pending)

    return np.concatenate(list(answers()))[: self.size]
