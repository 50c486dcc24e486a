"""Knowledge distillation (Hinton, Vinyals, Dean 2015): the undefended baseline."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from rkd_jax import losses
from rkd_jax.errors import check_range
from rkd_jax.methods import base


@dataclasses.dataclass(frozen=True)
class Method(base.Method):
  """(1 - alpha) CE(S(x), y) + alpha T^2 KL(softmax(T(x)/T) || softmax(S(x)/T)).

  Where the defender has no label, y is the teacher's argmax.

  Attributes:
    temperature: T > 0.
    alpha: weight of the teacher's soft answer, in [0, 1].
  """

  temperature: float = 4.0
  alpha: float = 0.9
  cacheable = True

  def __post_init__(self):
    check_range("kd.alpha", self.alpha, 0, 1)
    check_range("kd.temperature", self.temperature, 1e-3, 1e3)

  def targets(self, frozen, batch, key):
    return self.taught(frozen, batch["image"]).logits

  def loss(self, player, variables, state, batch, targets, key, step):
    outputs, stats = variables["student"](batch["image"], train=True, key=key)
    terms, metrics = self.of_logits(outputs.logits, targets, batch)
    return terms, base.Aux(batch_stats={"student": stats}, metrics=metrics)

  def of_logits(
    self, logits: jax.Array, answer: jax.Array, batch: base.Batch
  ) -> tuple[dict[str, Any], dict[str, jax.Array]]:
    """(terms, metrics) of the student's logits float[B, K], given the teacher's."""
    value, weight = losses.mixed_cross_entropy(logits, with_teachers_labels(batch, answer))
    soft = losses.kl_divergence(answer, logits, self.temperature)
    same = (logits.argmax(-1) == answer.argmax(-1)).astype(soft.dtype)
    terms = {
      "ce": ((1 - self.alpha) * value, weight),
      "kl": (self.alpha * soft, jnp.ones_like(soft)),
    }
    return terms, {"train_fidelity": same}


def with_teachers_labels(batch: base.Batch, teacher_logits) -> base.Batch:
  """The batch with the teacher's argmax where a label is missing.

  Under mixup an image with an unlabelled half takes the teacher's answer to the mixed image whole.
  """
  answer = teacher_logits.argmax(-1).astype(batch["label"].dtype)
  if "mix_label" not in batch:
    return {**batch, "label": jnp.where(batch["label"] < 0, answer, batch["label"])}
  missing = (batch["label"] < 0) | (batch["mix_label"] < 0)
  return {
    **batch,
    "label": jnp.where(missing, answer, batch["label"]),
    "mix_label": jnp.where(missing, answer, batch["mix_label"]),
  }
