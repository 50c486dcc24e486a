"""Who sees which part of the data: the teacher's author, the defender, and nobody else.

Everything is a pure function of (data set, seed): the labelled subset, the teacher's poison, the
contamination of the pool. True labels of the pool and who is triggered stay here and in
`evaluation/`; a method sees label -1 and the image as it is.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import numpy as np

from rkd_jax.backdoors import plans
from rkd_jax.backdoors.base import CLEAN, Backdoor
from rkd_jax.data import lazy, seeds, splits
from rkd_jax.data.sources import Dataset
from rkd_jax.data.stream import Rows
from rkd_jax.errors import UserError, check_range

PARTS = ("poisoned", "clean", "pool", "labelled", "labelled+holdout", "nothing")


@dataclasses.dataclass(frozen=True, eq=False)
class Parts:
  """The parts of one data set for one seed.

  The pool is the training images, and behind them those that come without any label.

  Attributes:
    dataset: train, hold-out and test, and images without labels.
    seed: of the plans.
    labels: fraction of the training images that the defender has labels for (a clean subset).
    rate: fraction of the teacher's training images that its author poisoned.
    contamination: fraction of the defender's images, all unlabelled, that carry the trigger.
    backdoor: whose victims and labels the plans are about (its trigger is not used here).
    teacher_plan: who is poisoned in the teacher's data, a name of `backdoors.plans.PLANS`.
    pool_plan: who of the unlabelled images carries the trigger, such a name.
    score: float[M] over the pool's images, or what computes it when it is needed: whom the pool's
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
    pool = len(self.pool_labels)
    wanted, free = round(self.contamination * pool), pool - len(self.labelled)
    if self.contamination and not wanted:
      raise UserError(
        f"config.contamination={self.contamination:g} of {pool} images is less than half an image: "
        f"none would be triggered. Say --config.contamination={math.ceil(1e4 / pool) / 1e4:g} for "
        "one, or 0."
      )
    if wanted > free:
      raise UserError(
        f"config.contamination={self.contamination} means {wanted} triggered images, but {free} "
        f"of {pool} are unlabelled (the labelled part is clean). Lower it, or config.labels."
      )
    self._poisoned()
    if self.pool_plan != "boundary":  # whose score asks networks
      _ = self.contaminated

  def count(self, part: str) -> int:
    """How many examples a part has, without planning who is triggered."""
    labelled = len(self.labelled)
    if part == "labelled" and not labelled:
      raise _no_labels()
    known = {"labelled": labelled, "labelled+holdout": labelled + len(self.dataset.holdout)}
    return (known | {"pool": len(self.pool_labels)}).get(part, len(self.dataset.train))

  @property
  def pool_images(self) -> lazy.Images:
    """uint8[M, H, W, C]: the training images, and those without labels."""
    train, more = self.dataset.train.images, self.dataset.unlabelled
    return train if more is None else lazy.concatenate([train, more])

  @property
  def pool_labels(self) -> np.ndarray:
    """int32[M]: the true labels of the pool's images; -1 where nobody knows it."""
    train, more = self.dataset.train.labels, self.dataset.unlabelled
    return np.concatenate([train, np.full(0 if more is None else len(more), -1, np.int32)])

  @functools.cached_property
  def labelled(self) -> np.ndarray:
    """int64[L]: the training images whose labels the defender has, class-balanced."""
    train = self.dataset.train
    seed = seeds.fold(self.seed, "labels")
    names = self.dataset.class_names
    return splits.labelled(train.labels, self.labels, self.dataset.classes, seed, names)

  @functools.cached_property
  def contaminated(self) -> np.ndarray:
    """int8[M]: which images of the pool carry the trigger: those that are not CLEAN.

    They have no label, so POISONED and COVER come to the same there.
    """
    true = self.pool_labels
    kinds = np.full(len(true), CLEAN, np.int8)
    wanted = round(self.contamination * len(true))
    if wanted:
      free = np.setdiff1d(np.arange(len(true)), self.labelled)
      labels, seed = true[free], seeds.fold(self.seed, "contamination")
      # The rate is of the whole pool; only unlabelled images are drawn.
      rate, score = wanted / len(free), self._score_of(free)
      kinds[free] = plans.plan(self.pool_plan, self.backdoor, seed, labels, rate, score)
    return kinds

  def _score_of(self, rows: np.ndarray) -> np.ndarray | None:
    score = self.score() if callable(self.score) else self.score
    if score is None:
      return None
    wanted = (len(self.pool_labels),)
    if np.shape(score) != wanted:
      raise UserError(f"score has the shape {np.shape(score)}; it must be {wanted}.")
    return np.asarray(score)[rows]

  def rows(self, part: str) -> Rows:
    """What a phase on this part sees.

    Parts: "poisoned" (the teacher's author: training images, all labels, some triggered and
    relabelled), "clean" (the same, clean), "pool" (the defender: all images there are, labels of
    the labelled ones, some of the others triggered), "labelled" (the labelled ones alone),
    "labelled+holdout" (these and the clean hold-out: all labels that the defender has; its accuracy
    on the hold-out is one of training).
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
    known = np.full_like(self.pool_labels, -1)
    known[self.labelled] = self.dataset.train.labels[self.labelled]
    kinds = self.contaminated if (self.contaminated != CLEAN).any() else None
    return Rows(self.pool_images, known, kinds)

  def _labelled(self) -> Rows:
    if not len(self.labelled):
      raise _no_labels()
    some = self.dataset.train.take(self.labelled)
    return Rows(some.images, some.labels)

  def _defenders(self) -> Rows:
    some, held = self.dataset.train.take(self.labelled), self.dataset.holdout
    images = lazy.concatenate([some.images, held.images])
    return Rows(images, np.concatenate([some.labels, held.labels]))


def _no_labels() -> UserError:
  return UserError("config.labels is 0, but this method trains on the labelled part. Raise it.")
