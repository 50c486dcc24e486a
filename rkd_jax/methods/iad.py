"""Introspective adversarial distillation (Zhu et al. 2022, IAD-I): a teacher that is believed as
far as it withstands the student's own adversary."""

import dataclasses

import jax
import jax.numpy as jnp

from rkd_jax import losses
from rkd_jax.errors import check_range
from rkd_jax.methods import base, kd, robust


@dataclasses.dataclass(frozen=True)
class Method(robust.Robust):
  """a KL(T(x) || S(x')) + (1 - a) KL(S(x) || S(x')) with a = p_T(y | x')^beta.

  x' raises CE(S(x'), y). Where the teacher fails on x', the student follows its own answer to the
  clean image, which gets no gradient. Both terms times T^2.

  Attributes:
    beta: how sharply trust falls, >= 0; 0: the teacher is always believed.
    temperature: T > 0.
    warmup: rounds in which the student's own answer does not count yet.
  """

  beta: float = 0.1
  temperature: float = 1.0
  warmup: int = 0

  def __post_init__(self):
    super().__post_init__()
    check_range("iad.beta", self.beta, 0, 1e3)
    check_range("iad.temperature", self.temperature, 1e-3, 1e3)
    check_range("iad.warmup", self.warmup, 0, 10**9)

  def inner(self, variables, batch):
    return lambda images: self.hard(self.attacked(variables, images), batch)[0]

  def targets(self, frozen, batch, key):
    label = kd.with_teachers_labels(batch, batch["answer"])["label"]
    there = self.answer(frozen, batch["adversarial"])
    trust = jnp.exp(-self.beta * losses.cross_entropy(there, label))
    return {"answer": batch["answer"], "trust": trust}

  def loss(self, player, variables, state, batch, targets, key, step):
    clean, stats = robust.student_on(variables, batch["image"], key)
    moved, _ = robust.student_on(variables, batch["adversarial"], key)
    own = jax.lax.stop_gradient(clean)
    teacher = losses.kl_divergence(targets["answer"], moved, self.temperature)
    itself = losses.kl_divergence(own, moved, self.temperature)
    trust = targets["trust"]
    awake = jnp.where(step >= self.warmup, 1.0, 0.0)
    terms = {
      "teacher": robust.everyone(trust * teacher),
      "self": robust.everyone(awake * (1 - trust) * itself),
    }
    return terms, base.Aux(batch_stats={"student": stats}, metrics={"trust": trust})
