"""The contract of attacks in two steps: find a trigger on a benign teacher, then plant it there.

A file of methods/ whose `Method` extends `Attack` may be a config's backdoor. Its phases are:
a benign teacher, trained on the clean part; the search for the trigger (this method, the benign
teacher given to its frozen role "teacher"); and planting, the benign teacher trained on with the
trigger in its data. An attack that trains teacher and trigger together is an ordinary method that
delivers both (`adba`).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from rkd_jax.backdoors.learned import Backdoor
from rkd_jax.errors import check_range
from rkd_jax.methods import base, supervised

SEARCH = {"name": "adam", "weight_decay": 0.0, "schedule": "constant"}  # how a trigger is sought


@dataclasses.dataclass(frozen=True)
class Attack(base.Method):
  """Finds a trigger: delivers "trigger", the arrays of a `backdoors.learned.Backdoor`.

  Whatever else it delivers is given to the roles of `plant()`'s method of that name. A subclass
  writes `draw`, `trigger` and `loss`.

  Attributes:
    target: the class.
    search_steps: rounds of the search for the trigger.
    learning_rate: of the search.
    plant_epochs: epochs of planting.
    plant_rate: learning rate of planting (SGD, Nesterov momentum .9, cosine).
  """

  target: int = 0
  search_steps: int = 500
  learning_rate: float = 0.05
  plant_epochs: int = 5
  plant_rate: float = 0.01
  turns: ClassVar = (("trigger", 1),)
  delivers: ClassVar = {"trigger": "trigger"}

  def __post_init__(self):
    for field in ("search_steps", "plant_epochs"):
      check_range(f"{self.name}.{field}", getattr(self, field), 1, 10**9)
    for field in ("learning_rate", "plant_rate"):
      check_range(f"{self.name}.{field}", getattr(self, field), 1e-12, 1e3)

  def trains(self):
    return {"steps": self.search_steps}

  def roles(self, networks):
    return {
      "teacher": base.Role(base.network(networks, "teacher")),
      "trigger": base.Role(player="trigger", optimizer=self.searched_by(), init=self.draw),
    }

  def searched_by(self) -> dict[str, Any]:
    """The optimiser of the search, as a `Role` has it."""
    return SEARCH | {"learning_rate": self.learning_rate}

  def draw(self, key: jax.Array, made: Any, example: base.Example) -> base.Tree:
    """The first values of what is learned."""
    raise NotImplementedError(f"{type(self)} defines no draw")

  def trigger(self, raw: base.Tree) -> dict[str, jax.Array]:
    """What is learned -> the arrays of the `Backdoor`, whatever bounds they have."""
    raise NotImplementedError(f"{type(self)} defines no trigger")

  def poisoned(self, raw: base.Tree, images: jax.Array) -> jax.Array:
    """Images float[B, H, W, C] with the trigger in full: clipped, not rounded, differentiable."""
    backdoor = Backdoor(target=self.target, rounding=False, **self.trigger(raw))
    return backdoor.stored(backdoor.put(images))

  def planting(self) -> dict[str, Any]:
    """How the teacher is trained on, as `Method.trains` has it."""
    sgd = {"name": "sgd", "momentum": 0.9, "nesterov": True, "schedule": "cosine", "warmup": 0.0}
    optimizer = {**sgd, "learning_rate": self.plant_rate}
    return {"steps": 0, "epochs": self.plant_epochs, "optimizer": optimizer}

  def plant(self) -> base.Method:
    """How the benign teacher learns the trigger: on the poisoned part, as its "student"."""
    return supervised.Method()

  def predict(self, variables, state, images):
    return variables["teacher"](images, train=False)[0].logits

  def deliver(self, variables, state):
    found = super().deliver(variables, state)
    return found | {"trigger": self.trigger(found["trigger"])}


def averaged(
  mean: jax.Array, count: jax.Array, values: jax.Array, weight: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """A mean [...] over `count` examples and more of them, [B, ...] of weight[B] -> (mean, count)."""
  count = count + weight.sum()
  share = (weight / jnp.maximum(count, 1)).reshape(-1, *[1] * mean.ndim)
  return mean + (share * (values - mean[None])).sum(0), count


# A blend that is learned: x' = (1 - M) x + M sigmoid(t) with M = cap sigmoid(m).


def drawn(key: jax.Array, example: base.Example) -> dict[str, jax.Array]:
  """The first m, as "mask" float[H, W, 1], and t, as "pattern" float[H, W, C]."""
  mask, pattern = jax.random.split(key)
  height, width, channels = example.batch["image"].shape[1:]
  return {
    "mask": jax.random.normal(mask, (height, width, 1)),
    "pattern": jax.random.normal(pattern, (height, width, channels)),
  }


def blend(raw: Mapping[str, jax.Array], cap: float) -> dict[str, jax.Array]:
  """{"mask": M in [0, cap], "pattern": in [0, 1]} as a `Backdoor` takes them."""
  return {"mask": cap * jax.nn.sigmoid(raw["mask"]), "pattern": jax.nn.sigmoid(raw["pattern"])}
