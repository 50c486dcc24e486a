"""Wide residual networks for small images (Zagoruyko & Komodakis, 2016, arXiv:1605.07146)."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from rkd_jax.errors import UserError
from rkd_jax.models import layers
from rkd_jax.models.network import Edit, Outputs
from rkd_jax.models.norm import BatchNorm

STAGES: tuple[str, ...] = ("stage1", "stage2", "stage3")


class Model(nn.Module):
  """WRN-depth-widen, pre-activation: three stages of (depth - 4) / 6 blocks.

  A stage's feature is the raw sum that leaves it, after any edit; its `pre_relu` is that sum after
  the first norm that follows, so the norm whose scale and bias give the margin is the next stage's.

  Attributes:
    depth: 6n + 4 layers: 10, 16, 22, 28, 34, 40, ...
    widen: the stages have 16, 32 and 64 times this many channels.
    classes: K.
    dtype: of the activations; parameters, statistics, embedding and logits are float32.
    bn_group: examples per normalisation group (see `norm.BatchNorm`).
  """

  depth: int = 16
  widen: int = 1
  classes: int = 10
  dtype: Dtype = jnp.float32
  bn_group: int | None = None

  def __post_init__(self):
    if self.depth < 10 or (self.depth - 4) % 6:
      near = range(10, max(self.depth, 10) + 7, 6)[-2:]
      raise UserError(
        f"A WRN of depth {self.depth} does not exist: the depth is 6n + 4. "
        f"The nearest are {near[0]} and {near[1]}."
      )
    super().__post_init__()

  @property
  def stages(self) -> tuple[str, ...]:
    return STAGES

  @property
  def margin_bn(self) -> dict[str, tuple[str, ...]]:
    following = (*((f"{stage}_block0", "norm1") for stage in STAGES[1:]), ("norm",))
    return dict(zip(STAGES, following, strict=True))

  @nn.compact
  def __call__(self, images: jax.Array, train: bool, edit: Edit | None = None) -> Outputs:
    """Normalised images [B, H, W, C], H and W at least 8 -> Outputs (`bn` left empty)."""
    features, normed = {}, []
    x = layers.conv(16, 3, dtype=self.dtype, name="conv")(images)
    for stage, channels, stride in zip(STAGES, (16, 32, 64), (1, 2, 2), strict=True):
      for i in range((self.depth - 4) // 6):
        shape = (channels * self.widen, stride if i == 0 else 1)
        block = Block(*shape, self.dtype, self.bn_group, name=f"{stage}_block{i}")
        x, first = block(x, train)
        if i == 0:
          normed.append(first)
      x = features[stage] = layers.edited(edit, stage, x)
    normed.append(BatchNorm(self.bn_group, dtype=self.dtype, name="norm")(x, train))
    embedding = nn.relu(normed[-1]).mean((1, 2), dtype=jnp.float32)
    logits = nn.Dense(self.classes, name="head")(embedding)
    pre_relu = dict(zip(STAGES, normed[1:], strict=True))
    return Outputs(logits, features, pre_relu, embedding)


class Block(nn.Module):
  """norm, ReLU, 3x3 conv, twice, beside a shortcut: a 1x1 conv where the shape changes."""

  channels: int
  stride: int = 1
  dtype: Dtype = jnp.float32
  bn_group: int | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
    """x [B, H, W, C] -> (sum [B, H/stride, W/stride, channels], output of norm1 [B, H, W, C])."""
    conv = functools.partial(layers.conv, self.channels, dtype=self.dtype)
    norm = functools.partial(BatchNorm, self.bn_group, dtype=self.dtype)
    first = norm(name="norm1")(x, train)
    y = active = nn.relu(first)
    y = conv(3, self.stride, name="conv1")(y)
    y = nn.relu(norm(name="norm2")(y, train))
    y = conv(3, name="conv2")(y)
    if self.stride != 1 or x.shape[-1] != self.channels:
      x = conv(1, self.stride, name="shortcut")(active)
    return x + y, first
