"""SAMerging: the student is a learned mix of experts; its coefficients use adaptive SAM."""

import dataclasses

import jax
import jax.numpy as jnp

from rkd_jax import losses
from rkd_jax.methods import base


@dataclasses.dataclass(frozen=True)
class Method(base.Method):
  turns = (("coef", 1),)
  sam, sam_adaptive = 0.07, True

  def roles(self, networks):
    experts = {name: base.Role(networks["teacher"]) for name in ("origin", "expert1", "expert2")}
    return {**experts, "coef": base.Role(player="coef", init=self.start)}

  def start(self, key, made, example):
    return jnp.full((2, len(jax.tree.leaves(made["origin"].params))), 0.3)

  def materialize(self, variables):
    origin, coef = variables["origin"], iter(variables["coef"].T)
    experts = [variables[name].params for name in ("expert1", "expert2")]

    def merge(start, *ends):
      return start + sum(c * (end - start) for c, end in zip(next(coef), ends, strict=True))

    student = origin.with_params(jax.tree.map(merge, origin.params, *experts))
    return {**variables, "student": student}

  def targets(self, frozen, batch, key):
    return [frozen[name](batch["image"], train=False)[0].logits for name in ("expert1", "expert2")]

  def loss(self, player, variables, state, batch, targets, key, step):
    logits = variables["student"](batch["image"], train=False)[0].logits
    kl = [losses.kl_divergence(answer, logits, 2.0).mean() for answer in targets]
    return {"kl": sum(kl)}, base.Aux()
