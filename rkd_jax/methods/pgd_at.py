"""Adversarial training (Madry et al. 2018): the label, on the worst image that PGD finds."""

import dataclasses

from rkd_jax.methods import base, robust


@dataclasses.dataclass(frozen=True)
class Method(robust.Robust):
  """CE(S(x'), y), x' raising the same. Needs no teacher; learns from labelled images alone.

  There is no pass on clean images: running statistics are those of x'.
  """

  def roles(self, networks):
    return {"student": base.Role(base.network(networks, "student"), player="student")}

  def inner(self, variables, batch):
    def wrong(images):  # an image without a label stays where it started
      value, weight = self.hard(self.attacked(variables, images), batch)
      return value * weight

    return wrong

  def loss(self, player, variables, state, batch, targets, key, step):
    logits, stats = robust.student_on(variables, batch["adversarial"], key)
    value, weight = self.hard(logits, batch)
    hit = (logits.argmax(-1) == batch["label"]).astype(logits.dtype)
    aux = base.Aux(batch_stats={"student": stats}, metrics={"train_adv_acc": (hit, weight)})
    return {"ce": (value, weight)}, aux
