"""A network of two stages for 8x8 images, behind the real contract."""

import jax.numpy as jnp
from flax import linen as nn

from rkd_jax.models.network import Network, Outputs
from rkd_jax.models.norm import BatchNorm


class Tiny(nn.Module):
  width: int = 4
  classes: int = 3
  stages = ("stage1", "stage2")
  margin_bn = {"stage1": ("norm1",), "stage2": ("norm2",)}  # noqa: RUF012

  @nn.compact
  def __call__(self, images, train, edit=None):
    x, features, pre_relu = images, {}, {}
    for i, stage in enumerate(self.stages, 1):
      x = nn.Conv(self.width * i, (3, 3), (2, 2), use_bias=False, name=f"conv{i}")(x)
      x = BatchNorm(name=f"norm{i}")(x, train)
      x = pre_relu[stage] = edit(stage, x) if edit else x
      x = features[stage] = nn.relu(x)
    embedding = x.mean((1, 2))
    logits = nn.Dense(self.classes, name="head")(embedding)
    return Outputs(jnp.float32(logits), features, pre_relu, embedding)


def network(width: int = 4) -> Network:
  return Network(Tiny(width), (8, 8, 1), (0.5,), (0.25,))


class Generator(nn.Module):
  """Noise float[B, Z] -> images float[B, 8, 8, 1] in [0, 1]."""

  @nn.compact
  def __call__(self, noise):
    x = nn.Dense(4 * 4 * 4)(noise).reshape(-1, 4, 4, 4)
    x = nn.leaky_relu(jnp.repeat(jnp.repeat(x, 2, 1), 2, 2))
    return nn.sigmoid(nn.Conv(1, (3, 3))(x))


def fresh_generator(key, made, example):
  return Generator().init(key, jnp.zeros((1, 6)))
