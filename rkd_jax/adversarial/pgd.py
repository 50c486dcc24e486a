"""Projected gradient ascent (Madry et al. 2018): the loop that most attacks and inner maxima are."""

from collections.abc import Callable

import jax

from rkd_jax.adversarial import ball
from rkd_jax.repeat import repeat

Objective = Callable[[jax.Array], jax.Array]  # images float[B, H, W, C] -> float[B], to be raised


def ascend(
  objective: Objective,
  images: jax.Array,
  start: jax.Array,
  *,
  eps: float,
  step: float,
  steps: int,
  norm: str = "linf",
) -> jax.Array:
  """The images after `steps` of x <- project(x + step * steepest(grad objective(x))).

  For use inside a program (an inner maximum of training); unrolled on CPU. Not differentiated
  through: its result carries no gradient.

  Args:
    objective: per example, so that no example's way depends on another's.
    images: float[B, H, W, C] in [0, 1], the balls' centres.
    start: where to begin, inside the balls.
  """

  def move(i, x):
    gradient = jax.grad(lambda x: objective(x).sum())(x)
    return ball.project(x + step * ball.steepest(gradient, norm), images, eps, norm)

  return jax.lax.stop_gradient(repeat(move, jax.lax.stop_gradient(start), steps))
