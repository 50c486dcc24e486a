"""ShuffleNetV2 (Ma et al., 2018, arXiv:1807.11164)."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from rkd_jax.models import layers
from rkd_jax.models.network import Edit, Outputs

BLOCKS = {"stage2": 4, "stage3": 8, "stage4": 4}
WIDTHS = {  # channels of the stages and of the last convolution (the paper's table 5)
  0.5: (48, 96, 192, 1024),
  1.0: (116, 232, 464, 1024),
  1.5: (176, 352, 704, 1024),
  2.0: (244, 488, 976, 2048),
}
STEMS = {"imagenet": (3, 2), "cifar": (3, 1), "pointwise": (1, 1)}  # size and stride


class Model(nn.Module):
  """ShuffleNetV2 of some width, as torchvision has it.

  Stages are named as in the paper, so each has the resolution of an ImageNet ResNet's of that name.
  A block's closing ReLU acts on one half of the channels; the other half passes from an earlier
  ReLU, so the ReLU of both is the same: that is the `pre_relu`, after any edit, and the feature is
  its ReLU. Only half of it comes from a norm, so no norm gives a margin.

  Attributes:
    width: 0.5, 1, 1.5 or 2.
    classes: K.
    stem: "imagenet", a 3x3 convolution and a pool, each of stride 2; "cifar", the 3x3 alone, of
      stride 1; "pointwise", a 1x1 (RepDistiller's).
    dtype: of the activations; parameters, statistics, embedding and logits are float32.
    bn_group: examples per normalisation group (see `norm.BatchNorm`).
  """

  width: float = 1.0
  classes: int = 1000
  stem: str = "imagenet"
  dtype: Dtype = jnp.float32
  bn_group: int | None = None

  def __post_init__(self):
    layers.choose("The width of a ShuffleNetV2", self.width, WIDTHS)
    layers.choose("stem", self.stem, STEMS)
    super().__post_init__()

  @property
  def stages(self) -> tuple[str, ...]:
    return tuple(BLOCKS)

  @property
  def margin_bn(self) -> dict[str, tuple[str, ...]]:
    return {}

  @nn.compact
  def __call__(self, images: jax.Array, train: bool, edit: Edit | None = None) -> Outputs:
    """Normalised images [B, H, W, C] -> Outputs (`bn` left empty)."""
    features, pre_relu = {}, {}
    normed = functools.partial(layers.normed, dtype=self.dtype, bn_group=self.bn_group)
    *widths, wide = WIDTHS[self.width]
    x = nn.relu(normed(images, train, "conv", 24, *STEMS[self.stem]))
    x = layers.max_pool(x, 3, 2, 1) if self.stem == "imagenet" else x
    for (stage, count), channels in zip(BLOCKS.items(), widths, strict=True):
      for i in range(count):
        shape = (channels, 2 if i == 0 else 1)
        x = Block(*shape, self.dtype, self.bn_group, name=f"{stage}_block{i}")(x, train)
        if i == count - 1:
          x = pre_relu[stage] = layers.edited(edit, stage, x)
        x = nn.relu(x)
      features[stage] = x
    x = nn.relu(normed(x, train, "stage4_last", wide, 1))
    embedding = x.mean((1, 2), dtype=jnp.float32)
    logits = nn.Dense(self.classes, name="head")(embedding)
    return Outputs(logits, features, pre_relu, embedding)


class Block(nn.Module):
  """Two halves of the channels, shuffled: one passes, the other goes through 1x1, 3x3, 1x1.

  With a stride both come from all channels, the first by a 3x3 and a 1x1. The closing ReLU is the
  caller's.
  """

  channels: int
  stride: int
  dtype: Dtype = jnp.float32
  bn_group: int | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """x [B, H, W, C] -> [B, H/stride, W/stride, channels]."""
    normed = functools.partial(layers.normed, dtype=self.dtype, bn_group=self.bn_group)
    half = self.channels // 2
    left, y = (x, x) if self.stride > 1 else jnp.split(x, 2, -1)
    if self.stride > 1:
      left = normed(left, train, "left_depthwise", x.shape[-1], 3, self.stride, alone=True)
      left = normed(left, train, "left_conv", half, 1)
    y = nn.relu(normed(y, train, "conv1", half, 1))
    y = normed(y, train, "depthwise", half, 3, self.stride, alone=True)
    y = normed(y, train, "conv2", half, 1)
    return jnp.stack([left, y], -1).reshape(*y.shape[:-1], self.channels)
