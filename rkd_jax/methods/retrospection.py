"""Self-Retrospection (ABD, Hong et al. 2023): the student unlearns what one pattern does to all.

A trigger changes every image's class in the same way. So the worst universal perturbation of the
synthetic images is sought on the teacher, a few steps of an inner problem on the student make it
the student's own, and the student is moved so that it does less, through that inner problem.

A perturbation is in standard deviations of the network's pixels, as published: what is added to an
image in [0, 1] is `std` times as much. It is not clipped, as published. Theirs begins at 0, where
the gradient of the divergence is 0 and its first step therefore rounding noise: ours begins at a
small random pattern.

Where the generator has dug the trigger up, its images of the target class carry it already, and the
perturbation that changes most is the one that takes it away: that teaches the student nothing about
the trigger. Ours may therefore be sought by class (`reach`): the smallest, in l_1, that takes
images of the other classes to each class.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from rkd_jax.implicit import fixed_point
from rkd_jax.methods import inversion
from rkd_jax.methods.base import Bound
from rkd_jax.repeat import repeat

Divergence = Callable[[jax.Array, jax.Array], jax.Array]  # logits, logits -> float[B]
START = 0.01  # of the perturbation, uniform in its sign
B1, B2, EPSILON = 0.9, 0.999, 1e-8  # of Adam


def moved(network: Bound, images: jax.Array, delta: jax.Array) -> jax.Array:
  """Images float[..., H, W, C] with delta [..., H, W, C], in standard deviations, added."""
  std = jnp.asarray(network.module.std, images.dtype)
  return images + delta * std.reshape(*[1] * (images.ndim - 1), -1)


def gap(
  network: Bound, divergence: Divergence, images: jax.Array, delta: jax.Array, train: bool
) -> jax.Array:
  """Mean of KL(N(x) || N(x + delta)). Running statistics stay where they are."""
  plain, seen = (network(x, train=train)[0].logits for x in (images, moved(network, images, delta)))
  return divergence(plain, seen).mean()


def universal(
  network: Bound, divergence: Divergence, images: jax.Array, key: jax.Array, steps: int,
  rate: float, decay: float,
) -> jax.Array:  # fmt: skip
  """float[1, H, W, C]: the perturbation after Adam's ascent of the divergence - decay |delta|^2."""
  plain = network(images, train=False)[0].logits

  def objective(delta):
    seen = network(moved(network, images, delta), train=False)[0].logits
    return decay * jnp.square(delta).sum() - divergence(plain, seen).mean()

  def move(i, carry):
    delta, first, second = carry
    gradient = jax.grad(objective)(delta)
    first = B1 * first + (1 - B1) * gradient
    second = B2 * second + (1 - B2) * gradient**2
    scale = jnp.sqrt(second / (1 - B2 ** (i + 1))) + EPSILON
    return delta - rate * first / (1 - B1 ** (i + 1)) / scale, first, second

  start = beside(key, (1, *images.shape[1:]))
  still = jnp.zeros_like(start)
  return jax.lax.stop_gradient(repeat(move, (start, still, still), steps)[0])


def beside(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Where a perturbation begins: beside 0."""
  return jax.random.uniform(key, shape, minval=-START, maxval=START)


def inner(divergence: Divergence, rate: float, decay: float) -> Callable[..., jax.Array]:
  """Phi: a descent step of decay |delta|^2 - KL(S(x) || S(x + delta)) in delta."""

  def phi(student: Bound, images: jax.Array, delta: jax.Array) -> jax.Array:
    def objective(delta):
      return decay * jnp.square(delta).sum() - gap(student, divergence, images, delta, train=True)

    return delta - rate * jax.grad(objective)(delta)

  return phi


def outer(
  student: Bound, divergence: Divergence, images: jax.Array, seen: jax.Array, detach: bool
) -> jax.Array:
  """psi float[B]: KL(S(x) || S(x')).

  Args:
    images: x, float[B, H, W, C].
    seen: x', the same with the perturbation added to some.
    detach: whether no gradient passes through S(x) (the code for ZSKT; that for CMI lets it).
  """
  plain = student(images, train=True)[0].logits
  plain = jax.lax.stop_gradient(plain) if detach else plain
  return divergence(plain, student(seen, train=True)[0].logits)


def optimum(
  phi: Callable[..., jax.Array], student: Bound, images: jax.Array, delta: jax.Array, terms: int
) -> jax.Array:
  """delta taken for Phi's fixed point: its gradient in the student is implicit, of `terms` terms.

  As published Phi itself makes no step forward.
  """
  return fixed_point(phi, 0, student, images, delta, terms)


# By class.


def reach(
  network: Bound, images: jax.Array, labels: jax.Array, deltas: jax.Array, price: float
) -> tuple[dict[str, Any], jax.Array, jax.Array]:
  """What a perturbation into each class is to lower: CE(N(x + delta_k), k) + price |delta_k|_1.

  The images stay in [0, 1] (`box`).

  Args:
    labels: int[B], the network's classes of the images float[B, H, W, C].
    deltas: float[K, H, W, C].

  Returns:
    (the terms, weight and hit float[K B] as of `inversion.flips`).
  """
  seen = box(moved(network, images[None], deltas[:, None]))
  value, weight, hit = inversion.flips(network, seen, labels)
  return {"flip": (value, weight), "size": price * lengths(deltas).mean()}, weight, hit


def lengths(deltas: jax.Array) -> jax.Array:
  """float[K]: l_1 norms of float[K, H, W, C]."""
  return jnp.abs(deltas).sum((1, 2, 3))


def box(images: jax.Array) -> jax.Array:
  return jnp.clip(images, 0, 1)


@struct.dataclass
class Guarded:
  """A generator from whose images a perturbation is taken away.

  Attributes:
    generator: noise -> images in [0, 1].
    network: whose standard deviations the perturbation is in.
    delta: float[1, H, W, C].
  """

  generator: Bound
  network: Bound
  delta: jax.Array

  def __call__(self, noise: jax.Array) -> jax.Array:
    return box(moved(self.network, self.generator(noise), -self.delta))
