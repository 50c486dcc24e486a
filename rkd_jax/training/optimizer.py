"""Optimisers and schedules as plain descriptions, and the optax chains they stand for."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import optax

from rkd_jax.errors import UserError, check_range, nearest

NAMES = ("sgd", "adam", "adamw")
SCHEDULES = ("constant", "cosine", "step")


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """An optimiser of one role. Hashable: it is compiled into the step.

  Attributes:
    name: "sgd" | "adam" | "adamw".
    learning_rate: peak, >= 0.
    momentum: of sgd, in [0, 1]; 0: none.
    nesterov: whether the momentum is Nesterov's.
    b1: decay of the gradient's running mean, in [0, 1]; adam and adamw.
    b2: decay of its square's, in [0, 1]; adam and adamw.
    weight_decay: L2 added to the gradient as PyTorch's SGD does (sgd, adam), decoupled in adamw.
    schedule: "constant" | "cosine" (to 0) | "step" (times `factor` at each of `milestones`).
    milestones: fractions of the role's updates in (0, 1).
    factor: what "step" multiplies the rate with, in [0, 1].
    warmup: fraction of the updates over which the rate rises linearly from 0.
    clip: global norm to which gradients are clipped; 0: not.
  """

  name: str = "sgd"
  learning_rate: float = 0.1
  momentum: float = 0.9
  nesterov: bool = True
  b1: float = 0.9
  b2: float = 0.999
  weight_decay: float = 5e-4
  schedule: str = "cosine"
  milestones: tuple[float, ...] = (0.5, 0.75)
  factor: float = 0.1
  warmup: float = 0.0
  clip: float = 0.0

  def __post_init__(self):
    for what, value, known in (
      ("optimizer", self.name, NAMES),
      ("schedule", self.schedule, SCHEDULES),
    ):
      if value not in known:
        raise UserError(f"No {what} is called {value!r}. {nearest(value, known)}")
    check_range("optimizer.learning_rate", self.learning_rate, 0, 1e3)
    check_range("optimizer.weight_decay", self.weight_decay, 0, 1e3)
    check_range("optimizer.warmup", self.warmup, 0, 1)
    check_range("optimizer.clip", self.clip, 0, 1e9)
    for name in ("momentum", "b1", "b2", *(["factor"] if self.schedule == "step" else [])):
      check_range(f"optimizer.{name}", getattr(self, name), 0, 1)
    for mark in self.milestones:
      check_range("optimizer.milestones", mark, 0, 1)

  def changed(self, fields: Mapping[str, Any], of: str) -> "Optimizer":
    """With other fields; a `UserError` names one that there is not. `of`: whose they are."""
    known = [field.name for field in dataclasses.fields(self)]
    for name in fields:
      if name not in known:
        raise UserError(f"The optimizer of {of!r} has no {name!r}. {nearest(name, known)}")
    return dataclasses.replace(self, **fields)

  def rate(self, updates: int) -> optax.Schedule:
    """The learning rate as a function of the update, for a role that is updated so many times."""
    warm = round(self.warmup * updates)
    rest = max(updates - warm, 1)
    if self.schedule == "cosine":
      after = optax.cosine_decay_schedule(self.learning_rate, rest)
    elif self.schedule == "step":
      marks: dict[int, float] = {}
      for mark in (round(m * updates) - warm for m in self.milestones):
        marks[mark] = marks.get(mark, 1.0) * self.factor
      after = optax.piecewise_constant_schedule(self.learning_rate, marks)
    else:
      after = optax.constant_schedule(self.learning_rate)
    if not warm:
      return after
    return optax.join_schedules(
      [optax.linear_schedule(0.0, self.learning_rate, warm), after], [warm]
    )

  def chain(self, updates: int) -> optax.GradientTransformation:
    """The optax transformation."""
    rate = self.rate(updates)
    clip = [optax.clip_by_global_norm(self.clip)] if self.clip else []
    if self.name == "adamw":
      return optax.chain(*clip, optax.adamw(rate, self.b1, self.b2, weight_decay=self.weight_decay))
    decay = [optax.add_decayed_weights(self.weight_decay)] if self.weight_decay else []
    if self.name == "adam":
      return optax.chain(*clip, *decay, optax.adam(rate, self.b1, self.b2))
    return optax.chain(*clip, *decay, optax.sgd(rate, self.momentum or None, self.nesterov))
