"""MobileNetV2: inverted residuals, linear bottlenecks (Sandler et al., 2018, arXiv:1801.04381)."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from rkd_jax.errors import check_range
from rkd_jax.models import layers
from rkd_jax.models.network import Edit, Outputs

# The paper's table 2 by resolution: (expansion, channels, blocks, stride of the first).
ROWS = {
  "stage1": ((1, 16, 1, 1), (6, 24, 2, 2)),
  "stage2": ((6, 32, 3, 2),),
  "stage3": ((6, 64, 4, 2), (6, 96, 3, 1)),
  "stage4": ((6, 160, 3, 2), (6, 320, 1, 1)),
}


class Variant(NamedTuple):
  """How someone's code differs: `strides` of the stem and of the 24 channels' first block; the
  largest activation; whether blocks of expansion 1 have an expansion too; whether blocks whose
  channels change but not their size have a shortcut, with a 1x1; the step of channels' numbers.
  """

  strides: tuple[int, int]
  ceiling: float = 6.0
  full: bool = False
  projected: bool = False
  step: int = 8


INFINITE = float("inf")
VARIANTS = {
  "imagenet": Variant((2, 2)),  # the paper, and torchvision
  "cifar": Variant((1, 1)),  # the same at an eighth of 32 pixels (chenyaofo's)
  "kuangliu": Variant((1, 1), INFINITE, full=True, projected=True),
  "distiller": Variant((2, 1), INFINITE, full=True, step=1),  # RepDistiller's and mdistiller's
}


class Model(nn.Module):
  """MobileNetV2 without its dropout.

  Stages end where the resolution changes. Their output is linear, so `pre_relu` and feature are
  both the last block's sum after any edit; the margin is taken from its last norm, as mdistiller's.

  Attributes:
    width: multiplies the channels: 0.5, 0.75, 1, 1.4, ...
    classes: K.
    variant: whose code: "imagenet", "cifar", "kuangliu" or "distiller".
    dtype: of the activations; parameters, statistics, embedding and logits are float32.
    bn_group: examples per normalisation group (see `norm.BatchNorm`).
  """

  width: float = 1.0
  classes: int = 1000
  variant: str = "imagenet"
  dtype: Dtype = jnp.float32
  bn_group: int | None = None

  def __post_init__(self):
    check_range("The width of a MobileNetV2", self.width, 0.05, 20)
    layers.choose("variant", self.variant, VARIANTS)
    super().__post_init__()

  @property
  def stages(self) -> tuple[str, ...]:
    return tuple(ROWS)

  @property
  def margin_bn(self) -> dict[str, tuple[str, ...]]:
    ends = {stage: sum(row[2] for row in rows) - 1 for stage, rows in ROWS.items()}
    return {stage: (f"{stage}_block{last}", "project_norm") for stage, last in ends.items()}

  def blocks(self, stage: str) -> Iterator[tuple[int, int, int]]:
    """(expansion, channels, stride) of every block of a stage."""
    for expansion, channels, count, stride in ROWS[stage]:
      stride = VARIANTS[self.variant].strides[1] if channels == 24 else stride
      for i in range(count):
        yield expansion, self._channels(channels), stride if i == 0 else 1

  def _channels(self, channels: int) -> int:
    """So many times `width`, rounded to a multiple of the step that loses at most a tenth."""
    wanted, step = channels * self.width, VARIANTS[self.variant].step
    if step == 1:
      return int(wanted)
    near = max(step, int(wanted + step / 2) // step * step)
    return near if near >= 0.9 * wanted else near + step

  @nn.compact
  def __call__(self, images: jax.Array, train: bool, edit: Edit | None = None) -> Outputs:
    """Normalised images [B, H, W, C] -> Outputs (`bn` left empty)."""
    features, variant = {}, VARIANTS[self.variant]
    like: dict[str, Any] = dict(dtype=self.dtype, bn_group=self.bn_group)
    stem = (self._channels(32), 3, variant.strides[0])
    x = clipped(layers.normed(images, train, "conv", *stem, **like), variant)
    for stage in ROWS:
      for i, shape in enumerate(self.blocks(stage)):
        x = Block(*shape, variant, **like, name=f"{stage}_block{i}")(x, train)
      x = features[stage] = layers.edited(edit, stage, x)
    wide = max(1280, self._channels(1280))
    x = layers.normed(x, train, "stage4_last", wide, 1, **like)
    embedding = clipped(x, variant).mean((1, 2), dtype=jnp.float32)
    logits = nn.Dense(self.classes, name="head")(embedding)
    return Outputs(logits, features, dict(features), embedding)


class Block(nn.Module):
  """1x1 to `expansion` times the channels, 3x3 of each alone, linear 1x1; beside a shortcut."""

  expansion: int
  channels: int
  stride: int
  variant: Variant
  dtype: Dtype = jnp.float32
  bn_group: int | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """x [B, H, W, C] -> [B, H/stride, W/stride, channels]."""
    normed = functools.partial(layers.normed, dtype=self.dtype, bn_group=self.bn_group)
    wide, y = self.expansion * x.shape[-1], x
    if self.expansion > 1 or self.variant.full:
      y = clipped(normed(y, train, "expand", wide, 1), self.variant)
    y = normed(y, train, "depthwise", wide, 3, self.stride, alone=True)
    y = normed(clipped(y, self.variant), train, "project", self.channels, 1)
    if self.stride == 1 and x.shape[-1] == self.channels:
      return x + y
    if self.stride == 1 and self.variant.projected:
      return normed(x, train, "shortcut", self.channels, 1) + y
    return y


def clipped(x: jax.Array, variant: Variant) -> jax.Array:
  """ReLU, or ReLU6."""
  return nn.relu(x) if variant.ceiling == INFINITE else jnp.clip(x, 0, variant.ceiling)
