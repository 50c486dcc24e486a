"""Who sees which part of the data: the teacher's author, the defender, and nobody else.

Everything is a pure function of (data set, seed): the labelled subset, the teacher's poison, the
contamination of the pool. True labels of the pool and who is triggered stay here and in
`evaluation/`; a method sees label -1 and the image as it is.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from rkd_jax.backdoors import plans
from rkd_jax.backdoors.base import CLEAN, Backdoor
from rkd_jax.data import seeds, splits
from rkd_jax.data.sources import Dataset
from rkd_jax.data.stream import Rows
from rkd_jax.errors import UserError, check_range

PARTS = ("poisoned", "clean", "pool", "labelled", "labelled+holdout", "nothing")


@dataclasses.dataclass(frozen=True, eq=False)
class Parts:
  """The parts of one data set for one seed.

  Attributes:
    dataset: train, hold-out and test.
    seed: of the plans.
    labels: fraction of the training images that the defender has labels for (a clean subset).
    rate: fraction of the teacher's training images that its author poisoned.
    contamination: fraction of the defender's images, all unlabelled, that carry the trigger.
    backdoor: whose victims and labels the plans are about (its trigger is not used here).
    teacher_plan: who is poisoned in the teacher's data, a name of `backdoors.plans.PLANS`.
    pool_plan: who of the unlabelled images carries the trigger, such a name.
    score: float[N] over the training images, or what computes it when it is needed: whom the pool's
      plan "boundary" takes first.
  """

  dataset: Dataset
  seed: int
  labels: float
  rate: float
  contamination: float
  backdoor: Backdoor
  teacher_plan: str = "random"
  pool_plan: str = "random"
  score: np.ndarray | Callable[[], np.ndarray] | None = None

  def __post_init__(self):
    check_range("config.labels", self.labels, 0, 1)
    check_range("config.teacher.poison", self.rate, 0, 1)
    check_range("config.contamination", self.contamination, 0, 1)
    plans.check(self.teacher_plan)
    plans.check(self.pool_plan)
    if self.teacher_plan == "boundary":
      raise UserError(
        "config.teacher.plan is 'boundary', but only the pool's images are scored (config.plan)."
      )
    self.backdoor.check(self.dataset.image_shape, self.dataset.classes)
    wanted, free = round(self.contamination * self.size), self.size - len(self.labelled)
    if wanted > free:
      raise UserError(
        f"config.contamination={self.contamination} means {wanted} triggered images, but {free} "
        f"of {self.size} are unlabelled (the labelled part is clean). Lower it, or config.labels."
      )
    self._poisoned()
    if self.pool_plan != "boundary":  # whose score asks networks
      _ = self.contaminated

  @property
  def size(self) -> int:
    return len(self.dataset.train.labels)

  def count(self, part: str) -> int:
    """How many examples a part has, without planning who is triggered."""
    if part == "labelled":
      return len(self._labelled())
    held = len(self.dataset.holdout)
    return len(self.labelled) + held if part == "labelled+holdout" else self.size

  @functools.cached_property
  def labelled(self) -> np.ndarray:
    """int64[L]: the training images whose labels the defender has, class-balanced."""
    train = self.dataset.train
    seed = seeds.fold(self.seed, "labels")
    return splits.labelled(train.labels, self.labels, self.dataset.classes, seed)

  @functools.cached_property
  def contaminated(self) -> np.ndarray:
    """int8[N]: which images of the pool carry the trigger: those that are not CLEAN.

    They have no label, so POISONED and COVER come to the same there.
    """
    kinds = np.full(self.size, CLEAN, np.int8)
    wanted = round(self.contamination * self.size)
    if wanted:
      free = np.setdiff1d(np.arange(self.size), self.labelled)
      labels, seed = self.dataset.train.labels[free], seeds.fold(self.seed, "contamination")
      # The rate is of the whole pool; only unlabelled images are drawn.
      rate, score = wanted / len(free), self._score_of(free)
      kinds[free] = plans.plan(self.pool_plan, self.backdoor, seed, labels, rate, score)
    return kinds

  def _score_of(self, rows: np.ndarray) -> np.ndarray | None:
    score = self.score() if callable(self.score) else self.score
    if score is None:
      return None
    if np.shape(score) != (self.size,):
      raise UserError(f"score has the shape {np.shape(score)}; it must be ({self.size},).")
    return np.asarray(score)[rows]

  def rows(self, part: str) -> Rows:
    """What a phase on this part sees.

    Parts: "poisoned" (the teacher's author: all images, all labels, some triggered and relabelled),
    "clean" (all images, all labels), "pool" (the defender: all images, labels of the labelled ones,
    some of the others triggered), "labelled" (the labelled ones alone), "labelled+holdout" (these
    and the clean hold-out: all labels that the defender has; its accuracy on the hold-out is one of
    training).
    """
    made = {
      "poisoned": self._poisoned,
      "clean": self._clean,
      "pool": self._pool,
      "labelled": self._labelled,
      "labelled+holdout": self._defenders,
    }
    if part not in made:
      raise UserError(f"No part of the data is called {part!r}; there are {', '.join(PARTS)}.")
    return made[part]()

  def _clean(self) -> Rows:
    return Rows(self.dataset.train.images, self.dataset.train.labels)

  def _poisoned(self) -> Rows:
    rows, seed = self._clean(), seeds.fold(self.seed, "poison")
    kinds = plans.plan(self.teacher_plan, self.backdoor, seed, rows.label, self.rate)
    return dataclasses.replace(rows, kind=kinds)

  def _pool(self) -> Rows:
    rows = self._clean()
    known = np.full_like(rows.label, -1)
    known[self.labelled] = rows.label[self.labelled]
    kinds = self.contaminated if (self.contaminated != CLEAN).any() else None
    return Rows(rows.image, known, kinds)

  def _labelled(self) -> Rows:
    if not len(self.labelled):
      raise UserError("config.labels is 0, but this method trains on the labelled part. Raise it.")
    some = self.dataset.train.take(self.labelled)
    return Rows(some.images, some.labels)

  def _defenders(self) -> Rows:
    some, held = self.dataset.train.take(self.labelled), self.dataset.holdout
    images = np.concatenate([some.images, held.images])
    return Rows(images, np.concatenate([some.labels, held.labels]))
