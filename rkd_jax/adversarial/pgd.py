"""Projected gradient ascent (Madry et al. 2018): what most attacks and inner maxima are."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from rkd_jax.adversarial import ball, base
from rkd_jax.errors import UserError, check_range
from rkd_jax.repeat import repeat

Objective = Callable[[jax.Array], jax.Array]  # images float[B, H, W, C] -> float[B], to be raised
LOSSES = {"ce": base.cross_entropy, "cw": lambda logits, labels: -base.margin(logits, labels)}


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


@dataclasses.dataclass(frozen=True)
class PGD(base.Attack):
  """The last point of an ascent; of several, per example the one that fools, else the highest.

  Without a random start and of one step: FGSM (Goodfellow et al. 2015). With momentum: MIM (Dong et
  al. 2018). With the loss "cw": the margin of Carlini and Wagner (2017) inside a ball.

  Attributes:
    steps: >= 1.
    step_size: in pixels; 0: 2.5 eps / steps.
    restarts: independent starts, >= 1.
    random_start: begin anywhere in the ball, or at the image.
    momentum: of the gradients, each divided by its l_1 norm; 0: none.
    loss: "ce" or "cw" (the largest other logit less the label's).
  """

  steps: int = 20
  step_size: float = 0.0
  restarts: int = 1
  random_start: bool = True
  momentum: float = 0.0
  loss: str = "ce"

  def __post_init__(self):
    super().__post_init__()
    check_range("PGD's steps", self.steps, 1, 10**6)
    check_range("PGD's step_size", self.step_size, 0, 1e4)
    check_range("PGD's restarts", self.restarts, 1, 10**6)
    check_range("PGD's momentum", self.momentum, 0, 1e3)
    if self.loss not in LOSSES:
      raise UserError(f"PGD's loss is {self.loss!r}; choose one of {', '.join(LOSSES)}.")

  @property
  def forward(self):
    return 1 + self.restarts * (self.steps + 1)

  @property
  def backward(self):
    return self.restarts * self.steps

  def __call__(self, apply, images, labels, keys):
    base.checked(self, apply, images, labels)
    kind = self.norm, self.loss, self.momentum
    size = self.step_size or 2.5 * self.eps / self.steps
    given = apply, images, labels, jnp.float32(self.eps), jnp.float32(size)
    best, found = images, jnp.full(len(images), -jnp.inf)
    for number in range(self.restarts):
      x = images
      if self.random_start:
        x = _start(self.norm, keys, jnp.int32(number), images, given[3])
      x, _ = base.advance(_move, kind, given, (x, jnp.zeros_like(x)), self.steps)
      best, found, reached = _better(self.loss, apply, labels, best, found, x)
      base.check_sound(x, reached)
    return best


# What is static is the kind of attack: radii and steps share one compiled program.


@functools.partial(jax.jit, static_argnames="norm")
def _start(norm: str, keys, number, images, eps):
  own = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
  return ball.random_start(own, images, eps, norm)


def _move(kind: tuple[str, str, float], given, i, carry):
  (norm, loss, momentum), (apply, images, labels, eps, size), (x, velocity) = kind, given, carry
  gradient = jax.grad(lambda x: LOSSES[loss](apply(x), labels).sum())(x)
  if momentum:
    length = jnp.abs(gradient).sum((1, 2, 3), keepdims=True)
    gradient = velocity = momentum * velocity + gradient / jnp.maximum(length, ball.SMALL)
  moved = x + size * ball.steepest(gradient, norm)
  return ball.project(moved, images, eps, norm), velocity


@functools.partial(jax.jit, static_argnames="loss")
def _better(loss: str, apply, labels, best, found, x):
  """Of what was found before and now, per example: what fools comes before what does not.

  Also what was reached now.
  """
  logits = apply(x)
  reached = LOSSES[loss](logits, labels) + 1e6 * base.fooled(logits, labels)
  better = reached > found
  return jnp.where(better[:, None, None, None], x, best), jnp.maximum(found, reached), reached
