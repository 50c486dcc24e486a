"""Adversarial training (Madry et al. 2018): the label, on the worst image that PGD finds."""

import dataclasses

from rkd_jax import losses
from rkd_jax.methods import base, robust


@dataclasses.dataclass(frozen=True)
class Method(robust.Robust):
  """CE(S(x'), y), x' raising the same. Needs no teacher; learns from labelled images alone.

  There is no pass on clean images: running statistics are those of x'.
  """

  def roles(self, networks):
    return {"student": base.Role(base.network(networks, "student"), player="student")}

  def inner(self, variables, batch):
    return lambda images: losses.cross_entropy(self.attacked(variables, images), batch["label"])

  def loss(self, player, variables, state, batch, targets, key, step):
    logits, stats = robust.student_on(variables, batch["adversarial"], key)
    value, weight = self.hard(logits, batch)
    hit = (logits.argmax(-1) == batch["label"]).astype(logits.dtype)
    aux = base.Aux(batch_stats={"student": stats}, metrics={"train_adv_acc": (hit, weight)})
    return {"ce": (value, weight)}, aux
