"""Self-Retrospection (ABD, Hong et al. 2023): the student unlearns what one pattern does to all.

A trigger changes every image's class in the same way. So the worst universal perturbation of the
synthetic images is sought on the teacher, a few steps of an inner problem on the student make it
the student's own, and the student is moved so that it does less, through that inner problem.

A perturbation is in standard deviations of the network's pixels, as published: what is added to an
image in [0, 1] is `std` times as much. It is not clipped, as published. Theirs begins at 0, where
the gradient of the divergence is 0 and its first step therefore rounding noise: ours begins at a
small random pattern.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rkd_jax.implicit import fixed_point
from rkd_jax.methods.base import Bound
from rkd_jax.repeat import repeat

Divergence = Callable[[jax.Array, jax.Array], jax.Array]  # logits, logits -> float[B]
START = 0.01  # of the perturbation, uniform in its sign
B1, B2, EPSILON = 0.9, 0.999, 1e-8  # of Adam


def moved(network: Bound, images: jax.Array, delta: jax.Array) -> jax.Array:
  """Images float[B, H, W, C] with delta float[1 or B, H, W, C] standard deviations added."""
  std = jnp.asarray(network.module.std, images.dtype)
  return images + jnp.broadcast_to(delta * std.reshape(1, 1, 1, -1), images.shape)


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

  start = jax.random.uniform(key, (1, *images.shape[1:]), minval=-START, maxval=START)
  still = jnp.zeros_like(start)
  return jax.lax.stop_gradient(repeat(move, (start, still, still), steps)[0])


def inner(divergence: Divergence, rate: float, decay: float) -> Callable[..., jax.Array]:
  """Phi: a descent step of decay |delta|^2 - KL(S(x) || S(x + delta)) in delta."""

  def phi(student: Bound, images: jax.Array, delta: jax.Array) -> jax.Array:
    def objective(delta):
      return decay * jnp.square(delta).sum() - gap(student, divergence, images, delta, train=True)

    return delta - rate * jax.grad(objective)(delta)

  return phi


def outer(
  student: Bound, divergence: Divergence, images: jax.Array, delta: jax.Array, marked: jax.Array,
  detach: bool,
) -> jax.Array:  # fmt: skip
  """psi float[B]: KL(S(x) || S(x + delta on the marked images)).

  Args:
    marked: float[B], 1 on images that are perturbed.
    detach: whether no gradient passes through S(x) (the code for ZSKT; that for CMI lets it).
  """
  plain = student(images, train=True)[0].logits
  plain = jax.lax.stop_gradient(plain) if detach else plain
  seen = moved(student, images, delta * marked.reshape(-1, 1, 1, 1))
  return divergence(plain, student(seen, train=True)[0].logits)


def optimum(
  phi: Callable[..., jax.Array], student: Bound, images: jax.Array, delta: jax.Array, terms: int
) -> jax.Array:
  """delta taken for Phi's fixed point: its gradient in the student is implicit, of `terms` terms.

  As published Phi itself makes no step forward.
  """
  return fixed_point(phi, 0, student, images, delta, terms)
