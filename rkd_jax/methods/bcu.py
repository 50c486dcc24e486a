"""BCU: cleansing a backdoored network with unlabelled images (Pang et al., CVPR 2023).

A copy of the teacher with some of its weights drawn anew, more of them the deeper the layer, is
distilled from the teacher. What it was meant to be given are clean images.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from rkd_jax import losses
from rkd_jax.errors import check_range
from rkd_jax.methods import base


@dataclasses.dataclass(frozen=True)
class Method(base.Method):
  """KL(T(x)/t || S(x)/t), t rising from 1 to `hottest` over `ramp` rounds; no labels, no t^2.

  Attributes:
    stem: fraction of weights drawn anew, in [0, 1], of what comes before the stages.
    first: the same of the first stage.
    factor: by which the fraction of each later stage is larger than the one before it. The defaults
      are the official code's .01 | .01 .03 .09 .27 | .10. Normalisations keep their weights.
    head: the same of what comes after the stages.
    hottest: the last temperature, >= 1.
    ramp: rounds until the last temperature.
  """

  stem: float = 0.01
  first: float = 0.01
  factor: float = 3.0
  head: float = 0.1
  hottest: float = 4.0
  ramp: int = 100

  def __post_init__(self):
    for field in ("stem", "first", "head"):
      check_range(f"bcu.{field}", getattr(self, field), 0, 1)
    check_range("bcu.hottest", self.hottest, 1, 1e3)
    check_range("bcu.ramp", self.ramp, 1, 10**9)

  def roles(self, networks):
    student = base.Role(base.network(networks, "student"), "student", init=self._redrawn)
    return {"teacher": base.Role(base.network(networks, "teacher")), "student": student}

  def fraction(self, path: tuple[str, ...], stages: tuple[str, ...]) -> float:
    """How much of one parameter is drawn anew."""
    if path[-1] != "kernel":
      return 0.0
    for number, stage in enumerate(stages):
      if path[0].startswith(stage):
        return min(1.0, float(self.first * self.factor**number))
    return float(self.head if path[0] == "head" else self.stem)

  def _redrawn(self, key, made, example):
    teacher = made["teacher"]
    fresh, choice = jax.random.split(key)
    old: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(teacher.params)
    drawn = teacher.module.init(fresh)["params"]
    new: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(drawn)
    for number, path in enumerate(sorted(old)):
      share = self.fraction(path, teacher.module.stages)
      anew = jax.random.bernoulli(jax.random.fold_in(choice, number), share, old[path].shape)
      new[path] = jnp.where(anew, new[path], old[path])
    return {**teacher.variables, "params": traverse_util.unflatten_dict(new)}

  def targets(self, frozen, batch, key):
    return self.taught(frozen, batch["image"]).logits

  cacheable = True

  def loss(self, player, variables, state, batch, targets, key, step):
    outputs, stats = variables["student"](batch["image"], train=True, key=key)
    t = 1 + (self.hottest - 1) * jnp.minimum(step / self.ramp, 1)
    value = losses.kl_divergence(targets / t, outputs.logits / t)
    same = (outputs.logits.argmax(-1) == targets.argmax(-1)).astype(value.dtype)
    aux = base.Aux(batch_stats={"student": stats}, metrics={"train_fidelity": same})
    return {"kl": (value, jnp.ones_like(value))}, aux
