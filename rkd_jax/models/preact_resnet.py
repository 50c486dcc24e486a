"""Pre-activation residual networks of four stages (He et al., 2016, arXiv:1603.05027).

As the PyTorch code for CIFAR that most such checkpoints come from has it (kuangliu's, which
BackdoorBench took over): no norm follows the last block.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from rkd_jax.models import layers
from rkd_jax.models.layers import BLOCKS, BOTTLENECKS
from rkd_jax.models.network import Edit, Outputs
from rkd_jax.models.norm import BatchNorm

STAGES: tuple[str, ...] = ("stage1", "stage2", "stage3", "stage4")


class Model(nn.Module):
  """PreActResNet-depth: a 3x3 convolution, four stages of blocks, a mean, a linear head.

  A stage's feature is the raw sum that leaves it, after any edit; its `pre_relu` is that sum after
  the next stage's first norm, whose scale and bias give the margin. Nothing follows the last stage
  but the mean: there `pre_relu` is the sum itself, and it has no norm for a margin.

  Attributes:
    depth: 18, 34, 50, 101 or 152.
    width: channels of the first stage's 3x3 convolutions; 64 but for toys and small students.
    classes: K.
    dtype: of the activations; parameters, statistics, embedding and logits are float32.
    bn_group: examples per normalisation group (see `norm.BatchNorm`).
  """

  depth: int = 18
  width: int = 64
  classes: int = 10
  dtype: Dtype = jnp.float32
  bn_group: int | None = None

  def __post_init__(self):
    layers.choose("The depth of a PreActResNet", self.depth, BLOCKS)
    super().__post_init__()

  @property
  def stages(self) -> tuple[str, ...]:
    return STAGES

  @property
  def margin_bn(self) -> dict[str, tuple[str, ...]]:
    return {STAGES[i]: (f"{STAGES[i + 1]}_block0", "norm1") for i in range(3)}

  @nn.compact
  def __call__(self, images: jax.Array, train: bool, edit: Edit | None = None) -> Outputs:
    """Normalised images [B, H, W, C] -> Outputs (`bn` left empty)."""
    features, normed = {}, []
    x = layers.conv(self.width, 3, dtype=self.dtype, name="conv")(images)
    for number, (stage, count) in enumerate(zip(STAGES, BLOCKS[self.depth], strict=True)):
      for i in range(count):
        x, first = self._block(number, i)(x, train)
        if i == 0:
          normed.append(first)
      x = features[stage] = layers.edited(edit, stage, x)
    embedding = x.mean((1, 2), dtype=jnp.float32)
    logits = nn.Dense(self.classes, name="head")(embedding)
    pre_relu = dict(zip(STAGES, (*normed[1:], x), strict=True))
    return Outputs(logits, features, pre_relu, embedding)

  def _block(self, stage: int, i: int) -> "Block":
    stride = 2 if stage and i == 0 else 1
    width = self.width * 2**stage
    shape = (4 * width, width) if self.depth in BOTTLENECKS else (width, 0)
    return Block(*shape, stride, self.dtype, self.bn_group, name=f"{STAGES[stage]}_block{i}")


class Block(nn.Module):
  """norm, ReLU, convolution, two or three times, beside a shortcut: a 1x1 where the shape changes.

  Attributes:
    channels: of the sum.
    middle: channels of the 3x3 between two 1x1; 0: two 3x3.
    stride: of the (first) 3x3.
  """

  channels: int
  middle: int = 0
  stride: int = 1
  dtype: Dtype = jnp.float32
  bn_group: int | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
    """x [B, H, W, C] -> (sum [B, H/stride, W/stride, channels], output of norm1 [B, H, W, C])."""
    conv = functools.partial(layers.conv, dtype=self.dtype)
    norm = functools.partial(BatchNorm, self.bn_group, dtype=self.dtype)
    first = norm(name="norm1")(x, train)
    y = active = nn.relu(first)
    windows = layers.block_convs(self.channels, self.middle, self.stride)
    for i, window in enumerate(windows, start=1):
      if i > 1:
        y = nn.relu(norm(name=f"norm{i}")(y, train))
      y = conv(*window, name=f"conv{i}")(y)
    if self.stride != 1 or x.shape[-1] != self.channels:
      x = conv(self.channels, 1, self.stride, name="shortcut")(active)
    return x + y, first
