"""Networks for the tests of exports: one of every architecture, small, with odd statistics."""

import functools

import jax
import numpy as np

from rkd_jax import networks
from rkd_jax.models.network import Network

SIDE, CLASSES = 16, 7
NAMES = (
  "wideresnet-10-1",
  "resnet-8",
  "resnet-8-shortcut=B",
  "imagenet_resnet-18-width=4-stem=cifar",
  "imagenet_resnet-50-width=4",
  "preact_resnet-18-width=4",
  "pyramidnet-20-12",
  "mobilenet_v2-0.25-variant=cifar",
  "shufflenet_v2-0.5-stem=cifar",
  "vgg-8-pools=3-width=4",
  "vgg-8-0-8-3-pools=2-width=4",
  "vit-48-2-4-heads=3",
)


@functools.cache
def made(name: str, side: int = SIDE) -> tuple[Network, dict]:
  """(the network, its variables): random, and so are running statistics and biases."""
  network = Network(networks.module(name, classes=CLASSES), (side, side, 3), (0.5, 0.4, 0.3),
                    (0.25, 0.2, 0.3))  # fmt: skip
  draw = np.random.default_rng(0)

  def drawn(path, leaf):  # without compiling `init`
    if leaf.ndim == 1:
      one = jax.tree_util.keystr(path).endswith(("['scale']", "['var']"))
      return np.float32(one) + 0.3 * draw.random(leaf.shape, np.float32)
    fan = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 1
    return (draw.standard_normal(leaf.shape) * (2 / fan) ** 0.5).astype(np.float32)

  shapes = jax.eval_shape(network.init, jax.random.key(0))
  return network, jax.tree_util.tree_map_with_path(drawn, shapes)


@functools.cache
def images(count: int = 5, side: int = SIDE) -> np.ndarray:
  """float32[count, side, side, 3] in [0, 1]."""
  return np.random.default_rng(1).random((count, side, side, 3), np.float32)


@functools.cache
def wanted(name: str) -> np.ndarray:
  """JAX's logits of `images()`."""
  network, variables = made(name)
  call = jax.jit(lambda v, x: network.apply(v, x, train=False)[0].logits)
  return np.asarray(call(variables, images()))
