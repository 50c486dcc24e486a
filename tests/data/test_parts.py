"""Who sees what: exact plans, a clean balanced labelled part, and no true label out of turn."""

import numpy as np
import pytest

from rkd_jax.backdoors import badnets
from rkd_jax.data.parts import PARTS, Parts
from rkd_jax.data.sources import Dataset, Split
from rkd_jax.errors import UserError

SIZE = 200


def dataset():
  labels = np.random.default_rng(0).permutation(np.arange(SIZE) % 4).astype(np.int32)
  images = np.random.default_rng(1).integers(0, 256, (SIZE, 8, 8, 1), np.uint8)
  part = Split(images, labels)
  return Dataset("made up", part, part, part, tuple("abcd"), (0.5,), (0.2,), "f")


DATA = dataset()


def make(seed=0, labels=0.1, rate=0.15, contamination=0.05, **backdoor):
  return Parts(DATA, seed, labels, rate, contamination, badnets.Backdoor(**backdoor))


def test_the_contamination_is_exact_and_of_the_unlabelled():
  for contamination, wanted in ((0.05, 10), (0.0, 0), (0.9, 180), (0.013, 3)):
    parts = make(contamination=contamination)
    assert (parts.contaminated > 0).sum() == wanted
    assert not (parts.contaminated[parts.labelled] > 0).any()


def test_the_labelled_part_is_balanced_clean_and_true():
  parts = make()
  rows = parts.rows("labelled")
  assert len(rows) == 20 and np.bincount(rows.label).tolist() == [5, 5, 5, 5]
  assert rows.kind is None
  np.testing.assert_array_equal(rows.image, DATA.train.images[parts.labelled])
  np.testing.assert_array_equal(rows.label, DATA.train.labels[parts.labelled])


def test_the_pool_hides_all_other_labels():
  parts = make()
  rows = parts.rows("pool")
  known = np.zeros(SIZE, bool)
  known[parts.labelled] = True
  assert (rows.label[~known] == -1).all()
  np.testing.assert_array_equal(rows.label[known], DATA.train.labels[known])
  np.testing.assert_array_equal(rows.image, DATA.train.images)  # triggered on the device
  np.testing.assert_array_equal(rows.kind, parts.contaminated)
  assert make(contamination=0.0).rows("pool").kind is None
  assert (make(labels=0.0).rows("pool").label == -1).all()
  assert (make(labels=1.0, contamination=0.0).rows("pool").label >= 0).all()


def test_the_teachers_author_sees_everything():
  poisoned, clean = make().rows("poisoned"), make().rows("clean")
  assert (poisoned.kind == 1).sum() == 30 and clean.kind is None
  for rows in (poisoned, clean):  # relabelled on the device
    np.testing.assert_array_equal(rows.label, DATA.train.labels)


def test_plans_follow_the_seed_and_differ_from_each_other():
  a, again, b = make(0), make(0), make(1)
  for plan in (
    lambda p: p.labelled,
    lambda p: p.contaminated,
    lambda p: p.rows("poisoned").kind,
  ):
    np.testing.assert_array_equal(plan(a), plan(again))
    assert (plan(a) != plan(b)).any()
  # the poison plan and the contamination are two draws
  even = make(0, labels=0.0, rate=0.1, contamination=0.1)
  assert (even.rows("poisoned").kind != even.contaminated).any()


def test_more_labels_contain_fewer():
  few, many = make(labels=0.1).labelled, make(labels=0.3).labelled
  assert set(few) < set(many)


@pytest.mark.parametrize(
  ("wrong", "message"),
  [
    ({"labels": 1.1}, "config.labels is 1.1"),
    ({"labels": -0.1}, "config.labels is -0.1"),
    ({"rate": 2.0}, "config.teacher.poison is 2.0"),
    ({"contamination": float("nan")}, "config.contamination is nan"),
    ({"contamination": 0.95}, "190 triggered images, but 180 of 200"),
    ({"labels": 0.01}, "none for class"),
    ({"target": 4}, "class 4; there are 0..3"),
    ({"size": 9}, "badnets.size is 9"),
  ],
)
def test_what_cannot_be_is_said_at_once(wrong, message):
  with pytest.raises(UserError, match=message):
    make(**wrong)


def test_parts_that_are_not_there():
  with pytest.raises(UserError, match=f"'pol'; there are {', '.join(PARTS)}"):
    make().rows("pol")
  with pytest.raises(UserError, match="labels is 0"):
    make(labels=0.0).rows("labelled")
