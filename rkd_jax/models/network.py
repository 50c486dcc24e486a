"""The contract of every architecture: pixels in, named outputs out, nothing mutated.

A file `models/<name>.py` defines `class Model(nn.Module)` with the fields `classes`, `dtype` and
`bn_group`, the call `__call__(images, train, edit) -> Outputs` on normalised images, and the static
properties `stages` and `margin_bn`. Everything else is done here, once.

Dim letters: B batch, H W C image, K classes, D features, h w c feature map.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from rkd_jax.models import norm

# edit(stage, tensor) -> tensor of the same shape, applied just before the stage's closing ReLU.
Edit = Callable[[str, jax.Array], jax.Array]


@struct.dataclass
class Outputs:
  """What a network says of a batch. Nothing in it stops a gradient.

  Attributes:
    logits: float32[B, K], or None for a network without a head.
    features: {stage: float[B, h, w, c]}, what the stage passes on (after any edit).
    pre_relu: {stage: float[B, h, w, c]}, what the next ReLU sees (after any edit).
    embedding: float32[B, D], the input of the head.
    bn: {path: float[B, h, w, c]}, inputs of the batch normalisations; empty unless captured.
  """

  logits: jax.Array | None
  features: dict[str, jax.Array] = struct.field(default_factory=dict)
  pre_relu: dict[str, jax.Array] = struct.field(default_factory=dict)
  embedding: jax.Array | None = None
  bn: dict[str, jax.Array] = struct.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Network:
  """An architecture together with the pixels it expects. Holds no arrays; hashable.

  Attributes:
    module: the Flax module.
    image_shape: (H, W, C).
    mean, std: per channel, of pixels in [0, 1]: normalisation is part of the network, so a trigger,
      an input gradient and an l_p ball of two networks live in one space.
  """

  module: nn.Module
  image_shape: tuple[int, int, int]
  mean: tuple[float, ...]
  std: tuple[float, ...]

  def init(self, key: jax.Array) -> dict[str, Any]:
    """Fresh variables: {"params": ..., "batch_stats": ...} (no batch_stats without BatchNorm)."""
    images = jnp.zeros((1, *self.image_shape), jnp.float32)
    return dict(self.module.init(key, images, train=False, edit=None))

  def apply(
    self,
    variables: Mapping[str, Any],
    images: jax.Array,
    train: bool,
    key: jax.Array | None = None,
    edit: Edit | None = None,
    capture: bool = False,
  ) -> tuple[Outputs, Any]:
    """Runs the network on images float[B, H, W, C] in [0, 1].

    Args:
      variables: as made by `init`.
      images: float[B, H, W, C], pixels in [0, 1].
      train: normalise by the batch (and return moved running statistics) or by the running ones.
      key: for architectures that draw (dropout); None where nothing is drawn.
      edit: changes the last tensor before each stage's closing ReLU; its result flows on.
      capture: also return the inputs of every batch normalisation.

    Returns:
      (Outputs, new_batch_stats): the latter equal to the given ones unless `train`.
    """
    mean, std = (jnp.asarray(v, images.dtype).reshape(1, 1, 1, -1) for v in (self.mean, self.std))
    mutable = ["batch_stats"] * train + [norm.INPUTS] * capture
    outputs, updated = self.module.apply(
      dict(variables),
      (images - mean) / std,
      train=train,
      edit=edit,
      mutable=mutable,
      rngs=None if key is None else {"dropout": key},
    )
    if capture:
      outputs = dataclasses.replace(outputs, bn=norm.captured(updated.get(norm.INPUTS) or {}))
    return outputs, updated.get("batch_stats", variables.get("batch_stats", {}))

  @property
  def classes(self) -> int:
    return self.module.classes  # type: ignore[attr-defined]

  @property
  def stages(self) -> tuple[str, ...]:
    """Names of the stages in forward order."""
    return self.module.stages  # type: ignore[attr-defined]

  @property
  def margin_bn(self) -> dict[str, tuple[str, ...]]:
    """{stage: path in params} of the BatchNorm just before its `pre_relu` (for OFD's margin)."""
    return self.module.margin_bn  # type: ignore[attr-defined]

  @property
  def convs(self) -> tuple[tuple[str, ...], ...]:
    """Paths in params of all convolution kernels, in forward order."""
    return _convs(self)

  def shapes(self, batch: int = 1) -> Outputs:
    """The `Outputs` of a batch as shapes, without computing anything."""
    images = jax.ShapeDtypeStruct((batch, *self.image_shape), jnp.float32)
    variables = jax.eval_shape(self.init, jax.random.key(0))
    return jax.eval_shape(lambda v, x: self.apply(v, x, train=False)[0], variables, images)


@functools.lru_cache
def _convs(network: Network) -> tuple[tuple[str, ...], ...]:
  paths = []

  def record(call, args, kwargs, context):
    if isinstance(context.module, nn.Conv) and context.method_name == "__call__":
      paths.append((*context.module.path, "kernel"))
    return call(*args, **kwargs)

  # Of a function that was never traced: of one that was, JAX knows the shapes, and runs nothing.
  untraced = lambda key: network.init(key)  # noqa: E731
  with nn.intercept_methods(record):
    jax.eval_shape(untraced, jax.random.key(0))
  return tuple(paths)
