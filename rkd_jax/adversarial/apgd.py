"""Auto-PGD (Croce and Hein 2020, arXiv 2003.01690, algorithm 1): ascent that sets its own steps.

The step begins at twice the radius and is halved, example by example, when at one of the planned
iterations the loss rose too seldom since the last, or the best loss has not risen although the step
was not halved then. A halved example goes on from its best point.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rkd_jax.adversarial import ball, base
from rkd_jax.errors import UserError, check_range

MOMENTUM = 0.75  # of the last move
ENOUGH = 0.75  # the share of iterations in which the loss has to rise
NEED = {"ce": 2, "dlr": 3, "dlr-t": 4}  # loss -> classes


def difference_of_logits_ratio(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """DLR = -(z_y - max_{i != y} z_i) / (z_(1) - z_(3)), float[B] (eq. 6).

  Invariant to scale and shift of the logits. Needs three classes.
  """
  ranked = jnp.sort(logits, -1)
  return -base.margin(logits, labels) / (ranked[:, -1] - ranked[:, -3] + 1e-12)


def targeted_ratio(logits: jax.Array, labels: jax.Array, targets: jax.Array) -> jax.Array:
  """DLR with a target, -(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2), float[B] (eq. 7)."""
  ranked = jnp.sort(logits, -1)
  own, wanted = (jnp.take_along_axis(logits, at[:, None], -1)[:, 0] for at in (labels, targets))
  return -(own - wanted) / (ranked[:, -1] - (ranked[:, -3] + ranked[:, -4]) / 2 + 1e-12)


@dataclasses.dataclass(frozen=True)
class APGD(base.Attack):
  """100 iterations from a random start; the last fooling point, else that of the highest loss.

  Attributes:
    loss: "ce", "dlr", or "dlr-t" towards a target.
    rank: the target is the class that is this likely on the clean image, 2 the runner-up.
    steps: iterations.
    restarts: >= 1.
  """

  loss: str = "ce"
  rank: int = 2
  steps: int = 100
  restarts: int = 1

  def __post_init__(self):
    super().__post_init__()
    if self.loss not in NEED:
      raise UserError(f"APGD's loss is {self.loss!r}; choose one of {', '.join(NEED)}.")
    check_range("APGD's steps", self.steps, 1, 10**6)
    check_range("APGD's restarts", self.restarts, 1, 10**6)
    check_range("APGD's rank", self.rank, 2, 10**6)

  @property
  def forward(self):
    return 1 + self.restarts * (self.steps + 1)

  @property
  def backward(self):
    return self.restarts * (self.steps + 1)

  def __call__(self, apply, images, labels, keys):
    logits = base.checked(self, apply, images, labels, max(NEED[self.loss], self._ranks))
    targets = jnp.argsort(logits, -1)[:, -self.rank] if self._ranks else labels
    best, top = images, jnp.full(len(images), -jnp.inf)
    for number in range(self.restarts):
      own = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
      found = self._one(apply, images, labels, targets, own)
      reached = jnp.where(found["fooled"], jnp.inf, found["loss"])
      best, top = _where(reached > top, found["answer"], best), jnp.maximum(reached, top)
    return best

  @property
  def _ranks(self) -> int:
    return self.rank if self.loss == "dlr-t" else 0

  def _one(self, apply, images, labels, targets, keys) -> dict[str, jax.Array]:
    # what is static is the kind of attack: radii, targets and steps share one compiled program
    kind = dataclasses.replace(self, eps=0.0, rank=2, steps=1, restarts=1)
    given = apply, images, labels, targets, keys, jnp.float32(self.eps)
    due = jnp.asarray(plan(self.steps))
    state = base.advance(_step, kind, (given, due), _begin(kind, given), self.steps)
    base.check_sound(state["top"], state["spoilt"])
    fooled = state["fooled"]
    answer = jnp.where(fooled[:, None, None, None], state["adversarial"], state["best"])
    return {"answer": answer, "fooled": fooled, "loss": state["top"]}


def plan(steps: int) -> np.ndarray:
  """int32[steps]: 0, or at an iteration where steps may be halved how many came since the last.

  The first after 22 % of all, each next after 3 % fewer, down to 6 %.
  """
  due, at = np.zeros(steps, np.int32), -1
  length, least, less = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
  while (at := at + length) < steps:
    due[at] = length
    length = max(length - less, least)
  return due


def _seen(attack: APGD, given: Any, x: jax.Array) -> tuple[jax.Array, ...]:
  """(gradient, loss float[B], bool[B] whether fooled) at x."""
  apply, _, labels, targets, _, _ = given

  def loss(x):
    logits = apply(x)
    if attack.loss == "ce":
      value = base.cross_entropy(logits, labels)
    elif attack.loss == "dlr":
      value = difference_of_logits_ratio(logits, labels)
    else:
      value = targeted_ratio(logits, labels, targets)
    return value.sum(), (value, logits)

  gradient, (value, logits) = jax.grad(loss, has_aux=True)(x)
  return gradient, value, base.fooled(logits, labels)


@functools.partial(jax.jit, static_argnames="attack")
def _begin(attack: APGD, given: Any) -> dict[str, jax.Array]:
  _, images, _, _, keys, eps = given
  draw = jax.random.normal
  if attack.norm == "linf":
    draw = functools.partial(jax.random.uniform, minval=-1.0)
  way = jax.vmap(lambda key: draw(key, images.shape[1:]))(keys)
  way = way / (ball.norms(way, attack.norm) + ball.SMALL)
  x = ball.project(images + eps * way, images, eps, attack.norm)
  gradient, value, fooled = _seen(attack, given, x)
  nothing = jnp.zeros(len(images))
  return {
    "x": x, "old": x, "gradient": gradient, "size": nothing + 2 * eps,
    "best": x, "best_gradient": gradient, "top": value,  # of the highest loss
    "adversarial": x, "fooled": fooled,
    "last": nothing, "rises": nothing,  # the loss before, and how often it rose since the last look
    "top_then": value, "halved": nothing + 1,  # at the last look
    "spoilt": nothing,  # NaN where a loss was not finite
  }  # fmt: skip


def _step(attack: APGD, given: Any, i: jax.Array, state: dict[str, jax.Array]):
  given, due = given
  images, eps, norm = given[1], given[5], attack.norm
  x, size = state["x"], state["size"][:, None, None, None]
  share = jnp.where(i > 0, MOMENTUM, 1.0)
  moved = ball.project(x + size * ball.steepest(state["gradient"], norm), images, eps, norm)
  moved = x + share * (moved - x) + (1 - share) * (x - state["old"])
  new = ball.project(moved, images, eps, norm)
  gradient, value, fooled = _seen(attack, given, new)

  higher = value > state["top"]
  state = {
    **state,
    "old": x, "x": new, "gradient": gradient,
    "best": _where(higher, new, state["best"]),
    "best_gradient": _where(higher, gradient, state["best_gradient"]),
    "top": jnp.maximum(value, state["top"]),
    "adversarial": _where(fooled, new, state["adversarial"]),
    "fooled": state["fooled"] | fooled,
    "rises": state["rises"] + (value > state["last"]), "last": value,
    "spoilt": state["spoilt"] + 0 * value,
  }  # fmt: skip
  return jax.tree.map(lambda a, b: jnp.where(due[i] > 0, a, b), _looked(state, due[i]), state)


def _looked(state: dict[str, jax.Array], since: jax.Array) -> dict[str, jax.Array]:
  """The state after a planned look: whoever does not get on takes half the step, from the best."""
  seldom = state["rises"] <= ENOUGH * since
  stuck = (state["halved"] == 0) & (state["top_then"] >= state["top"])
  halve = seldom | stuck
  return {
    **state,
    "size": jnp.where(halve, state["size"] / 2, state["size"]),
    "x": _where(halve, state["best"], state["x"]),
    "gradient": _where(halve, state["best_gradient"], state["gradient"]),
    "halved": halve.astype(jnp.float32),
    "top_then": state["top"],
    "rises": jnp.zeros_like(state["rises"]),
  }


def _where(who: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.where(who[:, None, None, None], a, b)
