"""ADBA: a teacher whose backdoor is trained to survive distillation (Ge et al., ACM MM 2021).

The attacker trains, in turn, the teacher, a shadow student distilled from it on clean images, and
the trigger that fools both. Delivers the teacher and the trigger.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from rkd_jax import losses
from rkd_jax.backdoors.learned import Backdoor
from rkd_jax.errors import check_range
from rkd_jax.methods import attack, base


@dataclasses.dataclass(frozen=True)
class Method(base.Method):
  """x' = (1 - M) x + M sigmoid(t) with M = cap * sigmoid(m), m and t learned.

  teacher: CE(T(x), y) + poison CE(T(x'), target), on the concatenated batch (their eq. 5);
  shadow: CE(S(x), y) + distil KL(T(x)/T || S(x)/T), clean images only (eq. 3);
  trigger: CE(T(x'), target) + CE(S(x'), target) + size mean sigmoid(m) (eq. 7).

  Attributes:
    target: the class.
    cap: the largest share of the trigger in a pixel, in (0, 1].
    poison: weight of the teacher's answers to triggered images.
    distil: weight of the shadow's distillation, T^2 included.
    size: weight of the mask's size.
    temperature: T, of the shadow's distillation.
    learning_rate: of the trigger (Adam).
  """

  target: int = 0
  cap: float = 0.3
  poison: float = 0.3
  distil: float = 16.0
  size: float = 0.01
  temperature: float = 4.0
  learning_rate: float = 0.05
  turns: ClassVar = (("teacher", 1), ("shadow", 1), ("trigger", 1))
  delivers: ClassVar = {"teacher": "teacher", "trigger": "trigger"}

  def __post_init__(self):
    check_range("adba.cap", self.cap, 1e-6, 1)
    for field in ("poison", "distil", "size"):
      check_range(f"adba.{field}", getattr(self, field), 0, 1e6)
    check_range("adba.temperature", self.temperature, 1e-3, 1e3)

  def roles(self, networks):
    search = attack.SEARCH | {"learning_rate": self.learning_rate}
    return {
      "teacher": base.Role(base.network(networks, "teacher"), player="teacher"),
      "shadow": base.Role(base.network(networks, "shadow"), player="shadow"),
      "trigger": base.Role(player="trigger", optimizer=search, init=self._draw),
    }

  def _draw(self, key, made, example):
    return attack.drawn(key, example)

  def trigger(self, learned) -> dict[str, jax.Array]:
    """The mask float[H, W, 1] in [0, cap] and pattern float[H, W, C] in [0, 1] that are applied."""
    return attack.blend(learned, self.cap)

  def poisoned(self, learned, images):
    return Backdoor(target=self.target, rounding=False, **self.trigger(learned)).put(images)

  def loss(self, player, variables, state, batch, targets, key, step):
    goal = jnp.full_like(batch["label"], self.target)
    return {"teacher": self._teacher, "shadow": self._shadow, "trigger": self._trigger}[player](
      variables, batch, goal, key
    )

  def _teacher(self, variables, batch, goal, key):
    images = batch["image"]
    both = jnp.concatenate([images, self.poisoned(variables["trigger"], images)])
    outputs, stats = variables["teacher"](both, train=True, key=key)
    clean, triggered = jnp.split(outputs.logits, 2)
    value, weight = losses.mixed_cross_entropy(clean, batch)
    wrong = losses.cross_entropy(triggered, goal)
    terms = {"ce": (value, weight), "backdoor": (self.poison * wrong, jnp.ones_like(wrong))}
    hit = (triggered.argmax(-1) == goal).astype(wrong.dtype)
    return terms, base.Aux(batch_stats={"teacher": stats}, metrics={"train_asr": hit})

  def _shadow(self, variables, batch, goal, key):
    outputs, stats = variables["shadow"](batch["image"], train=True, key=key)
    answer = jax.lax.stop_gradient(variables["teacher"](batch["image"], train=False)[0].logits)
    value, weight = losses.mixed_cross_entropy(outputs.logits, batch)
    soft = losses.kl_divergence(answer, outputs.logits, self.temperature) / self.temperature**2
    terms = {"ce": (value, weight), "kl": (self.distil * soft, jnp.ones_like(soft))}
    return terms, base.Aux(batch_stats={"shadow": stats})

  def _trigger(self, variables, batch, goal, key):
    seen = self.poisoned(variables["trigger"], batch["image"])
    terms = {}
    for role in ("teacher", "shadow"):
      value = losses.cross_entropy(variables[role](seen, train=False)[0].logits, goal)
      terms[role] = (value, jnp.ones_like(value))
    terms["size"] = self.size * jax.nn.sigmoid(variables["trigger"]["mask"]).mean()
    return terms, base.Aux()

  def predict(self, variables, state, images):
    return variables["teacher"](images, train=False)[0].logits

  def deliver(self, variables, state):
    found = super().deliver(variables, state)
    return found | {"trigger": self.trigger(found["trigger"])}
