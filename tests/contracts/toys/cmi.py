"""CMI: an inverted image must fit the teacher's BN statistics; a bank remembers; G starts anew."""

import jax
import jax.numpy as jnp
from toys.tiny import Generator, fresh_generator

from rkd_jax import losses
from rkd_jax.methods import base


class Method(base.Method):
  turns = (("generator", 2), ("student", 2))

  def roles(self, networks):
    role = base.Role(Generator(), "generator", init=fresh_generator)
    return super().roles(networks) | {"generator": role}

  def reset(self, epoch):
    return ("generator",)

  def init_state(self, key, variables, example):
    return {"bank": jax.random.uniform(key, (32, 8, 8, 1))}

  def batch(self, key, variables, state, batch, step):
    return {"noise": jax.random.normal(key, (8, 6))}, state

  def loss(self, player, variables, state, batch, targets, key, step):
    if player == "student":
      images = jax.random.choice(key, state["bank"], (8,))
      outputs, stats = variables["student"](images, train=True)
      answer = variables["teacher"](images, train=False)[0].logits
      return {"kl": losses.kl_divergence(answer, outputs.logits).mean()}, base.Aux(
        {"student": stats}
      )
    images = variables["generator"](batch["noise"])
    outputs, stats = variables["teacher"](images, train=False, capture=True)
    gaps = [x.mean((0, 1, 2)) - stats[name]["mean"] for name, x in outputs.bn.items()]
    bank = state["bank"].at[(8 * step + jnp.arange(8)) % 32].set(images)
    return {"bn": sum((gap**2).sum() for gap in gaps)}, base.Aux(state={"bank": bank})
