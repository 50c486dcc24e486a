"""The contract of test-time attacks.

An attack is a frozen dataclass of its hyper-parameters, called as

  attack(apply, images, labels, keys) -> images float32[B, H, W, C], within eps of the given ones

with images float32[B, H, W, C] in [0, 1], labels int32[B] in [0, K), and keys key[B]: all that an
example's attack draws is a function of its own key, so it depends neither on the batch nor on who
else is in it. `apply` is a pytree that can be called, images -> logits float32[B, K]
(`jax.tree_util.Partial(function, variables)`): an argument of jitted steps, so networks of one
architecture share what is compiled. On CPU the steps are dispatched from the host, on accelerators
they are one loop (`repeat.py`).
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rkd_jax import losses
from rkd_jax.adversarial import ball
from rkd_jax.errors import UserError
from rkd_jax.repeat import repeat

Apply = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Attack:
  """Base of all attacks.

  Attributes:
    eps: radius, in pixels of [0, 1].
    norm: "linf" or "l2".
  """

  eps: float
  norm: str = "linf"

  def __post_init__(self):
    ball.check(self.norm, self.eps)

  @property
  def forward(self) -> int:
    """Forward passes an example costs."""
    raise NotImplementedError

  @property
  def backward(self) -> int:
    """Backward passes an example costs."""
    raise NotImplementedError

  def __call__(
    self, apply: Apply, images: jax.Array, labels: jax.Array, keys: jax.Array
  ) -> jax.Array:
    raise NotImplementedError

  def counted(
    self, apply: Apply, images: jax.Array, labels: jax.Array, keys: jax.Array
  ) -> tuple[jax.Array, int, int]:
    """(what a call returns, the forward and the backward passes that were really made)."""
    count = len(images)
    changed = self(apply, images, labels, keys)
    return changed, count * self.forward, count * self.backward


# step(kind, given, i, carry) -> carry: `kind` is static, `given` arrays that stay as they are
Step = Callable[[Any, Any, jax.Array, Any], Any]


def advance(step: Step, kind: Hashable, given: Any, carry: Any, times: int, first: int = 0) -> Any:
  """The carry after steps first, first + 1, ..., first + times - 1, called outside programs.

  On CPU one compiled step is called from the host. An accelerator's loop is itself a compiled
  program of arrays: left outside of one, it would be compiled again at every call.
  """
  if jax.default_backend() != "cpu":
    return _all(step, kind, times, given, jnp.int32(first), carry)
  return repeat(lambda i, c: _one(step, kind, given, jnp.int32(first + i), c), carry, times)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _one(step: Step, kind: Hashable, given: Any, i: jax.Array, carry: Any) -> Any:
  return step(kind, given, i, carry)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _all(step: Step, kind: Hashable, times: int, given: Any, first: jax.Array, carry: Any) -> Any:
  return repeat(lambda i, c: step(kind, given, first + i, c), carry, times)


@jax.jit
def logits_of(apply: Apply, images: jax.Array) -> jax.Array:
  return apply(images)


def checked(
  attack: Attack, apply: Apply, images: jax.Array, labels: jax.Array, classes: int = 2
) -> jax.Array:
  """The logits float32[B, K] of the images, after a look at all that was given.

  Args:
    classes: how many the attack needs at least.

  Raises:
    UserError: pixels outside [0, 1], labels outside [0, K), logits that are not finite, or fewer
      classes than the attack needs.
  """
  ball.check(attack.norm, attack.eps, images)
  logits = logits_of(apply, images)
  name, known = type(attack).__name__, logits.shape[-1]
  if known < classes:
    raise UserError(f"{name} needs {classes} classes or more; the network has {known}.")
  given = np.asarray(jax.device_get(labels))
  if given.size and not (given.min() >= 0 and given.max() < known):
    raise UserError(
      f"Labels must lie in [0, {known}), these reach from {given.min()} to {given.max()}. Attack "
      "labelled images only."
    )
  if not bool(jnp.isfinite(logits).all()):
    raise UserError(
      "The network's logits are not finite on the images as they are, so no attack on it means "
      "anything. Look at its weights, and at what it is given."
    )
  return logits


def check_sound(*found: jax.Array) -> None:
  """Raises a `UserError` where an attack met what is not finite: it would say nothing of anybody.

  A NaN compares as false, so it would pass for an image that withstands, or for one that fools.
  """
  if not all(bool(jnp.isfinite(array).all()) for array in found):
    raise UserError(
      "The network's logits or gradients are not finite near these images, so no attack on it "
      "means anything. Look for a root or a logarithm at 0, and for weights that are not finite."
    )


def margin(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """float[B]: z_y - max of the others; an example is fooled where it is not above 0."""
  own = jnp.take_along_axis(logits, labels[:, None], -1)[:, 0]
  others = jnp.where(jax.nn.one_hot(labels, logits.shape[-1], dtype=bool), -jnp.inf, logits)
  return own - others.max(-1)


def fooled(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """bool[B]: whether the class that is said is another."""
  return logits.argmax(-1) != labels


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  return losses.cross_entropy(logits, labels)
