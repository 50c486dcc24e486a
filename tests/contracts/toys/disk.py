"""DiSK: a gate sees the teacher's features and says which hints the student gets, on a budget."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from rkd_jax import losses
from rkd_jax.methods import base


@dataclasses.dataclass(frozen=True)
class Method(base.Method):
  warmup: int = 2
  budget: float = 0.3
  turns = (("student", 1), ("gate", 1))

  def roles(self, networks):
    init = lambda key, made, example: nn.Dense(1).init(key, jnp.zeros((1, 8)))  # noqa: E731
    gate = base.Role(nn.Dense(1), "gate", {"learning_rate": 0.01}, init)
    return {**super().roles(networks), "gate": gate}

  def targets(self, frozen, batch, key):
    outputs = frozen["teacher"](batch["image"], train=False)[0]
    return {"logits": outputs.logits, "embedding": outputs.embedding}

  def loss(self, player, variables, state, batch, targets, key, step):
    outputs, stats = variables["student"](batch["image"], train=player == "student")
    hint = nn.sigmoid(variables["gate"](targets["embedding"]))  # each player moves its own roles
    p_s, p_t = nn.softmax(outputs.logits), nn.softmax(targets["logits"])
    mask = jax.nn.one_hot(batch["label"], p_s.shape[-1])
    value = -(p_t * jnp.log(p_s + hint * mask + 1e-6)).sum(-1)
    if player == "gate":
      over = jnp.maximum(hint.mean() - self.budget, 0)
      return {"hint": value.mean(), "budget": over}, base.Aux(metrics={"hint": hint[:, 0]})
    on = (step >= self.warmup).astype(jnp.float32)  # the gate learns alone at first
    ce = losses.cross_entropy(outputs.logits, batch["label"])
    return {"ce": on * ce.mean(), "hint": on * value.mean()}, base.Aux({"student": stats})
