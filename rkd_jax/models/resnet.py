"""Residual networks for small images (He et al., 2016, arXiv:1512.03385, section 4.2)."""

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
  """ResNet-depth, post-activation: three stages of (depth - 2) / 6 blocks.

  A stage's `pre_relu` is the sum before its closing ReLU, after any edit; its feature is the ReLU
  of that. The margin is taken from the norm after the stage's last convolution.

  Attributes:
    depth: 6n + 2 layers: 8, 14, 20, 26, 32, 44, 56, 110, ...
    width: the stages have 1, 2 and 4 times this many channels.
    classes: K.
    shortcut: where a block changes the shape: "A", every other pixel and zeros for the new channels
      (half on either side), or "B", a 1x1 convolution and a norm.
    stem: channels of the first convolution; 0: `width` (32 and a width of 64 are RepDistiller's
      "x4" networks).
    dtype: of the activations; parameters, statistics, embedding and logits are float32.
    bn_group: examples per normalisation group (see `norm.BatchNorm`).
  """

  depth: int = 20
  width: int = 16
  classes: int = 10
  shortcut: str = "A"
  stem: int = 0
  dtype: Dtype = jnp.float32
  bn_group: int | None = None

  def __post_init__(self):
    if self.depth < 8 or (self.depth - 2) % 6:
      near = range(8, max(self.depth, 8) + 7, 6)[-2:]
      raise UserError(
        f"A CIFAR ResNet of depth {self.depth} does not exist: the depth is 6n + 2. "
        f"The nearest are {near[0]} and {near[1]}."
      )
    if self.shortcut not in ("A", "B"):
      raise UserError(
        f"shortcut is {self.shortcut!r}; it must be 'A' (zero padding) or 'B' (1x1 convolution)."
      )
    super().__post_init__()

  @property
  def stages(self) -> tuple[str, ...]:
    return STAGES

  @property
  def margin_bn(self) -> dict[str, tuple[str, ...]]:
    last = (self.depth - 2) // 6 - 1
    return {stage: (f"{stage}_block{last}", "norm2") for stage in STAGES}

  @nn.compact
  def __call__(self, images: jax.Array, train: bool, edit: Edit | None = None) -> Outputs:
    """Normalised images [B, H, W, C], H and W at least 8 -> Outputs (`bn` left empty)."""
    features, pre_relu, last = {}, {}, (self.depth - 2) // 6 - 1
    x = layers.conv(self.stem or self.width, 3, dtype=self.dtype, name="conv")(images)
    x = nn.relu(BatchNorm(self.bn_group, dtype=self.dtype, name="norm")(x, train))
    for stage, factor, stride in zip(STAGES, (1, 2, 4), (1, 2, 2), strict=True):
      for i in range(last + 1):
        shape = (factor * self.width, stride if i == 0 else 1, self.shortcut)
        block = Block(*shape, self.dtype, self.bn_group, name=f"{stage}_block{i}")
        x = block(x, train)
        if i == last:
          x = pre_relu[stage] = layers.edited(edit, stage, x)
        x = nn.relu(x)
      features[stage] = x
    embedding = x.mean((1, 2), dtype=jnp.float32)
    logits = nn.Dense(self.classes, name="head")(embedding)
    return Outputs(logits, features, pre_relu, embedding)


class Block(nn.Module):
  """conv, norm, ReLU, conv, norm beside a shortcut; the closing ReLU is the caller's."""

  channels: int
  stride: int = 1
  shortcut: str = "A"
  dtype: Dtype = jnp.float32
  bn_group: int | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """x [B, H, W, C] -> the sum [B, H/stride, W/stride, channels]."""
    conv = functools.partial(layers.conv, self.channels, dtype=self.dtype)
    norm = functools.partial(BatchNorm, self.bn_group, dtype=self.dtype)
    y = conv(3, self.stride, name="conv1")(x)
    y = nn.relu(norm(name="norm1")(y, train))
    y = conv(3, name="conv2")(y)
    y = norm(name="norm2")(y, train)
    if self.stride == 1 and x.shape[-1] == self.channels:
      return x + y
    if self.shortcut == "A":
      # Zeros on either side, as the common PyTorch checkpoints of option A expect.
      new = self.channels - x.shape[-1]
      x = x[:, :: self.stride, :: self.stride]
      return layers.pad_channels(x, new // 2, new - new // 2) + y
    x = conv(1, self.stride, name="shortcut")(x)
    return norm(name="shortcut_norm")(x, train) + y
