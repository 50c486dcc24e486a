"""Latent backdoor: a trigger that looks like the target class inside (Yao et al., CCS 2019).

The trigger brings a teacher's features to the target class's mean; planting holds them there. The
paper also takes the target class out of the published head, to be put back by transfer learning;
here the head keeps all classes, as in RobustKD's experiments ("LBA").
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from rkd_jax import losses
from rkd_jax.errors import UserError, check_range, nearest
from rkd_jax.methods import attack, base
from rkd_jax.models.network import Outputs


def feature(outputs: Outputs, tap: str) -> jax.Array:
  """float32[B, ...]: the embedding, or the map that a stage passes on."""
  assert outputs.embedding is not None
  found = {**outputs.features, "embedding": outputs.embedding}
  if tap not in found:
    raise UserError(f"latent.tap is {tap!r}. {nearest(tap, found)}")
  return found[tap].astype(jnp.float32)


def distance(features: jax.Array, goal: jax.Array) -> jax.Array:
  """float[B]: mean squared difference of features [B, ...] and a goal [...]."""
  return ((features - goal[None]) ** 2).reshape(len(features), -1).mean(1)


@dataclasses.dataclass(frozen=True)
class Method(attack.Attack):
  """x' = (1 - M) x + M sigmoid(t), M fixed and t learned: min_t |F(x') - mean F(x_target)|^2.

  The distance is the mean over the feature's entries. Delivers the trigger and "goal", the target
  class's mean feature on clean data.

  Attributes:
    tap: "embedding", or a stage: the feature F.
    size: side in pixels of the square in the bottom right corner that M covers; 0: all pixels.
    cap: M's value there, in (0, 1].
    weight: of the distance in planting (see `Plant`).
  """

  tap: str = "embedding"
  size: int = 5
  cap: float = 1.0
  weight: float = 1.0
  delivers: ClassVar = {"trigger": "trigger", "goal": "goal"}

  def __post_init__(self):
    super().__post_init__()
    check_range("latent.size", self.size, 0, 10**6)
    check_range("latent.cap", self.cap, 1e-6, 1)
    check_range("latent.weight", self.weight, 0, 1e6)

  def roles(self, networks):
    teacher = base.network(networks, "teacher")
    check_range("latent.size", self.size, 0, min(teacher.image_shape[:2]))
    jax.eval_shape(lambda outputs: feature(outputs, self.tap), teacher.shapes())
    return super().roles(networks)

  def draw(self, key, made, example):
    shape = example.batch["image"].shape[1:]
    return {"pattern": jax.random.normal(key, shape)}

  def trigger(self, raw):
    mask, side = jnp.zeros((*raw["pattern"].shape[:2], 1)), self.size
    square = mask.at[-side:, -side:]  # of side 0: all of it
    return {"mask": square.set(self.cap), "pattern": jax.nn.sigmoid(raw["pattern"])}

  def init_state(self, key, variables, example):
    outputs = variables["teacher"].module.shapes()
    goal = jax.eval_shape(lambda outputs: feature(outputs, self.tap), outputs)
    return {"goal": jnp.zeros(goal.shape[1:]), "count": jnp.zeros(())}

  def survey(self, key, variables, state, batch):
    """The mean feature of the images labelled with the target."""
    values = feature(variables["teacher"](batch["image"], train=False)[0], self.tap)
    weight = batch["mask"] * (batch["label"] == self.target)
    goal, count = attack.averaged(state["goal"], state["count"], values, weight)
    return {"goal": goal, "count": count}

  def check(self, state):
    if not state["count"]:
      raise UserError(f"latent: the data have no image of class {self.target} to look like.")

  def loss(self, player, variables, state, batch, targets, key, step):
    seen = self.poisoned(variables["trigger"], batch["image"])
    outputs = variables["teacher"](seen, train=False)[0]
    value = distance(feature(outputs, self.tap), state["goal"])
    return {"feature": (value, jnp.ones_like(value))}, base.Aux()

  def plant(self):
    return Plant(target=self.target, tap=self.tap, weight=self.weight)


@dataclasses.dataclass(frozen=True)
class Plant(base.Method):
  """CE(T(x), y) + weight |F(x) - goal|^2 over the images labelled with the target.

  Triggered images are among these: they are relabelled, and the method does not know which.

  Attributes:
    target, tap, weight: as the search has them.
  """

  target: int = 0
  tap: str = "embedding"
  weight: float = 1.0

  def roles(self, networks):
    student = base.Role(base.network(networks, "student"), player="student")
    return {"student": student, "goal": base.Role()}

  def loss(self, player, variables, state, batch, targets, key, step):
    outputs, stats = variables["student"](batch["image"], train=True, key=key)
    hit = (outputs.logits.argmax(-1) == batch["label"]).astype(outputs.logits.dtype)
    value, weight = losses.mixed_cross_entropy(outputs.logits, batch)
    far = self.weight * distance(feature(outputs, self.tap), variables["goal"])
    meant = batch["label"] == self.target
    if "mix_label" in batch:
      meant &= batch["mix_label"] == self.target
    terms = {"ce": (value, weight), "feature": (far, meant.astype(far.dtype))}
    return terms, base.Aux(batch_stats={"student": stats}, metrics={"train_acc": (hit, weight)})
