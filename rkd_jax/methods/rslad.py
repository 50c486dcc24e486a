"""RSLAD (Zi et al. 2021): the robust teacher's soft answer wherever a label would stand."""

import dataclasses

from rkd_jax import losses
from rkd_jax.errors import check_range
from rkd_jax.methods import base, robust


@dataclasses.dataclass(frozen=True)
class Method(robust.Robust):
  """share KL(T(x) || S(x')) + (1 - share) KL(T(x) || S(x)), x' raising the first; no label is used.

  Attributes:
    share: of the attacked image's term, in [0, 1].
  """

  share: float = 5 / 6

  def __post_init__(self):
    super().__post_init__()
    check_range("rslad.share", self.share, 0, 1)

  def begin(self, keys, images):
    return robust.beside(keys, images, self.eps, self.norm)

  def inner(self, variables, batch):
    answer = batch["answer"]
    return lambda images: losses.kl_divergence(answer, self.attacked(variables, images))

  def loss(self, player, variables, state, batch, targets, key, step):
    clean, stats = robust.student_on(variables, batch["image"], key)
    moved, _ = robust.student_on(variables, batch["adversarial"], key)
    terms = {
      "adversarial": robust.everyone(self.share * losses.kl_divergence(targets, moved)),
      "natural": robust.everyone((1 - self.share) * losses.kl_divergence(targets, clean)),
    }
    return terms, base.Aux(batch_stats={"student": stats})
