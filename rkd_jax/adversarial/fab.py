"""FAB-T (Croce and Hein 2020, arXiv 1907.02044): the nearest point of a target's region.

Each iteration linearises the boundary between the label and the target, and goes to where both the
current point and the original one would meet it; whoever is across takes a step back towards the
original. It minimises the distance, so the radius only decides in the end who counts as fooled.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from rkd_jax.adversarial import ball, base
from rkd_jax.errors import check_range

ALPHA, ETA, BETA = 0.1, 1.05, 0.9  # bias to the original at most; overshoot; what a step back keeps


@dataclasses.dataclass(frozen=True)
class FAB(base.Attack):
  """100 iterations towards the class that is `rank`-th most likely on the clean image.

  Attributes:
    rank: 2 is the runner-up.
    steps: iterations.
  """

  rank: int = 2
  steps: int = 100

  def __post_init__(self):
    super().__post_init__()
    check_range("FAB's rank", self.rank, 2, 10**6)
    check_range("FAB's steps", self.steps, 1, 10**6)

  @property
  def forward(self):
    return 1 + 2 * self.steps

  @property
  def backward(self):
    return self.steps

  def __call__(self, apply, images, labels, keys):
    logits = base.checked(self, apply, images, labels, self.rank)
    targets = jnp.argsort(logits, -1)[:, -self.rank]
    given, far = (apply, images, labels, targets), jnp.full(len(images), jnp.inf)
    carry = images, images, far
    x, best, nearest = base.advance(_step, self.norm, given, carry, self.steps)
    base.check_sound(x)
    within = nearest <= self.eps
    return jnp.where(within[:, None, None, None], best, images)


def _step(norm: str, given: Any, i: jax.Array, carry):
  """(x, the nearest point across, its distance) after one iteration."""
  (apply, images, labels, targets), (x, best, nearest) = given, carry

  def towards(x):
    logits = apply(x)
    own, other = (jnp.take_along_axis(logits, at[:, None], -1)[:, 0] for at in (labels, targets))
    return (other - own).sum(), other - own

  slope, value = jax.grad(towards, has_aux=True)(x)
  along = lambda y: (slope * (y - x)).sum((1, 2, 3))  # noqa: E731
  here = to_hyperplane(x, slope, -value, norm)
  there = to_hyperplane(images, slope, -value - along(images), norm)
  near, far = (jnp.maximum(ball.norms(move, norm), 1e-8) for move in (here, there))
  alpha = jnp.minimum(near / (near + far), ALPHA)
  x = jnp.clip((1 - alpha) * (x + ETA * here) + alpha * (images + ETA * there), 0, 1)

  across = base.fooled(apply(x), labels)
  distance = ball.norms(x - images, norm)[:, 0, 0, 0]
  closer = across & (distance < nearest)
  best = jnp.where(closer[:, None, None, None], x, best)
  nearest = jnp.where(closer, distance, nearest)
  return jnp.where(across[:, None, None, None], images + BETA * (x - images), x), best, nearest


def to_hyperplane(points: jax.Array, slope: jax.Array, needed: jax.Array, norm: str) -> jax.Array:
  """The smallest move, in the norm, with <slope, move> = needed and points + move in [0, 1].

  Every coordinate moves by min(lambda u_i, its room), u_i = 1 in l_inf and |slope_i| in l_2,
  towards the side that helps: what that gains is piecewise linear in lambda, and solved by sorting
  where rooms end. Where the box does not suffice, everything goes to its end.

  Args:
    points, slope: float[B, H, W, C].
    needed: float[B].

  Returns:
    float[B, H, W, C].
  """
  shape, size = points.shape, (len(points), -1)
  way = jnp.sign(slope * jnp.sign(needed)[:, None, None, None]).reshape(size)
  points, steep = points.reshape(size), jnp.abs(slope).reshape(size)
  room = jnp.where(way > 0, 1 - points, points)
  pace = jnp.ones_like(steep) if norm == "linf" else steep
  ends = jnp.where(pace > 0, room / jnp.where(pace > 0, pace, 1), jnp.inf)  # lambda, by coordinate
  order = jnp.argsort(ends, -1)
  ends, full, gain = (
    jnp.take_along_axis(a, order, -1) for a in (ends, steep * room, steep * pace)
  )  # fmt: skip
  # up to its k-th end: what has ended gives all its room, the rest goes on gaining
  before = jnp.cumsum(full, -1) - full
  rate = jnp.cumsum(gain[:, ::-1], -1)[:, ::-1]
  wanted = jnp.abs(needed)[:, None]
  at = (wanted - before) / jnp.where(rate > 0, rate, 1)  # lambda, were the k-th the next to end
  fits = (rate > 0) & (at <= ends)
  first = jnp.argmax(fits, -1)[:, None]
  found = jnp.where(fits.any(-1, keepdims=True), jnp.take_along_axis(at, first, -1), jnp.inf)
  length = jnp.where(pace > 0, jnp.minimum(found * jnp.where(pace > 0, pace, 1), room), 0)
  return (way * jnp.where(steep > 0, length, 0)).reshape(shape)
