"""IGDM (Lee, Cho, Kim 2025, arXiv 2312.03286): input gradients matched by differences of logits.

Where a network is locally linear, f(x + d) - f(x - d) is 2 d . grad f: matching these differences
on the way to an adversarial image matches the gradients along it, without a second derivative.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from rkd_jax import losses
from rkd_jax.errors import UserError, check_range
from rkd_jax.methods import base, robust


@dataclasses.dataclass(frozen=True)
class Method(base.Plugin):
  """Adds weight D(T(x + d) - T(x - d), S(x + d) - S(x - d)), d the base's change of the image.

  Attributes:
    base: a method that attacks while it trains and has a teacher.
    weight: >= 0; 0 leaves the base as it is.
    distance: D: "kl", of the softmaxes of the differences, or "l2", their mean squared distance.
  """

  weight: float = 1.0
  distance: str = "kl"
  nested: ClassVar = {"base": "rslad"}
  asks_teacher: ClassVar = "compares student and teacher"

  def __post_init__(self):
    check_range("igdm.weight", self.weight, 0, 1e6)
    if self.distance not in ("kl", "l2"):
      raise UserError(f"igdm.distance is {self.distance!r}; choose one of kl, l2.")
    inner = self.base
    while isinstance(inner, base.Plugin):
      inner = inner.base
    if not isinstance(inner, robust.Robust) or not inner.attacks():
      raise UserError(
        f"igdm looks along the images that its base attacks with, but {inner.name!r} makes none. "
        "Wrap one that does, as rslad, ard, iad or adaad."
      )

  def _both(self, batch):
    """x + d and x - d, the second inside the box."""
    there = batch["adversarial"]
    return there, jnp.clip(2 * batch["image"] - there, 0, 1)

  def targets(self, frozen, batch, key):
    found = super().targets(frozen, batch, key)
    if not self.weight:
      return {"base": found}
    said = [self.taught(frozen, images).logits for images in self._both(batch)]
    there, back = map(jnp.asarray, said)
    return {"base": found, "slope": there - back}

  def loss(self, player, variables, state, batch, targets, key, step):
    terms, aux = super().loss(player, variables, state, batch, targets["base"], key, step)
    if not self.weight:
      return terms, aux
    there, back = (robust.student_on(variables, x, key)[0] for x in self._both(batch))
    own, wanted = there - back, targets["slope"]
    if self.distance == "kl":
      value = losses.kl_divergence(wanted, own)
    else:
      value = jnp.square(own - wanted).mean(-1)
    return {**terms, "slope": robust.everyone(self.weight * value)}, aux
