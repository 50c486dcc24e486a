"""The contract of attacks in two steps: find a trigger on a benign teacher, then plant it there.

A file of methods/ whose `Method` extends `Attack` may be a config's backdoor. Its phases are:
a benign teacher, trained on the clean part; the search for the trigger (this method, the benign
teacher given to its frozen role "teacher"); and planting, the benign teacher trained on with the
trigger in its data. An attack that trains teacher and trigger together is an ordinary method that
delivers both (`adba`).
"""

import dataclasses
from typing import ClassVar

from rkd_jax.errors import check_range
from rkd_jax.methods import base, supervised


@dataclasses.dataclass(frozen=True)
class Attack(base.Method):
  """Finds a trigger: delivers "trigger", the arrays of a `backdoors.learned.Backdoor`.

  Whatever else it delivers is given to the roles of `plant()`'s method of that name.

  Attributes:
    target: the class.
    search_steps: rounds of the search for the trigger.
    plant_epochs: epochs of planting.
    plant_rate: learning rate of planting (SGD, Nesterov momentum .9, cosine).
  """

  target: int = 0
  search_steps: int = 500
  plant_epochs: int = 5
  plant_rate: float = 0.01
  turns: ClassVar = (("trigger", 1),)
  delivers: ClassVar = {"trigger": "trigger"}

  def __post_init__(self):
    check_range("attack.search_steps", self.search_steps, 1, 10**9)
    check_range("attack.plant_epochs", self.plant_epochs, 1, 10**9)
    check_range("attack.plant_rate", self.plant_rate, 1e-12, 1e3)

  def plant(self) -> base.Method:
    """How the benign teacher learns the trigger: on the poisoned part, as its "student"."""
    return supervised.Method()

  def predict(self, variables, state, images):
    return variables["teacher"](images, train=False)[0].logits
