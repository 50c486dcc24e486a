"""Plain training on labels: teachers, witnesses, and the baseline that has no teacher (`none`)."""

import dataclasses

from rkd_jax import losses
from rkd_jax.methods import base


@dataclasses.dataclass(frozen=True)
class Method(base.Method):
  """Cross-entropy on the labelled examples of the batch."""

  def roles(self, networks):
    return {"student": base.Role(base.network(networks, "student"), player="student")}

  def loss(self, player, variables, state, batch, targets, key, step):
    outputs, stats = variables["student"](batch["image"], train=True, key=key)
    hit = (outputs.logits.argmax(-1) == batch["label"]).astype(outputs.logits.dtype)
    value, weight = losses.mixed_cross_entropy(outputs.logits, batch)
    metrics = {"train_acc": (hit, weight)}
    return {"ce": (value, weight)}, base.Aux(batch_stats={"student": stats}, metrics=metrics)
