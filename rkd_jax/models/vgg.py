"""VGG networks (Simonyan & Zisserman, 2015, arXiv:1409.1556), with and without batch norms."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from rkd_jax.errors import UserError, check_range
from rkd_jax.models import layers
from rkd_jax.models.network import Edit, Outputs
from rkd_jax.models.norm import BatchNorm

STAGES: tuple[str, ...] = ("stage1", "stage2", "stage3", "stage4", "stage5")
CONVS = {
  8: (1, 1, 1, 1, 1),
  11: (1, 1, 2, 2, 2),
  13: (2, 2, 2, 2, 2),
  16: (2, 2, 3, 3, 3),
  19: (2, 2, 4, 4, 4),
}


class Model(nn.Module):
  """VGG-depth without its dropout: five stages of 3x3 convolutions, pools between.

  `vgg-16` has one linear layer as its head, as the usual code for CIFAR; `vgg-16-1-4096-7` is
  torchvision's vgg16_bn and `vgg-16-0-4096-7` its vgg16. A stage's `pre_relu` is what its last ReLU
  sees, after any edit; its feature is the ReLU of that, before the pool. Without norms there is
  none for a margin.

  Attributes:
    depth: 8, 11, 13, 16 or 19: convolutions, and the paper's three linear layers.
    norm: 1: a batch norm after every convolution; 0: none.
    hidden: units of the two layers between the maps and the head; 0: no such layers.
    pool: maps are averaged to this many pixels squared first.
    pools: stages that are followed by a pool of 2x2, the first ones (RepDistiller's have 3).
    width: channels of the first stage; the others have 2, 4, 8 and 8 times as many.
    classes: K.
    dtype: of the activations; parameters, statistics, embedding and logits are float32.
    bn_group: examples per normalisation group (see `norm.BatchNorm`).
  """

  depth: int = 16
  norm: int = 1
  hidden: int = 0
  pool: int = 1
  pools: int = 5
  width: int = 64
  classes: int = 10
  dtype: Dtype = jnp.float32
  bn_group: int | None = None

  def __post_init__(self):
    layers.choose("The depth of a VGG", self.depth, CONVS)
    layers.choose("norm", self.norm, (0, 1))
    check_range("pools", self.pools, 0, 5)
    check_range("pool", self.pool, 1, 64)
    super().__post_init__()

  @property
  def stages(self) -> tuple[str, ...]:
    return STAGES

  @property
  def margin_bn(self) -> dict[str, tuple[str, ...]]:
    counts = zip(STAGES, CONVS[self.depth], strict=True)
    return {stage: (f"{stage}_norm{n - 1}",) for stage, n in counts if self.norm}

  @nn.compact
  def __call__(self, images: jax.Array, train: bool, edit: Edit | None = None) -> Outputs:
    """Normalised images [B, H, W, C], H and W at least 2^pools -> Outputs (`bn` left empty)."""
    if min(images.shape[1:3]) < 2**self.pools:
      raise UserError(
        f"A VGG with {self.pools} pools needs images of {2**self.pools} pixels or more, not "
        f"{images.shape[1]} x {images.shape[2]}. Choose fewer pools, as in vgg-11-pools=3."
      )
    features, pre_relu, x = {}, {}, images
    for number, (stage, count) in enumerate(zip(STAGES, CONVS[self.depth], strict=True)):
      for i in range(count):
        x = self._layer(x, self.width * min(2**number, 8), f"{stage}_", i, train)
        if i == count - 1:
          x = pre_relu[stage] = layers.edited(edit, stage, x)
        x = nn.relu(x)
      features[stage] = x
      x = layers.max_pool(x, 2, 2) if number < self.pools else x
    embedding = self._embedding(x)
    return Outputs(nn.Dense(self.classes, name="head")(embedding), features, pre_relu, embedding)

  def _layer(self, x, channels: int, stage: str, i: int, train: bool) -> jax.Array:
    x = layers.conv(channels, 3, use_bias=True, dtype=self.dtype, name=f"{stage}conv{i}")(x)
    if not self.norm:
      return x
    return BatchNorm(self.bn_group, dtype=self.dtype, name=f"{stage}norm{i}")(x, train)

  def _embedding(self, x: jax.Array) -> jax.Array:
    """Maps [B, h, w, c] -> float32[B, D], the head's input."""
    x = layers.mean_pool(x, self.pool)
    # channels first, as PyTorch's weights have it
    x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
    for i in range(2 * bool(self.hidden)):
      he = nn.initializers.he_normal()
      dense = nn.Dense(self.hidden, kernel_init=he, dtype=self.dtype, name=f"stage5_dense{i}")
      x = nn.relu(dense(x))
    return x.astype(jnp.float32)
