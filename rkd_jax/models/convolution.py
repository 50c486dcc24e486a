"""Convolutions whose weights' gradient is fast on CPU, where maps are large.

XLA convolves the images by the gradient, a kernel as large as they are, which on CPU takes up to
fourteen times as long as the convolution itself. Here it is one matrix product for each position of
the kernel, with the images' channels first: twice as long, provided that memory is at hand
(`heap.py`). Small maps are left to XLA, since they would gain less than compiling costs;
accelerators too.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Pair = tuple[int, int]
Pads = tuple[Pair, Pair]
Shape = tuple[int, ...]
NHWC = ("NHWC", "HWIO", "NHWC")
DILATIONS = ("lhs_dilation", "rhs_dilation")
NUMBERS = ("precision", "preferred_element_type")
LARGE = 2**14  # numbers an image in what comes out: 32x32 with 16 channels


def convolve(images: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **more: Any) -> Any:
  """`lax.conv_general_dilated`, as `flax.linen.Conv` calls it.

  Args:
    images: float[B, H, W, C].
    kernel: float[h, w, C, D].
    strides: down and right.
    padding: ((above, below), (left, right)), or a name.
    more: its other arguments.
  """
  special = any(step != 1 for name in DILATIONS for step in more.get(name) or ())
  special |= any(more.get(name) is not None for name in NUMBERS)
  special |= more.get("feature_group_count", 1) > 1 or isinstance(padding, str)
  if jax.default_backend() != "cpu" or special or kernel.shape[:2] == (1, 1):
    return lax.conv_general_dilated(images, kernel, strides, padding, **more)
  (top, side), strides = padding, tuple(strides)
  pads: Any = (tuple(top), tuple(side))
  made = jax.eval_shape(lambda x, k: plain(x, k, strides, pads), images, kernel)
  one = plain if math.prod(made.shape[1:]) < LARGE else _convolve
  return one(images, kernel, strides, pads)


def plain(images: jax.Array, kernel: jax.Array, strides: Pair, pads: Pads) -> Any:
  """The convolution as XLA differentiates it."""
  return lax.conv_general_dilated(images, kernel, strides, pads, dimension_numbers=NHWC)


_convolve: Callable[..., Any] = jax.custom_vjp(plain, nondiff_argnums=(2, 3))


def _forward(images, kernel, strides, pads):
  return _convolve(images, kernel, strides, pads), (images, kernel)


def _backward(strides, pads, seen, gradient):
  images, kernel = seen
  towards = _weights(images, gradient, kernel.shape, strides, pads)
  return _images(images, kernel, gradient, strides, pads), towards


def _images(images, kernel, gradient, strides, pads) -> jax.Array:
  """The images' gradient. Without strides a convolution too, whose own gradients are fast."""
  if strides != (1, 1):
    return jax.vjp(lambda x: plain(x, kernel, strides, pads), images)[1](gradient)[0]
  around = tuple(
    (size - 1 - low, size - 1 - high)
    for size, (low, high) in zip(kernel.shape[:2], pads, strict=True)
  )
  return _convolve(gradient, kernel[::-1, ::-1].swapaxes(2, 3), (1, 1), around)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _weights(
  images: jax.Array, gradient: jax.Array, shape: Shape, strides: Pair, pads: Pads
) -> Any:
  """float[h, w, C, D]: a product of what each of the kernel's positions saw with the gradient.

  One of the kernel's rows after another, so that what they saw takes little memory.
  """
  flat, sides = gradient.reshape(-1, shape[-1]), gradient.shape[1:3]
  channels = jnp.pad(images.transpose(3, 0, 1, 2), ((0, 0), (0, 0), *pads))
  down, right = (step * (side - 1) + 1 for step, side in zip(strides, sides, strict=True))

  def row(i: jax.Array) -> jax.Array:
    rows = lax.dynamic_slice_in_dim(channels, i, down, axis=2)[:, :, :: strides[0]]
    seen = [rows[..., j : j + right : strides[1]] for j in range(shape[1])]
    return jnp.stack([s.reshape(shape[2], -1) @ flat for s in seen])

  return lax.map(row, jnp.arange(shape[0]))


def _products(images, gradient, shape, strides, pads):
  return _weights(images, gradient, shape, strides, pads), (images, gradient)


def _factors(shape, strides, pads, seen, kernel):
  """Linear in the images and in the gradient, so the convolution and its adjoint again."""
  images, gradient = seen
  along = _convolve(images, kernel, strides, pads)
  return _images(images, kernel, gradient, strides, pads), along


_weights.defvjp(_products, _factors)
_convolve.defvjp(_forward, _backward)  # type: ignore[attr-defined]
