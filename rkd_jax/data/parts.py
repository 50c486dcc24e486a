"""Who sees which part of the data: the teacher's author, the defender, and nobody else.

Everything is a pure function of (data set, seed): the labelled subset, the teacher's poison, the
contamination of the pool. True labels of the pool and who is triggered stay here and in
`evaluation/`; a method sees label -1 and the image as it is.
"""

import dataclasses
import functools

import numpy as np

from rkd_jax.backdoors.base import CLEAN, POISONED, Backdoor
from rkd_jax.data import seeds, splits
from rkd_jax.data.sources import Dataset
from rkd_jax.data.stream import Rows
from rkd_jax.errors import UserError, check_range

PARTS = ("poisoned", "clean", "pool", "labelled", "nothing")


@dataclasses.dataclass(frozen=True)
class Parts:
  """The parts of one data set for one seed.

  Attributes:
    dataset: train, hold-out and test.
    seed: of the plans.
    labels: fraction of the training images that the defender has labels for (a clean subset).
    rate: fraction of the teacher's training images that its author poisoned.
    contamination: fraction of the defender's images, all unlabelled, that carry the trigger.
    backdoor: plans who is triggered (its trigger is not used here).
  """

  dataset: Dataset
  seed: int
  labels: float
  rate: float
  contamination: float
  backdoor: Backdoor

  def __post_init__(self):
    check_range("config.labels", self.labels, 0, 1)
    check_range("config.teacher.poison", self.rate, 0, 1)
    check_range("config.contamination", self.contamination, 0, 1)
    self.backdoor.check(self.dataset.image_shape, self.dataset.classes)
    wanted, free = round(self.contamination * self.size), self.size - len(self.labelled)
    if wanted > free:
      raise UserError(
        f"config.contamination={self.contamination} means {wanted} triggered images, but {free} "
        f"of {self.size} are unlabelled (the labelled part is clean). Lower it, or config.labels."
      )

  @property
  def size(self) -> int:
    return len(self.dataset.train.labels)

  @functools.cached_property
  def labelled(self) -> np.ndarray:
    """int64[L]: the training images whose labels the defender has, class-balanced."""
    train = self.dataset.train
    seed = seeds.fold(self.seed, "labels")
    return splits.labelled(train.labels, self.labels, self.dataset.classes, seed)

  @functools.cached_property
  def contaminated(self) -> np.ndarray:
    """int8[N]: which images of the pool carry the trigger."""
    kinds = np.full(self.size, CLEAN, np.int8)
    free = np.setdiff1d(np.arange(self.size), self.labelled)
    if len(free):
      labels, seed = self.dataset.train.labels[free], seeds.fold(self.seed, "contamination")
      # The rate is of the whole pool; only unlabelled images are drawn.
      wanted = round(self.contamination * self.size)
      kinds[free] = self.backdoor.plan(seed, labels, wanted / len(free))
    return kinds

  def rows(self, part: str) -> Rows:
    """What a phase on this part sees.

    Parts: "poisoned" (the teacher's author: all images, all labels, some triggered and relabelled),
    "clean" (all images, all labels), "pool" (the defender: all images, labels of the labelled ones,
    some of the others triggered), "labelled" (the labelled ones alone).
    """
    images, labels = self.dataset.train.images, self.dataset.train.labels
    if part == "clean":
      return Rows(images, labels)
    if part == "poisoned":
      plan = self.backdoor.plan(seeds.fold(self.seed, "poison"), labels, self.rate)
      return Rows(images, labels, plan)
    if part == "pool":
      known = np.full_like(labels, -1)
      known[self.labelled] = labels[self.labelled]
      return Rows(
        images, known, self.contaminated if (self.contaminated == POISONED).any() else None
      )
    if part == "labelled":
      if not len(self.labelled):
        raise UserError(
          "config.labels is 0, but this method trains on the labelled part. Raise it."
        )
      return Rows(images[self.labelled], labels[self.labelled])
    raise UserError(f"No part of the data is called {part!r}; there are {', '.join(PARTS)}.")
