"""Deep pyramidal residual networks for small images (Han et al., 2017, arXiv:1610.02915)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from rkd_jax.errors import UserError
from rkd_jax.models import layers
from rkd_jax.models.network import Edit, Outputs
from rkd_jax.models.norm import BatchNorm

STAGES: tuple[str, ...] = ("stage1", "stage2", "stage3")
LAYERS = {"basic": 2, "bottleneck": 3}  # convolutions of a block


class Model(nn.Module):
  """PyramidNet-depth of widening alpha: every block has alpha / n more channels than the last.

  A stage's feature is the raw sum that leaves it, after any edit; its `pre_relu` is that sum after
  the norm that follows (the next stage's first, or the last norm), as in the code of feature
  distillation's papers, though but for the last a convolution stands between it and the next ReLU.

  Attributes:
    depth: 6n + 2 layers (basic) or 9n + 2 (bottleneck): 110, 164, 200, 236, 272, ...
    alpha: channels that all n blocks add to the first 16: 48, 84, 270 (110); 240 (200); ...
    classes: K.
    block: "basic", two 3x3 convolutions, or "bottleneck".
    dtype: of the activations; parameters, statistics, embedding and logits are float32.
    bn_group: examples per normalisation group (see `norm.BatchNorm`).
  """

  depth: int = 110
  alpha: int = 48
  classes: int = 10
  block: str = "basic"
  dtype: Dtype = jnp.float32
  bn_group: int | None = None

  def __post_init__(self):
    layers.choose("block", self.block, LAYERS)
    step = 3 * LAYERS[self.block]
    if self.depth < step + 2 or (self.depth - 2) % step:
      near = range(step + 2, max(self.depth, step + 2) + step + 1, step)[-2:]
      raise UserError(
        f"A PyramidNet of {self.block} blocks has {step}n + 2 layers, not {self.depth}. "
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

  @property
  def widths(self) -> tuple[tuple[int, ...], ...]:
    """Channels of the 3x3 convolutions of every block, by stage."""
    count = (self.depth - 2) // (3 * LAYERS[self.block])
    width, found = 16.0, []
    for _ in range(3 * count):
      width += self.alpha / (3 * count)  # added one by one: rounding is what the checkpoints have
      found.append(round(width))
    return tuple(tuple(found[k * count : (k + 1) * count]) for k in range(3))

  @nn.compact
  def __call__(self, images: jax.Array, train: bool, edit: Edit | None = None) -> Outputs:
    """Normalised images [B, H, W, C], H and W at least 8 -> Outputs (`bn` left empty)."""
    features, normed = {}, []
    norm = functools.partial(BatchNorm, self.bn_group, dtype=self.dtype)
    x = layers.conv(16, 3, dtype=self.dtype, name="conv")(images)
    x = norm(name="stem_norm")(x, train)
    for stage, widths in zip(STAGES, self.widths, strict=True):
      for i, width in enumerate(widths):
        stride = 2 if i == 0 and stage != STAGES[0] else 1
        shape = (width, 0, stride) if self.block == "basic" else (4 * width, width, stride)
        x, first = Block(*shape, self.dtype, self.bn_group, name=f"{stage}_block{i}")(x, train)
        if i == 0:
          normed.append(first)
      x = features[stage] = layers.edited(edit, stage, x)
    normed.append(norm(name="norm")(x, train))
    embedding = nn.relu(normed[-1]).mean((1, 2), dtype=jnp.float32)
    logits = nn.Dense(self.classes, name="head")(embedding)
    return Outputs(logits, features, dict(zip(STAGES, normed[1:], strict=True)), embedding)


class Block(nn.Module):
  """norm, then convolution and norm two or three times with ReLUs between, beside a shortcut.

  The shortcut has no parameters: means of 2x2 pixels where the block strides, zeros for channels
  that are new.
  """

  channels: int
  middle: int
  stride: int
  dtype: Dtype = jnp.float32
  bn_group: int | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
    """x [B, H, W, C] -> (sum [B, H/stride, W/stride, D], output of norm1 [B, H, W, C])."""
    norm = functools.partial(BatchNorm, self.bn_group, dtype=self.dtype)
    y = first = norm(name="norm1")(x, train)
    convs = layers.block_convs(self.channels, self.middle, self.stride)
    for i, window in enumerate(convs, start=1):
      y = layers.conv(*window, dtype=self.dtype, name=f"conv{i}")(y if i == 1 else nn.relu(y))
      y = norm(name=f"norm{i + 1}")(y, train)
    x = _halved(x) if self.stride == 2 else x
    return layers.pad_channels(x, 0, y.shape[-1] - x.shape[-1]) + y, first


def _halved(x: jax.Array) -> jax.Array:
  """Means of 2x2 pixels; at the end of an odd side of those that are there."""
  odd: Any = tuple((0, side % 2) for side in x.shape[1:3])
  halved = nn.avg_pool(x, (2, 2), (2, 2), odd, count_include_pad=False)
  return halved.astype(x.dtype)  # the counts are of another type
