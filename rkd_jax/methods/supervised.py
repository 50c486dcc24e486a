"""Plain training on labels: teachers, witnesses, and the baseline that has no teacher (`none`)."""

import dataclasses

import jax

from rkd_jax import losses
from rkd_jax.errors import check_range
from rkd_jax.methods import base


@dataclasses.dataclass(frozen=True)
class Method(base.Method):
  """Cross-entropy on the labelled examples of the batch.

  Attributes:
    smoothing: label smoothing in [0, 1]: that share of the target is spread over all classes.
    sam: radius of sharpness-aware minimisation, >= 0; 0: none.
    sam_adaptive: whether the radius is scaled per parameter (ASAM).
  """

  smoothing: float = 0.0
  sam: float = 0.0  # type: ignore[misc]
  sam_adaptive: bool = False  # type: ignore[misc]

  def __post_init__(self):
    check_range("supervised.smoothing", self.smoothing, 0, 1)
    check_range("supervised.sam", self.sam, 0, 1e3)

  def roles(self, networks):
    return {"student": base.Role(base.network(networks, "student"), player="student")}

  def loss(self, player, variables, state, batch, targets, key, step):
    outputs, stats = variables["student"](batch["image"], train=True, key=key)
    hit = (outputs.logits.argmax(-1) == batch["label"]).astype(outputs.logits.dtype)
    value, weight = losses.mixed_cross_entropy(outputs.logits, batch)
    if self.smoothing:
      spread = -jax.nn.log_softmax(outputs.logits).mean(-1)
      value = (1 - self.smoothing) * value + self.smoothing * spread
    metrics = {"train_acc": (hit, weight)}
    return {"ce": (value, weight)}, base.Aux(batch_stats={"student": stats}, metrics=metrics)
