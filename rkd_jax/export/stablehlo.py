"""A network as StableHLO, which any JAX runs without the code that made it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rkd_jax.export import needs
from rkd_jax.models.network import Network

PLATFORMS = ("cpu", "cuda", "tpu")


def serialized(network: Network, variables: Any, layout: str) -> bytes:
  """What `jax.export.deserialize` reads: images float32[B, ...] in [0, 1] of any number -> logits.

  Products are of full float32, also where a device would take fewer bits by itself: so its answers
  are the same everywhere.

  Args:
    layout: of the images, "nhwc" or "nchw".

  Raises:
    UserError: flatbuffers is not installed.
  """
  needs.package("flatbuffers", "StableHLO")
  held = jax.tree.map(np.asarray, variables)
  height, width, channels = network.image_shape
  shape = (channels, height, width) if layout == "nchw" else network.image_shape

  def answer(images: jax.Array) -> jax.Array | None:
    images = images.transpose(0, 2, 3, 1) if layout == "nchw" else images
    return network.apply(held, images, train=False)[0].logits

  (batch,) = jax.export.symbolic_shape("batch")
  images = jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
  with jax.default_matmul_precision("highest"):
    return bytes(jax.export.export(jax.jit(answer), platforms=PLATFORMS)(images).serialize())


def loaded(data: bytes) -> Callable[[np.ndarray], np.ndarray]:
  """images -> logits float32[B, K], as someone else would run the file."""
  call = jax.jit(jax.export.deserialize(bytearray(data)).call)
  return lambda images: np.asarray(call(images))
