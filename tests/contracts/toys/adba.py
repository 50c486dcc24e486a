"""ADBA: teacher, shadow student and trigger in turn; delivers the teacher and its trigger."""

import dataclasses

import jax
import jax.numpy as jnp

from rkd_jax import losses
from rkd_jax.methods import base
from rkd_jax.methods.base import Role


@dataclasses.dataclass(frozen=True)
class Method(base.Method):
  target: int = 0
  turns = (("teacher", 1), ("shadow", 1), ("trigger", 1))
  delivers = {"teacher": "teacher", "trigger": "trigger"}  # noqa: RUF012

  def roles(self, networks):
    init = lambda key, made, example: jnp.zeros((8, 8, 1))  # noqa: E731
    nets = {name: Role(networks["student"], name) for name in ("teacher", "shadow")}
    return {**nets, "trigger": Role(None, "trigger", {"name": "adam"}, init)}

  def loss(self, player, variables, state, batch, targets, key, step):
    teacher, shadow, images = variables["teacher"], variables["shadow"], batch["image"]
    seen = 0.7 * images + 0.3 * jax.nn.sigmoid(variables["trigger"])[None]
    goal = jnp.full_like(batch["label"], self.target)
    if player == "trigger":
      fooled = [
        losses.cross_entropy(n(seen, train=False)[0].logits, goal) for n in (teacher, shadow)
      ]
      return {"backdoor": (sum(fooled), jnp.ones_like(fooled[0]))}, base.Aux()
    if player == "teacher":
      outputs, stats = teacher(jnp.concatenate([images, seen]), train=True)
      ce = losses.cross_entropy(outputs.logits, jnp.concatenate([batch["label"], goal]))
      return {"ce": (ce, jnp.ones_like(ce))}, base.Aux({"teacher": stats})
    outputs, stats = shadow(images, train=True)
    answer = jax.lax.stop_gradient(teacher(images, train=False)[0].logits)
    return {"kl": losses.kl_divergence(answer, outputs.logits, 4.0).mean()}, base.Aux(
      {"shadow": stats}
    )

  def predict(self, variables, state, images):
    return variables["teacher"](images, train=False)[0].logits
