"""Adversarially robust distillation (Goldblum et al. 2020): the teacher's answer to the clean
image, given to the attacked one."""

import dataclasses

from rkd_jax import losses
from rkd_jax.errors import check_range
from rkd_jax.methods import base, robust


@dataclasses.dataclass(frozen=True)
class Method(robust.Robust):
  """alpha T^2 KL(T(x) || S(x')) + (1 - alpha) CE(S(x), y), x' raising CE(S(x'), y).

  Attributes:
    alpha: in [0, 1].
    temperature: T > 0.
  """

  alpha: float = 0.9
  temperature: float = 4.0

  def __post_init__(self):
    super().__post_init__()
    check_range("ard.alpha", self.alpha, 0, 1)
    check_range("ard.temperature", self.temperature, 1e-3, 1e3)

  def inner(self, variables, batch):
    return lambda images: self.hard(self.attacked(variables, images), batch)[0]

  def loss(self, player, variables, state, batch, targets, key, step):
    clean, stats = robust.student_on(variables, batch["image"], key)
    moved, _ = robust.student_on(variables, batch["adversarial"], key)
    value, weight = self.hard(clean, batch)
    soft = losses.kl_divergence(targets, moved, self.temperature)
    terms = {"ce": ((1 - self.alpha) * value, weight), "kl": robust.everyone(self.alpha * soft)}
    return terms, base.Aux(batch_stats={"student": stats})
