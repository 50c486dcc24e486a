"""What methods that attack while they train share: each round's images, changed for the worst.

The change is found in `batch`, which is not differentiated, so `targets` may ask the teacher about
it and `loss` takes it as it is (Danskin's theorem, Madry et al. 2018).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from rkd_jax import losses
from rkd_jax.adversarial import ball, pgd
from rkd_jax.errors import UserError, check_range
from rkd_jax.methods import base, kd

LEAST = 1e-6  # of a step
NEAR = 0.001  # standard deviation of a start beside the image


@dataclasses.dataclass(frozen=True)
class Robust(base.Method):
  """Adds "adversarial" float[B, H, W, C] to the batch: images in a ball that raise `inner`.

  With a teacher, its answer to the clean images is there too, as "answer" float[B, K]. Running
  statistics are those of the forward pass on clean images, where a method makes one.

  Attributes:
    eps: radius, in pixels of [0, 1].
    steps: of the ascent.
    step_size: of each step, in pixels; 0: 2.5 eps / steps.
    norm: of the ball, "linf" or "l2".
    attack_bn: normalisation of the student during the ascent: "eval" (running statistics) or
      "train" (the batch's; then an image's change depends on the batch).
  """

  eps: float = 8 / 255
  steps: int = 10
  step_size: float = 0.0
  norm: str = "linf"
  attack_bn: str = "eval"

  def __post_init__(self):
    ball.check(self.norm, self.eps)
    check_range(f"{self.name}.steps", self.steps, 0, 10**4)
    check_range(f"{self.name}.step_size", self.step_size, 0, 1e4)
    self._one_of("attack_bn", ("eval", "train"))

  def _one_of(self, field: str, choices: tuple[str, ...]) -> None:
    if (given := getattr(self, field)) not in choices:
      raise UserError(f"{self.name}.{field} is {given!r}; choose one of {', '.join(choices)}.")

  def inner(self, variables: Mapping[str, Any], batch: base.Batch) -> pgd.Objective:
    """What the change of an image is to raise: images -> float[B]."""
    raise NotImplementedError(f"{type(self)} defines no inner objective")

  def begin(self, keys: jax.Array, images: jax.Array) -> jax.Array:
    """Where the ascent starts: at random in the ball. `keys`: key[B]."""
    return ball.random_start(keys, images, self.eps, self.norm)

  def attacks(self) -> bool:
    """Whether there is anything to find."""
    return True

  def batch(self, key, variables, state, batch, step):
    if "teacher" in variables:
      batch = {**batch, "answer": self.answer(variables, batch["image"])}
    if self.attacks():
      keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["index"])
      batch = {**batch, "adversarial": self._worst(keys, variables, batch)}
    return batch, state

  def _worst(self, keys, variables, batch):
    size = self.step_size or max(2.5 * self.eps / max(self.steps, 1), LEAST)
    return pgd.ascend(
      self.inner(variables, batch), batch["image"], self.begin(keys, batch["image"]),
      eps=self.eps, step=size, steps=self.steps, norm=self.norm,
    )  # fmt: skip

  def attacked(self, variables: Mapping[str, Any], images: jax.Array) -> jax.Array:
    """The student's logits as the ascent sees them."""
    return variables["student"](images, train=self.attack_bn == "train")[0].logits

  def answer(self, networks: Mapping[str, Any], images: jax.Array) -> Any:
    """The teacher's logits float[B, K]."""
    return self.taught(networks, images).logits

  def targets(self, frozen, batch, key) -> base.Tree:
    return batch.get("answer", ())

  def hard(self, logits: jax.Array, batch: base.Batch) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy with the label, else with the teacher's argmax: (value, weight)."""
    if "answer" in batch:
      batch = kd.with_teachers_labels(batch, batch["answer"])
    return losses.mixed_cross_entropy(logits, batch)


def beside(keys: jax.Array, images: jax.Array, eps: float, norm: str) -> jax.Array:
  """Images with a little noise: where the gradient of a divergence is not 0. `keys`: key[B]."""
  noise = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(keys)
  return ball.project(images + NEAR * noise, images, eps, norm)


def everyone(value: jax.Array) -> tuple[jax.Array, jax.Array]:
  """A term in which every example counts alike."""
  return value, jnp.ones_like(value)


def student_on(variables: Mapping[str, Any], images: jax.Array, key: jax.Array) -> tuple[Any, Any]:
  """(the student's logits, its new running statistics) on images, normalised by the batch."""
  outputs, stats = variables["student"](images, train=True, key=key)
  return outputs.logits, stats
