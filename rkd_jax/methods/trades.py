"""TRADES (Zhang et al. 2019): accuracy on clean images, and the same answer around them."""

import dataclasses

from rkd_jax import losses
from rkd_jax.errors import check_range
from rkd_jax.methods import base, robust


@dataclasses.dataclass(frozen=True)
class Method(robust.Robust):
  """CE(S(x), y) + beta KL(S(x) || S(x')), x' raising the second term. Needs no teacher.

  Images without a label count in the second term.

  Attributes:
    beta: >= 0.
  """

  beta: float = 6.0

  def __post_init__(self):
    super().__post_init__()
    check_range("trades.beta", self.beta, 0, 1e6)

  def roles(self, networks):
    return {"student": base.Role(base.network(networks, "student"), player="student")}

  def begin(self, keys, images):
    return robust.beside(keys, images, self.eps, self.norm)

  def inner(self, variables, batch):
    clean = self.attacked(variables, batch["image"])
    return lambda images: losses.kl_divergence(clean, self.attacked(variables, images))

  def loss(self, player, variables, state, batch, targets, key, step):
    clean, stats = robust.student_on(variables, batch["image"], key)
    moved, _ = robust.student_on(variables, batch["adversarial"], key)
    terms = {
      "ce": self.hard(clean, batch),
      "kl": robust.everyone(self.beta * losses.kl_divergence(clean, moved)),
    }
    return terms, base.Aux(batch_stats={"student": stats})
