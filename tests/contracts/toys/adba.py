"""ADBA: teacher, shadow student and trigger in turn; delivers the teacher and its trigger."""

import dataclasses

import jax
import jax.numpy as jnp

from rkd_jax import losses
from rkd_jax.methods import base


@dataclasses.dataclass(frozen=True)
class Method(base.Method):
  turns = (("teacher", 1), ("shadow", 1), ("trigger", 1))
  delivers = {"teacher": "teacher", "trigger": "trigger"}  # noqa: RUF012

  def roles(self, networks):
    init = lambda key, made, example: jnp.zeros((8, 8, 1))  # noqa: E731
    nets = {name: base.Role(networks["student"], name) for name in ("teacher", "shadow")}
    return {**nets, "trigger": base.Role(None, "trigger", {"name": "adam"}, init)}

  def loss(self, player, variables, state, batch, targets, key, step):
    teacher, shadow, images = variables["teacher"], variables["shadow"], batch["image"]
    seen = 0.7 * images + 0.3 * jax.nn.sigmoid(variables["trigger"])[None]
    goal = jnp.full_like(batch["label"], 0)
    if player == "trigger":
      fooled = [network(seen, train=False)[0].logits for network in (teacher, shadow)]
      value = sum(losses.cross_entropy(logits, goal) for logits in fooled)
      return {"backdoor": value.mean()}, base.Aux()
    if player == "teacher":
      outputs, stats = teacher(jnp.concatenate([images, seen]), train=True)
      ce = losses.cross_entropy(outputs.logits, jnp.concatenate([batch["label"], goal]))
      return {"ce": ce.mean()}, base.Aux({"teacher": stats})
    outputs, stats = shadow(images, train=True)
    answer = jax.lax.stop_gradient(teacher(images, train=False)[0].logits)
    kl = losses.kl_divergence(answer, outputs.logits, 4.0)
    return {"kl": kl.mean()}, base.Aux({"shadow": stats})

  def predict(self, variables, state, images):
    return variables["teacher"](images, train=False)[0].logits
