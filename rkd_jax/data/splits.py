"""Who is in which part: class-balanced subsets that are pure functions of a seed."""

import math
from collections.abc import Sequence

import numpy as np

from rkd_jax.data import seeds
from rkd_jax.errors import UserError, check_range

NAMED = 10  # classes that a message names


def count(what: str, amount: float, total: int) -> int:
  """How many of `total` an amount means: below 1 a fraction of them, from 1 on a count."""
  if not 0 <= amount <= max(total, 1):  # of no examples a fraction is none
    raise UserError(
      f"{what} is {amount:g}; give a fraction below 1, or how many of the {total} images there are."
    )
  if amount >= 1 and amount != int(amount):
    raise UserError(f"{what} is {amount}; give a fraction below 1, or a whole number of examples.")
  return round(amount * total) if amount < 1 else int(amount)


def balanced(labels: np.ndarray, count: int, classes: int, seed: int) -> np.ndarray:
  """A random subset of exactly `count` examples with as equal class counts as there can be.

  Every class gets floor(count / classes); who gets one of the remainder is drawn. A class that runs
  out hands its share on to the others. For one seed a smaller subset is part of a larger one.

  Args:
    labels: int[N]; examples whose label is not in [0, classes) are never chosen.
    count: how many, in [0, N].
    classes: K.
    seed: the draw.

  Returns:
    int64[count], ascending.

  Raises:
    UserError: if there are fewer than `count` examples to choose from.
  """
  labels = np.asarray(labels)
  members = [np.flatnonzero(labels == k) for k in range(classes)]
  available = np.array([len(m) for m in members])
  if not 0 <= count <= available.sum():
    raise UserError(f"Asked for {count} examples, but there are {available.sum()} to choose from.")
  order = seeds.rng(seed, "class order").permutation(classes)
  quotas = _quotas(available, count, order)
  chosen = [seeds.rng(seed, "class", k).permutation(m)[: quotas[k]] for k, m in enumerate(members)]
  return np.sort(np.concatenate(chosen)).astype(np.int64)


def _quotas(available: np.ndarray, count: int, order: np.ndarray) -> np.ndarray:
  """How many each class gives, int[K]; `order` says who comes first where not all can give."""
  quotas = np.zeros_like(available)
  while (missing := count - int(quotas.sum())) > 0:
    giving = order[available[order] > quotas[order]]
    share = missing // len(giving)
    if share == 0:
      giving, share = giving[:missing], 1
    quotas[giving] = np.minimum(quotas[giving] + share, available[giving])
  return quotas


def labelled(
  labels: np.ndarray, fraction: float, classes: int, seed: int, names: Sequence[str] = ()
) -> np.ndarray:
  """The examples whose labels the defender knows: int64 indices, ascending, class-balanced.

  Args:
    labels: int[N].
    fraction: of the N examples, in [0, 1]; 0 gives none, 1 gives all.
    classes: K.
    seed: the draw. For one seed a smaller labelled part is a subset of a larger one.
    names: of the classes, for messages.

  Raises:
    UserError: if the fraction is out of range, or leaves a class that has examples without a
      labelled one.
  """
  check_range("The fraction of labelled examples", fraction, 0, 1)
  chosen = balanced(labels, round(fraction * len(labels)), classes, seed)
  present = np.unique(labels)
  missing = np.setdiff1d(present, np.asarray(labels)[chosen])
  if fraction > 0 and missing.size:
    enough = math.ceil(len(present) / len(labels) * 1e4) / 1e4
    shown = [repr(names[k]) if names else str(k) for k in missing[:NAMED].tolist()]
    shown += [f"{missing.size - NAMED:,} more"] if missing.size > NAMED else []
    raise UserError(
      f"{fraction:g} of {len(labels):,} training images are {len(chosen)} labels: none for "
      f"{'class' if missing.size == 1 else 'classes'} {', '.join(shown)}. "
      f"The smallest fraction that labels every class is --config.labels={enough:g}."
    )
  return chosen
