"""KDIGA: the student's input gradient is pulled to the teacher's (double backward)."""

import dataclasses

import jax
import jax.numpy as jnp

from rkd_jax import losses
from rkd_jax.methods import base


def input_gradient(network, batch, train):
  """d/dx of the summed cross-entropy, float[B, H, W, C], and the forward pass it came from."""

  def total(images):
    outputs, stats = network(images, train=train)
    return losses.cross_entropy(outputs.logits, batch["label"]).sum(), (outputs, stats)

  return jax.grad(total, has_aux=True)(batch["image"])


@dataclasses.dataclass(frozen=True)
class Method(base.Method):
  weight: float = 1.0
  cacheable = False  # needs the labels beside the image

  def targets(self, frozen, batch, key):
    return input_gradient(frozen["teacher"], batch, train=False)[0]

  def loss(self, player, variables, state, batch, targets, key, step):
    gradient, (outputs, stats) = input_gradient(variables["student"], batch, train=True)
    gap = jnp.sqrt(((gradient - targets) ** 2).sum((1, 2, 3)) + 1e-12)
    ce = losses.cross_entropy(outputs.logits, batch["label"])
    one = jnp.ones_like(ce)
    return {"ce": (ce, one), "align": (self.weight * gap, one)}, base.Aux({"student": stats})
