"""Consistency: the student answers a perturbed view of an image as the teacher answers the image.

A plug-in that adds one term. "random_blend" is Soft-Randomization (Arani et al. 2019) with a shared
pattern; "universal" uses the worst universal perturbation found so far (UAP training, Shafahi et
al. 2020); "occlusion" shows a piece of another image (CutMix, Yun et al. 2019); "warp" bends the
image (WaNet, Nguyen and Tran 2021); "warped_blend" blends into what was bent. It lowers the rate at
which strong patterns fool a student; it does not undo a wrong label that the teacher gives to a
triggered image of the pool.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from rkd_jax import losses
from rkd_jax.errors import UserError, check_range
from rkd_jax.methods import base, views

# a view -> the field that is its strength
VIEWS = {
  "random_blend": "amplitude",
  "universal": "radius",
  "occlusion": "amplitude",
  "warp": "pixels",
  "warped_blend": "amplitude",
}
DRAWN = {
  "random_blend": views.random_blend,
  "occlusion": views.occlude,
  "warp": views.warp,
  "warped_blend": views.warped_blend,
}


@dataclasses.dataclass(frozen=True)
class Method(base.Plugin):
  """Adds weight * T^2 KL(T(x) || S(x')).

  At strength 0 x' is x, and the term is still there: around `kd` the KL counts about twice.

  Attributes:
    view: how x' is made: "random_blend", "universal", "occlusion", "warp" or "warped_blend".
    weight: of the term, >= 0.
    temperature: of the KL divergence.
    amplitude: largest share of the pattern in a blend (a fourth of it, of the shorter side, is how
      far "warped_blend" bends at most), or of an image's area that the rectangle
      takes, in [0, 1].
    radius: l_inf radius of the universal perturbation, in [0, 1]; it takes one sign step of a tenth
      of the radius a batch.
    redraw: steps after which the universal perturbation is drawn anew.
    pixels: largest displacement of the warp in each direction, in [0, 1024].
  """

  view: str = "random_blend"
  weight: float = 1.0
  temperature: float = 4.0
  amplitude: float = 0.5
  radius: float = 0.1
  redraw: int = 100
  pixels: float = 2.0
  asks_teacher: ClassVar = "teaches what the teacher says"

  def __post_init__(self):
    if self.view not in VIEWS:
      raise UserError(f"consistency.view is {self.view!r}; choose one of {', '.join(VIEWS)}.")
    check_range("consistency.weight", self.weight, 0, 1e6)
    check_range("consistency.temperature", self.temperature, 1e-3, 1e3)
    check_range("consistency.amplitude", self.amplitude, 0, 1)
    check_range("consistency.radius", self.radius, 0, 1)
    check_range("consistency.pixels", self.pixels, 0, 1024)
    check_range("consistency.redraw", self.redraw, 1, 10**9)

  @property
  def cacheable(self):
    return self.base.cacheable  # the answer to the image itself

  def init_state(self, key, variables, example):
    state = super().init_state(key, variables, example)
    if self.view == "universal":
      state["perturbation"] = self._draw(self.own(key), example.batch["image"].shape[1:])
    return state

  def _draw(self, key, shape):
    return jax.random.uniform(key, shape, minval=-self.radius, maxval=self.radius)

  def targets(self, frozen, batch, key):
    answer = self.taught(frozen, batch["image"]).logits
    return {"base": super().targets(frozen, batch, key), "answer": answer}

  def loss(self, player, variables, state, batch, targets, key, step):
    terms, aux = super().loss(player, variables, state, batch, targets["base"], key, step)
    state = state if aux.state is None else aux.state
    student, images = variables["student"], batch["image"]

    def divergence(seen):
      logits = student(seen, train=True, key=key)[0].logits
      return losses.kl_divergence(targets["answer"], logits, self.temperature)

    if self.view == "universal":
      seen = views.shift(images, state["perturbation"])
      state = {**state, "perturbation": self._worse(divergence, images, state, key, step)}
      aux = dataclasses.replace(aux, state=state)
    else:
      seen = DRAWN[self.view](self.own(key), images, getattr(self, VIEWS[self.view]))
    value = divergence(seen)
    return {**terms, "consistency": (self.weight * value, jnp.ones_like(value))}, aux

  def _worse(self, divergence, images, state, key, step):
    """The perturbation after one ascent step on the student as it is; drawn anew now and then."""

    def mean(perturbation):
      return divergence(views.shift(images, perturbation)).mean()

    found = views.ascend(
      mean, jax.lax.stop_gradient(state["perturbation"]), 0.1 * self.radius, self.radius
    )
    fresh = self._draw(self.own(key), found.shape)
    return jax.lax.stop_gradient(jnp.where((step + 1) % self.redraw == 0, fresh, found))
