"""The Shuffling Vaccine (Hong et al. 2023, arXiv:2306.02368): which images lean on few channels?

A backdoor is a shortcut through a few channels. A teacher whose last convolutions read their input
channels in another order forgets what needs many channels at once, and keeps what needs few: an
image whose class survives the shuffling is suspicious.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from rkd_jax import losses
from rkd_jax.errors import UserError
from rkd_jax.methods.base import Bound

Path = tuple[str, ...]
TINY = 1e-12  # a divergence, so that it has a logarithm


def kernels(network: Any, layers: int) -> tuple[Path, ...]:
  """Paths in params of the last convolutions that read more than one channel, in forward order.

  Raises:
    UserError: the network has fewer (a ViT has its patch embedding alone).
  """
  found = list(readers(network))
  if len(found) < layers or len(network.convs) < 2:
    raise UserError(
      f"abd shuffles the input channels of the teacher's last {layers} convolutions, and this "
      f"teacher ({type(network.module).__module__}) has {len(found)} that read several channels. "
      "Lower abd.layers, or choose a convolutional teacher."
    )
  return tuple(found[len(found) - layers :])


def readers(network: Any) -> dict[Path, int]:
  """{path in params: how many channels it reads} of all convolutions that read more than one, in
  forward order."""
  params = jax.eval_shape(network.init, jax.random.key(0))["params"]
  shapes: dict[Path, Any] = traverse_util.flatten_dict(dict(params))
  read = {path: shapes[path].shape[-2] for path in network.convs}
  return {path: channels for path, channels in read.items() if channels > 1}


def draw(key: jax.Array, network: Any, layers: int, count: int) -> dict[str, jax.Array]:
  """{kernel: int32[count, channels]}: an independent permutation for every copy and kernel."""
  drawn, read = {}, readers(network)
  for place, path in enumerate(kernels(network, layers)):
    keys = jax.random.split(jax.random.fold_in(key, place), count)
    permuted = functools.partial(jax.random.permutation, x=read[path])
    drawn["/".join(path)] = jax.vmap(permuted)(keys)
  return drawn


def shuffled(teacher: Bound, permutations: Mapping[str, jax.Array], copy: int) -> Bound:
  """The teacher whose kernels read their inputs in the order of this copy: w <- w[:, :, order]."""
  params: dict[Path, Any] = traverse_util.flatten_dict(dict(teacher.params))
  for name, orders in permutations.items():
    path = tuple(name.split("/"))
    params[path] = jnp.take(params[path], orders[copy], axis=-2)
  return teacher.with_params(traverse_util.unflatten_dict(params))


def answers(
  teacher: Bound, permutations: Mapping[str, jax.Array], images: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """(the teacher's logits, the mean of its shuffled copies' logits), float[B, K] each."""
  copies = len(next(iter(permutations.values())))
  said = [shuffled(teacher, permutations, k)(images, train=False)[0].logits for k in range(copies)]
  return teacher(images, train=False)[0].logits, functools.reduce(jnp.add, said) / copies


def suspicious(logits: jax.Array, shuffled: jax.Array) -> jax.Array:
  """float[B], 1 where the class survives the shuffling."""
  return (logits.argmax(-1) == shuffled.argmax(-1)).astype(logits.dtype)


def divergence(logits: jax.Array, shuffled: jax.Array, direction: str, reduction: str) -> jax.Array:
  """How far the shuffled teacher's answer is from its own, float[B].

  Args:
    direction: "forward", KL(T || T~) (the code), or "reverse", KL(T~ || T) (the paper's score).
    reduction: "mean", over the K classes (the code), or "batchmean", in nats.
  """
  pair = (logits, shuffled) if direction == "forward" else (shuffled, logits)
  value = losses.kl_divergence(*pair)
  return value / logits.shape[-1] if reduction == "mean" else value


def tail_ratio(logs: jax.Array) -> jax.Array:
  """The share of log10 divergences below their mean minus three (biased) standard deviations."""
  return (logs < logs.mean() - 3 * logs.std()).astype(jnp.float32).mean()


def log10(divergences: jax.Array) -> jax.Array:
  return jnp.log10(jnp.maximum(divergences, TINY))
