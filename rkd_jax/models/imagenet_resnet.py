"""Residual networks of four stages (He et al., 2016, arXiv:1512.03385, table 1).

Called after ImageNet, for which they were made, because `resnet` is the other family of that paper:
three narrow stages for CIFAR. The depths of the two overlap (50 and 152 are 6n + 2 as well).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from rkd_jax.errors import UserError
from rkd_jax.models import layers
from rkd_jax.models.layers import BLOCKS, BOTTLENECKS
from rkd_jax.models.network import Edit, Outputs

STAGES: tuple[str, ...] = ("stage1", "stage2", "stage3", "stage4")
STEMS = {"imagenet": (7, 2), "cifar": (3, 1), "pooled": (3, 1)}  # window and stride


class Model(nn.Module):
  """ResNet-depth, post-activation, as torchvision has it: a bottleneck strides in its 3x3 ("v1.5").

  A stage's `pre_relu` is the sum before its closing ReLU, after any edit; its feature is the ReLU
  of that. The margin is taken from the norm after the stage's last convolution.

  Attributes:
    depth: 18, 34, 50, 101 or 152.
    widen: the 3x3 of a bottleneck has this many times the channels: 50 and 2 are WideResNet-50-2.
    width: channels of the first stage's 3x3 convolutions; 64 but for toys and small students.
    classes: K.
    stem: "imagenet", a 7x7 convolution and a pool, each of stride 2; "cifar", a 3x3 convolution;
      "pooled", that 3x3 and the pool, as huyvnphan's code for CIFAR-10 has it.
    dtype: of the activations; parameters, statistics, embedding and logits are float32.
    bn_group: examples per normalisation group (see `norm.BatchNorm`).
  """

  depth: int = 18
  widen: int = 1
  width: int = 64
  classes: int = 1000
  stem: str = "imagenet"
  dtype: Dtype = jnp.float32
  bn_group: int | None = None

  def __post_init__(self):
    layers.choose("The depth of an ImageNet ResNet", self.depth, BLOCKS)
    layers.choose("stem", self.stem, STEMS)
    if self.widen != 1 and self.depth not in BOTTLENECKS:
      raise UserError(
        f"Only bottlenecks can be widened ({self.widen} times), and a ResNet-{self.depth} has "
        f"none. Choose a depth among {', '.join(map(str, BOTTLENECKS))}, or another width."
      )
    super().__post_init__()

  @property
  def stages(self) -> tuple[str, ...]:
    return STAGES

  @property
  def margin_bn(self) -> dict[str, tuple[str, ...]]:
    last = f"norm{3 if self.depth in BOTTLENECKS else 2}"
    counts = zip(STAGES, BLOCKS[self.depth], strict=True)
    return {stage: (f"{stage}_block{count - 1}", last) for stage, count in counts}

  @nn.compact
  def __call__(self, images: jax.Array, train: bool, edit: Edit | None = None) -> Outputs:
    """Normalised images [B, H, W, C] -> Outputs (`bn` left empty)."""
    features, pre_relu = {}, {}
    x = self._stem(images, train)
    for number, (stage, count) in enumerate(zip(STAGES, BLOCKS[self.depth], strict=True)):
      for i in range(count):
        x = self._block(number, i)(x, train)
        if i == count - 1:
          x = pre_relu[stage] = layers.edited(edit, stage, x)
        x = nn.relu(x)
      features[stage] = x
    embedding = x.mean((1, 2), dtype=jnp.float32)
    return Outputs(nn.Dense(self.classes, name="head")(embedding), features, pre_relu, embedding)

  def _stem(self, images: jax.Array, train: bool) -> jax.Array:
    like: dict[str, Any] = dict(dtype=self.dtype, bn_group=self.bn_group)
    x = nn.relu(layers.normed(images, train, "conv", self.width, *STEMS[self.stem], **like))
    return x if self.stem == "cifar" else layers.max_pool(x, 3, 2, 1)

  def _block(self, stage: int, i: int) -> "Block":
    stride = 2 if stage and i == 0 else 1
    width = self.width * 2**stage
    shape = (4 * width, width * self.widen) if self.depth in BOTTLENECKS else (width, 0)
    return Block(*shape, stride, self.dtype, self.bn_group, name=f"{STAGES[stage]}_block{i}")


class Block(nn.Module):
  """Convolutions and norms with ReLUs between, beside a shortcut; the closing ReLU is the caller's.

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
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """x [B, H, W, C] -> the sum [B, H/stride, W/stride, channels]."""
    normed = functools.partial(layers.normed, dtype=self.dtype, bn_group=self.bn_group)
    y = x
    for i, window in enumerate(
      layers.block_convs(self.channels, self.middle, self.stride), start=1
    ):
      y = normed(y if i == 1 else nn.relu(y), train, f"conv{i}", *window)
    if self.stride != 1 or x.shape[-1] != self.channels:
      x = normed(x, train, "shortcut", self.channels, 1, self.stride)
    return x + y
