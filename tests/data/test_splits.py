"""Who is in which part: exact counts, balance, nested subsets."""

import numpy as np
import pytest

from rkd_jax.data import seeds, splits
from rkd_jax.errors import UserError

LABELS = np.repeat(np.arange(4), [50, 30, 20, 3])  # classes of unequal size


def counts(indices, labels=LABELS, classes=4):
  return np.bincount(labels[indices], minlength=classes).tolist()


def test_rng_is_a_function_of_seed_and_names():
  def draw(*names):
    return seeds.rng(*names).integers(0, 2**40, 8).tolist()

  assert draw(3, "order", 1) == draw(np.int64(3), "order", np.int32(1))
  others = [
    (3, "order", 2),
    (4, "order", 1),
    (3, "order", "1"),
    (3, "order1"),
    (3,),
    (3, "or", "der"),
  ]
  assert len({tuple(draw(*names)) for names in [*others, (3, "order", 1)]}) == len(others) + 1


def test_fold_gives_seeds_in_range():
  folded = [seeds.fold(0, "phase", i) for i in range(2000)]
  assert 0 <= min(folded) < 2**28 and 2**31 - 2**28 < max(folded) < 2**31
  assert len(set(folded)) == 2000
  assert folded[7] == seeds.fold(0, "phase", 7)


def test_known_values_do_not_move():
  # A change here changes every published number: seeds mean the same in all versions.
  assert seeds.fold(0, "teacher") == 1892719749
  assert seeds.rng(0, "order", 0).integers(0, 1000, 4).tolist() == [258, 145, 362, 498]


@pytest.mark.parametrize(
  "count, expected", [(0, [0, 0, 0, 0]), (8, [2, 2, 2, 2]), (103, [50, 30, 20, 3])]
)
def test_balanced_by_hand(count, expected):
  chosen = splits.balanced(LABELS, count, 4, seed=0)
  assert chosen.dtype == np.int64 and counts(chosen) == expected


def test_classes_that_run_out_hand_their_share_on():
  assert counts(splits.balanced(LABELS, 63, 4, seed=0)) == [20, 20, 20, 3]
  assert counts(splits.balanced(LABELS, 93, 4, seed=0)) == [40, 30, 20, 3]


@pytest.mark.parametrize("count", range(1, 103, 7))
def test_balanced_is_exact_ascending_and_nested(count):
  chosen = splits.balanced(LABELS, count, 4, seed=5)
  assert len(chosen) == count and (np.diff(chosen) > 0).all()
  quotas = np.array(counts(chosen))
  giving = quotas[quotas < np.bincount(LABELS)]  # classes that have not run out
  assert np.ptp(giving) <= 1
  assert np.isin(chosen, splits.balanced(LABELS, count + 1, 4, seed=5)).all()


def test_remainder_goes_to_drawn_classes():
  firsts = {tuple(counts(splits.balanced(LABELS, 6, 4, seed=s))) for s in range(20)}
  assert len(firsts) > 1 and all(sorted(f) == [1, 1, 2, 2] for f in firsts)


def test_seeds_differ():
  assert not np.array_equal(splits.balanced(LABELS, 8, 4, 0), splits.balanced(LABELS, 8, 4, 1))


def test_balanced_refuses_more_than_there_are():
  with pytest.raises(UserError, match="104 examples, but there are 103"):
    splits.balanced(LABELS, 104, 4, seed=0)
  with pytest.raises(UserError, match="2 examples, but there are 1"):
    splits.balanced(np.array([-1, -1, 0]), 2, 1, seed=0)


def test_labelled():
  labels = np.arange(1100) % 10
  chosen = splits.labelled(labels, 0.05, 10, seed=0)
  assert sorted(counts(chosen, labels, 10)) == [5] * 5 + [6] * 5
  assert splits.labelled(labels, 0, 10, seed=0).size == 0
  assert splits.labelled(labels, 1, 10, seed=0).tolist() == list(range(1100))


def test_labelled_names_the_classes_and_the_fraction_that_would_do():
  labels = np.arange(1100) % 10
  with pytest.raises(UserError, match=r"8 labels: none for classes \d, \d\. .*=0\.0091"):
    splits.labelled(labels, 8 / 1100, 10, seed=0)
  assert len(splits.labelled(labels, 0.0091, 10, seed=0)) == 10
  with pytest.raises(UserError, match=r"none for class '[a-j]'\. .*=0\.0091"):
    splits.labelled(labels, 9 / 1100, 10, seed=0, names="abcdefghij")
  with pytest.raises(UserError, match=r"0 labels: none for classes (\d+, ){10}90 more\."):
    splits.labelled(np.arange(1000) % 100, 1e-4, 100, seed=0)


@pytest.mark.parametrize("fraction", [-0.1, 1.5, float("nan")])
def test_labelled_range(fraction):
  with pytest.raises(UserError, match="between 0 and 1"):
    splits.labelled(LABELS, fraction, 4, seed=0)


def test_count_takes_fractions_and_numbers():
  assert splits.count("x", 0.1, 1797) == 180
  assert splits.count("x", 197, 1797) == splits.count("x", 197.0, 1797) == 197
  for wrong, message in (
    (197.5, "whole number"),
    (1798, "is 1798; .* of the 1797"),
    (-1, "below 1"),
  ):
    with pytest.raises(UserError, match=message):
      splits.count("The hold-out", wrong, 1797)
