"""A generator of images from noise, for distillation without data.

The shape is that of ZSKT (Micaelli & Storkey 2019, arXiv:1905.09768) and of CMI: noise through a
dense layer to a quarter of the image's sides, doubled twice between convolutions. Theirs in ZSKT
ends in a batch normalisation whose output is read as normalised pixels, without bounds. Here a
sigmoid follows: what comes out are pixels in [0, 1], so that whatever is found on such images holds
for images, and a trigger dug out of a teacher is one that an image can carry.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from rkd_jax.errors import UserError, check_range

EPSILON = 1e-5


class Generator(nn.Module):
  """Noise float[B, Z] -> images float32[B, H, W, C] in [0, 1].

  Normalises by the batch at hand and keeps no running statistics: ask it for as many images as it
  is trained with.

  Attributes:
    image_shape: (H, W, C), H and W multiples of 4.
    width: channels of the last hidden layer; the others have twice as many.
    mean, std: per channel, what pixels have at first, about; ZSKT's begin with those of the data,
      and a teacher's are known from its normalisation. (): no last normalisation (CMI has none).
  """

  image_shape: tuple[int, int, int]
  width: int = 64
  mean: tuple[float, ...] = ()
  std: tuple[float, ...] = ()

  def __post_init__(self):
    height, width = self.image_shape[:2]
    if height % 4 or width % 4 or not (height and width):
      raise UserError(
        f"The generator doubles its images' sides twice, so they must be multiples of 4; these are "
        f"{height}x{width}. Resize the data, as with --config.data.size=32."
      )
    check_range("generator.width", self.width, 1, 10**4)
    super().__post_init__()

  @nn.compact
  def __call__(self, noise: jax.Array) -> jax.Array:
    height, width, channels = self.image_shape
    shape = height // 4, width // 4, 2 * self.width
    x = nn.Dense(shape[0] * shape[1] * shape[2], name="dense")(noise).reshape(-1, *shape)
    x = BatchNormed(name="norm0")(x)
    conv = functools.partial(nn.Conv, kernel_size=(3, 3), padding=1)
    for place, hidden in enumerate((2 * self.width, self.width), 1):
      x = conv(hidden, name=f"conv{place}")(doubled(x))
      x = nn.leaky_relu(BatchNormed(name=f"norm{place}")(x), 0.2)
    x = conv(channels, name="conv3")(x)
    if not self.mean:
      return nn.sigmoid(x)
    mean, std = jnp.clip(jnp.asarray([self.mean, self.std]), 0.01, 0.99)
    slope, start = std / (mean * (1 - mean)), jnp.log(mean / (1 - mean))  # of the sigmoid there
    shape = (1, 1, 1, channels)
    return nn.sigmoid(slope.reshape(shape) * BatchNormed(name="norm3")(x) + start.reshape(shape))


class BatchNormed(nn.Module):
  """Batch normalisation of [B, h, w, C] by its own mean and biased variance, always."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (1, 1, 1, x.shape[-1])
    scale = self.param("scale", nn.initializers.ones, x.shape[-1:]).reshape(shape)
    bias = self.param("bias", nn.initializers.zeros, x.shape[-1:]).reshape(shape)
    mean, var = x.mean((0, 1, 2), keepdims=True), x.var((0, 1, 2), keepdims=True)
    return (x - mean) * jax.lax.rsqrt(var + EPSILON) * scale + bias


def doubled(x: jax.Array) -> jax.Array:
  """[B, h, w, C] -> [B, 2h, 2w, C], every place four times."""
  return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def fresh(generator: Generator, noise: int) -> Callable[..., Any]:
  """A role's `init`: first variables of a generator that takes so many numbers an image."""
  return lambda key, made, example: generator.init(key, jnp.zeros((1, noise)))
