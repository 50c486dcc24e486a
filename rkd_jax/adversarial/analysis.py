"""What robust accuracy rests on: is the loss linear, do gradients agree, what do they promise?

With l_M(x) = CE(M(x), y), eps a radius in l_p and q the dual norm (1/p + 1/q = 1), for |d|_p <= eps

  l_S(x + d) <= l_S(x) + eps |grad l_T|_q + eps |grad l_S - grad l_T|_q + gamma_S(eps, x)

where gamma is the local linearity measure (Qin et al. 2019, LLR): the largest distance of the loss
to its tangent in the ball. Aligned input gradients (KDIGA, arXiv 2110.12072) make the third term
vanish; nothing in their training bounds the last. gamma is found by ascent, so it is a lower bound
of the true one, and so is the worst loss that the left side is compared with.

`apply` is a pytree that can be called: images float32[B, H, W, C] in [0, 1] -> logits [B, K]. All
results are float32[B], one number an image.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from rkd_jax import losses
from rkd_jax.adversarial import ball
from rkd_jax.adversarial.base import advance
from rkd_jax.errors import check_range

Apply = Callable[[jax.Array], jax.Array]
STEPS = 20  # of the ascents


@jax.jit
def loss(apply: Apply, images: jax.Array, labels: jax.Array) -> jax.Array:
  """The cross-entropy in nats."""
  return losses.cross_entropy(apply(images), labels)


@jax.jit
def slope(apply: Apply, images: jax.Array, labels: jax.Array) -> jax.Array:
  """float[B, H, W, C]: each example's own gradient of the loss in its pixels."""
  return jax.grad(lambda x: loss(apply, x, labels).sum())(images)


def local_linearity(
  apply: Apply, images: jax.Array, labels: jax.Array, keys: jax.Array, *, eps: float, norm: str
) -> jax.Array:
  """gamma(eps, x) = max |l(x + d) - l(x) - d . grad l(x)| over |d| <= eps.

  The largest value that 20 steps of ascent meet from a random start, and as many from the opposite
  one: a loss that bends one way has a hill on either side.

  Args:
    labels: int[B] in [0, K).
    keys: key[B].
  """
  ball.check(norm, eps, images)
  tangent = loss(apply, images, labels), slope(apply, images, labels)
  start, best = ball.random_start(keys, images, eps, norm), jnp.zeros(len(images))
  given = jnp.float32(eps), apply, images, labels, tangent
  for x in (start, ball.project(2 * images - start, images, eps, norm)):
    best = advance(_bend, norm, given, (x, best), STEPS + 1)[1]
  return best


def _bend(norm, given, i, carry):
  """One step up the distance to the tangent; the best distance so far."""
  (eps, apply, images, labels, (flat, gradient)), (x, best) = given, carry

  def distance(x):
    along = (gradient * (x - images)).sum((1, 2, 3))
    away = jnp.abs(loss(apply, x, labels) - flat - along)
    return away.sum(), away

  way, away = jax.grad(distance, has_aux=True)(x)
  moved = x + 2.5 * eps / STEPS * ball.steepest(way, norm)
  return ball.project(moved, images, eps, norm), jnp.maximum(best, away)


def dual(gradient: jax.Array, norm: str) -> jax.Array:
  """float[B]: the norm that is dual to `norm`: l_1 for "linf", l_2 for "l2"."""
  if norm == "linf":
    return jnp.abs(gradient).sum((1, 2, 3))
  return jnp.sqrt(jnp.square(gradient).sum((1, 2, 3)))


def residual(
  student: Apply, teacher: Apply, images: jax.Array, labels: jax.Array, norm: str
) -> jax.Array:
  """|grad l_S - grad l_T| in the dual norm: what alignment leaves."""
  return dual(slope(student, images, labels) - slope(teacher, images, labels), norm)


class Bound(NamedTuple):
  """The terms of the bound, float[B] each; their sum is its right side."""

  clean: jax.Array
  teacher: jax.Array
  residual: jax.Array
  linearity: jax.Array

  @property
  def total(self) -> jax.Array:
    return self.clean + self.teacher + self.residual + self.linearity


def bound(
  student: Apply, teacher: Apply, images: jax.Array, labels: jax.Array, keys: jax.Array, *,
  eps: float, norm: str,
) -> Bound:  # fmt: skip
  """What a student's loss in the ball should not exceed, by its teacher's gradient."""
  return Bound(
    loss(student, images, labels),
    eps * dual(slope(teacher, images, labels), norm),
    eps * residual(student, teacher, images, labels, norm),
    local_linearity(student, images, labels, keys, eps=eps, norm=norm),
  )


def certified_radius(
  apply: Apply, images: jax.Array, labels: jax.Array, keys: jax.Array, *,
  sigma: float = 0.25, select: int = 64, samples: int = 512, alpha: float = 0.001,
) -> np.ndarray:  # fmt: skip
  """The l_2 radius within which the network, smoothed by Gaussian noise, surely says the label.

  Randomised smoothing (Cohen et al. 2019, CERTIFY): R = sigma Phi^-1(p), p the Clopper-Pearson
  lower bound of how often noise leaves the class that `select` first draws chose; 0 where p <= 1/2
  or that class is wrong. Each image's statement fails with probability `alpha` at most. Noise may
  leave [0, 1]: it is the smoothed network's input.

  Args:
    keys: key[B].
    sigma: of the noise, in pixels of [0, 1].
    select, samples: draws that choose the class, and that count it.
  """
  check_range("sigma", sigma, 1e-6, 1e3)
  check_range("alpha", alpha, 1e-12, 0.5)
  counts = [
    advance(
      _vote,
      None,
      (apply, images, keys, jnp.float32(sigma), np.uint32(part)),
      jnp.zeros(jax.eval_shape(apply, images).shape, jnp.int32),
      draws,
    )
    for part, draws in enumerate((select, samples))
  ]
  chosen, counted = (np.asarray(jax.device_get(c)) for c in counts)
  top = chosen.argmax(-1)
  hits = counted[np.arange(len(top)), top]
  lower = stats.beta.ppf(alpha, hits, samples - hits + 1)
  radius = sigma * stats.norm.ppf(np.where(hits > 0, lower, 0.5))
  right = (top == np.asarray(jax.device_get(labels))) & (lower > 0.5)
  return np.where(right, radius, 0).astype(np.float32)


def _vote(kind, given, i, counts):
  """The counts int[B, K] with one more draw of noise on every image."""
  apply, images, keys, sigma, part = given
  own = jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, part), i))(keys)
  noise = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(own)
  said = apply(images + sigma * noise).argmax(-1)
  return counts + jax.nn.one_hot(said, counts.shape[-1], dtype=counts.dtype)
