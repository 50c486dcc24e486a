"""OFD, "A comprehensive overhaul of feature distillation" (Heo et al. 2019, arXiv:1904.01866)."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from rkd_jax import losses
from rkd_jax.methods import features


@dataclasses.dataclass(frozen=True)
class Method(features.Method):
  """CE + weight / 1000 * sum over L taps of 2^-(L-1-l) * `losses.overhaul`, as the authors' code.

  Features are compared before their ReLU. A margin is the mean of a channel's negative values: by
  the teacher's norm before the ReLU, or, where a stage has none, of the phase's images.
  """

  tensor = "pre_relu"

  def init_state(self, key, variables, example):
    teacher = variables["teacher"].module
    below = {}
    for stage in self.stages(teacher, 0):
      if stage not in teacher.margin_bn:
        channels = features.sizes(teacher, self.tensor)[stage][-1]
        below[stage] = {"sum": jnp.zeros(channels), "count": jnp.zeros(channels)}
    return {**super().init_state(key, variables, example), "below": below}

  def observe(self, state, taught, mask):
    below = {}
    for stage, old in state["below"].items():
      value = taught[stage].astype(jnp.float32)
      counts = (value < 0) & (mask.reshape(-1, 1, 1, 1) > 0)
      below[stage] = {
        "sum": old["sum"] + jnp.where(counts, value, 0).sum((0, 1, 2)),
        "count": old["count"] + counts.sum((0, 1, 2)),
      }
    return {**state, "below": below}

  def margin(self, stage, variables, state) -> jax.Array:
    """float[c] <= 0 of a stage of the teacher."""
    teacher, below = variables["teacher"], state["below"].get(stage)
    if below:
      return below["sum"] / jnp.maximum(below["count"], 1)
    norm = functools.reduce(
      lambda t, name: t[name], teacher.module.margin_bn[stage], teacher.params
    )
    return jax.lax.stop_gradient(normal_tail_mean(norm["bias"], norm["scale"]))

  def distance(self, student, taught, variables, state):
    values, depth = [], len(taught) - 1
    for level, (tap, feature) in enumerate(taught.items()):
      margin = self.margin(tap, variables, state)
      values.append(2.0 ** (level - depth) * losses.overhaul(student[tap], feature, margin))
    return jnp.stack(values).sum(0) / 1000


def normal_tail_mean(beta: jax.Array, gamma: jax.Array) -> jax.Array:
  """E[z | z < 0] of z ~ N(beta, |gamma|^2); -3 |gamma| where P(z < 0) <= 1e-3: float[C] <= 0.

  What a batch normalisation with this bias and scale gives on average below 0 (Heo et al. 2019).
  """
  width = jnp.abs(gamma)
  # P(z < 0) = Phi(edge). Beyond 30 nothing changes in float32, and a width of 0 gives no NaN.
  edge = jnp.clip(-beta / jnp.maximum(width, 1e-37), -30, 30)
  below = jax.scipy.special.log_ndtr(edge)
  density = -(edge**2 + math.log(2 * math.pi)) / 2
  mean = beta - width * jnp.exp(density - below)
  return jnp.minimum(jnp.where(below > math.log(1e-3), mean, -3 * width), 0)
