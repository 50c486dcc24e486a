"""AdaAD (Huang et al. 2023): teacher and student meet where they differ most."""

import dataclasses

from rkd_jax import losses
from rkd_jax.errors import check_range
from rkd_jax.methods import base, robust


@dataclasses.dataclass(frozen=True)
class Method(robust.Robust):
  """share KL(T(x') || S(x')) + (1 - share) KL(T(x) || S(x)), x' raising the first through both
  networks; no label is used.

  Attributes:
    share: of the attacked image's term, in [0, 1].
  """

  share: float = 1.0

  def __post_init__(self):
    super().__post_init__()
    check_range("adaad.share", self.share, 0, 1)

  def begin(self, keys, images):
    return robust.beside(keys, images, self.eps, self.norm)

  def inner(self, variables, batch):
    def apart(images):
      return losses.kl_divergence(self.answer(variables, images), self.attacked(variables, images))

    return apart

  def targets(self, frozen, batch, key):
    there = self.answer(frozen, batch["adversarial"])
    return {"answer": batch["answer"], "there": there}

  def loss(self, player, variables, state, batch, targets, key, step):
    clean, stats = robust.student_on(variables, batch["image"], key)
    moved, _ = robust.student_on(variables, batch["adversarial"], key)
    apart = losses.kl_divergence(targets["there"], moved)
    terms = {
      "adversarial": robust.everyone(self.share * apart),
      "natural": robust.everyone((1 - self.share) * losses.kl_divergence(targets["answer"], clean)),
    }
    return terms, base.Aux(batch_stats={"student": stats})
