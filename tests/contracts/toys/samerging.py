"""SAMerging: the student is a learned mix of experts; its coefficients use adaptive SAM."""

import dataclasses

import jax
import jax.numpy as jnp

from rkd_jax import losses
from rkd_jax.methods import base
from rkd_jax.methods.base import Role


@dataclasses.dataclass(frozen=True)
class Method(base.Method):
  turns = (("coef", 1),)
  sam, sam_adaptive = 0.07, True

  def roles(self, networks):
    experts = {name: Role(networks["teacher"]) for name in ("origin", "expert1", "expert2")}
    return {**experts, "coef": Role(player="coef", init=self.start)}

  def start(self, key, made, example):
    return jnp.full((2, len(jax.tree.leaves(made["origin"].params))), 0.3)

  def materialize(self, variables):
    origin, coef = variables["origin"], iter(variables["coef"].T)
    experts = [variables[name].params for name in ("expert1", "expert2")]

    def merge(start, *ends):
      return start + sum(c * (end - start) for c, end in zip(next(coef), ends, strict=True))

    return {
      **variables,
      "student": origin.with_params(jax.tree.map(merge, origin.params, *experts)),
    }

  def targets(self, frozen, batch, key):
    return [frozen[name](batch["image"], train=False)[0].logits for name in ("expert1", "expert2")]

  def loss(self, player, variables, state, batch, targets, key, step):
    logits = variables["student"](batch["image"], train=False)[0].logits
    return {
      f"kl{i}": losses.kl_divergence(t, logits, 2.0).mean() for i, t in enumerate(targets)
    }, base.Aux()
