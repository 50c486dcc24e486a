"""ZSKT: a generator seeks images on which student and teacher differ; the student learns them."""

import dataclasses

import jax
from toys.tiny import Generator, fresh_generator

from rkd_jax import losses
from rkd_jax.methods import base


@dataclasses.dataclass(frozen=True)
class Method(base.Method):
  size: int = 8
  turns = (("generator", 1), ("student", 3))
  delivers = {"student": "student", "generator": "generator"}  # noqa: RUF012

  def roles(self, networks):
    adam = {"name": "adam", "learning_rate": 1e-3}
    generator = base.Role(Generator(), "generator", adam, init=fresh_generator)
    return {**super().roles(networks), "generator": generator}

  def batch(self, key, variables, state, batch, step):
    return {"noise": jax.random.normal(key, (self.size, 6))}, state

  def loss(self, player, variables, state, batch, targets, key, step):
    images = variables["generator"](batch["noise"])
    teacher = variables["teacher"](images, train=False)[0].logits
    outputs, stats = variables["student"](images, train=True)
    kl = losses.kl_divergence(teacher, outputs.logits)
    if player == "generator":
      return {"adversarial": -kl.mean()}, base.Aux(metrics={"images": images.mean()})
    return {"kl": kl.mean()}, base.Aux({"student": stats})
