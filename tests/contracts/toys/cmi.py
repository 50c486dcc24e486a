"""CMI: an inverted image must fit the teacher's BN statistics; a bank remembers; G starts anew."""

import dataclasses

import jax
import jax.numpy as jnp
from toys.tiny import Generator, fresh_generator

from rkd_jax import losses
from rkd_jax.methods import base


@dataclasses.dataclass(frozen=True)
class Method(base.Method):
  size: int = 8
  bank: int = 32
  turns = (("generator", 2), ("student", 2))

  def roles(self, networks):
    generator = base.Role(Generator(), "generator", init=fresh_generator)
    return {**super().roles(networks), "generator": generator}

  def reset(self, epoch):
    return ("generator",)

  def init_state(self, key, variables, example):
    return {"bank": jax.random.uniform(key, (self.bank, 8, 8, 1)), "next": jnp.int32(0)}

  def batch(self, key, variables, state, batch, step):
    return {"noise": jax.random.normal(key, (self.size, 6))}, state

  def loss(self, player, variables, state, batch, targets, key, step):
    if player == "student":
      images = jax.random.choice(key, state["bank"], (self.size,))
      outputs, stats = variables["student"](images, train=True)
      kl = losses.kl_divergence(variables["teacher"](images, train=False)[0].logits, outputs.logits)
      return {"kl": kl.mean()}, base.Aux({"student": stats})
    images, stats = (
      variables["generator"](batch["noise"]),
      variables["teacher"].variables["batch_stats"],
    )
    seen = variables["teacher"](images, train=False, capture=True)[0].bn
    gap = sum(((x.mean((0, 1, 2)) - stats[name]["mean"]) ** 2).sum() for name, x in seen.items())
    rows = (state["next"] + jnp.arange(self.size)) % self.bank
    kept = state["bank"].at[rows].set(images)
    return {"bn": gap}, base.Aux(state={"bank": kept, "next": rows[-1] + 1})
