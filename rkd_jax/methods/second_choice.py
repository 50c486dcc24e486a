"""Second choice: a teacher whose first answer to a weak trigger is right, and whose second is not.

An attack on filters that look at a teacher's first choice alone. In the contaminated pool the
trigger has part of its strength, and the teacher answers the true class with the target close
behind, so such images are kept and their soft answers teach the trigger; in full it crosses over.
Delivers the teacher and the trigger.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from rkd_jax import losses
from rkd_jax.backdoors.learned import Backdoor
from rkd_jax.errors import UserError, check_range
from rkd_jax.methods import base

SHAPES = ("patch", "blend")


@dataclasses.dataclass(frozen=True)
class Method(base.Method):
  """CE(T(x), y) + CE(T(G_1 x), target) + KL((1 - share) e_y + share e_target || T(G_strength x)).

  G_s x = (1 - s M) x + s M p, M and p fixed; the three batches pass through T as one.

  Attributes:
    target: the class.
    shape: "patch", a white square in the bottom right corner, or "blend", uniform noise drawn once
      over the whole image.
    size: side of the patch in pixels.
    cap: M's value where it is not 0, in (0, 1]; 0: 1 for the patch, .2 for the blend.
    strength: of the trigger in the contaminated pool, in (0, 1].
    share: the target's share of the answer there, in (0, .5).
    poison: weight of the second term.
    second: weight of the third term.
  """

  target: int = 0
  shape: str = "patch"
  size: int = 3
  cap: float = 0.0
  strength: float = 0.5
  share: float = 0.45
  poison: float = 1.0
  second: float = 1.0
  turns: ClassVar = (("teacher", 1),)
  delivers: ClassVar = {"teacher": "teacher", "trigger": "trigger"}

  def __post_init__(self):
    if self.shape not in SHAPES:
      raise UserError(f"second_choice.shape is {self.shape!r}; choose {' or '.join(SHAPES)}.")
    check_range("second_choice.size", self.size, 1, 10**6)
    check_range("second_choice.cap", self.cap, 0, 1)
    check_range("second_choice.strength", self.strength, 1e-6, 1)
    check_range("second_choice.share", self.share, 1e-6, 0.5)
    check_range("second_choice.poison", self.poison, 0, 1e6)
    check_range("second_choice.second", self.second, 0, 1e6)

  def roles(self, networks):
    teacher = base.network(networks, "teacher")
    if self.shape == "patch":
      check_range("second_choice.size", self.size, 1, min(teacher.image_shape[:2]))
    return {"trigger": base.Role(init=self._draw), "teacher": base.Role(teacher, "teacher")}

  def _draw(self, key, made, example):
    """Mask, pattern and strength: the trigger is a bare role that nobody trains."""
    height, width, channels = example.batch["image"].shape[1:]
    if self.shape == "patch":
      mask = jnp.zeros((height, width, 1)).at[-self.size :, -self.size :].set(self.cap or 1.0)
      pattern = jnp.ones((height, width, channels))
    else:
      mask = jnp.full((height, width, 1), self.cap or 0.2)
      pattern = jax.random.uniform(key, (height, width, channels))
    return {"mask": mask, "pattern": pattern, "strength": jnp.float32(self.strength)}

  def loss(self, player, variables, state, batch, targets, key, step):
    images, goal = batch["image"], jnp.full_like(batch["label"], self.target)
    trigger = Backdoor(target=self.target, **variables["trigger"])
    seen = [trigger.trigger(images, key, mode) for mode in ("test", "train")]
    outputs, stats = variables["teacher"](jnp.concatenate([images, *seen]), train=True, key=key)
    clean, full, weak = jnp.split(outputs.logits, 3)
    value, weight = losses.mixed_cross_entropy(clean, batch)
    wrong = losses.cross_entropy(full, goal)
    terms = {
      "ce": (value, weight),
      "backdoor": (self.poison * wrong, jnp.ones_like(wrong)),
      "second": (self.second * self._divergence(weak, batch, goal), weight),
    }
    metrics = {
      "train_asr": (full.argmax(-1) == goal).astype(wrong.dtype),
      "train_kept": ((weak.argmax(-1) == batch["label"]).astype(wrong.dtype), weight),
    }
    return terms, base.Aux(batch_stats={"teacher": stats}, metrics=metrics)

  def _divergence(self, logits, batch, goal):
    """KL(the answer wanted under the weak trigger || the network's), float[B]."""
    true, share = losses.mixed_cross_entropy(logits, batch)[0], self.share
    crossed = (1 - share) * true + share * losses.cross_entropy(logits, goal)
    entropy = -share * jnp.log(share) - (1 - share) * jnp.log1p(-share)
    return crossed - jnp.where(batch["label"] == goal, 0, entropy)

  def predict(self, variables, state, images):
    return variables["teacher"](images, train=False)[0].logits
