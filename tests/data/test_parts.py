"""Who sees what: exact plans, a clean balanced labelled part, and no true label out of turn."""

import dataclasses
import re

import numpy as np
import pytest

from rkd_jax.backdoors import badnets, plans
from rkd_jax.backdoors.base import CLEAN, COVER, POISONED
from rkd_jax.data import seeds
from rkd_jax.data.parts import PARTS, Parts
from rkd_jax.data.sources import Dataset, Split
from rkd_jax.errors import UserError

SIZE = 200


def dataset():
  labels = np.random.default_rng(0).permutation(np.arange(SIZE) % 4).astype(np.int32)
  images = np.random.default_rng(1).integers(0, 256, (SIZE, 8, 8, 1), np.uint8)
  part = Split(images, labels)
  held = Split(255 - images[:12], labels[:12])
  return Dataset("made up", part, held, part, tuple("abcd"), (0.5,), (0.2,), "f")


DATA = dataset()
SCORE = np.random.default_rng(2).normal(size=SIZE)


def make(seed=0, labels=0.1, rate=0.15, contamination=0.05, **fields):
  planned = {n: fields.pop(n) for n in ("teacher_plan", "pool_plan", "score") if n in fields}
  return Parts(DATA, seed, labels, rate, contamination, badnets.Backdoor(**fields), **planned)


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


def test_the_plans_by_default_are_the_backdoors_own():
  parts, backdoor = make(3), badnets.Backdoor()
  poisoned = backdoor.plan(seeds.fold(3, "poison"), DATA.train.labels, 0.15)
  np.testing.assert_array_equal(parts.rows("poisoned").kind, poisoned)
  free = np.setdiff1d(np.arange(SIZE), parts.labelled)
  pool = backdoor.plan(seeds.fold(3, "contamination"), DATA.train.labels[free], 10 / 180)
  np.testing.assert_array_equal(parts.contaminated[free], pool)


@pytest.mark.parametrize("name", plans.PLANS)
@pytest.mark.parametrize("contamination", [0.0, 0.013, 0.1, 0.2])
def test_the_labelled_part_stays_clean_whatever_the_plan(name, contamination):
  parts = make(contamination=contamination, pool_plan=name, score=SCORE)
  assert (parts.contaminated != CLEAN).sum() == round(contamination * SIZE)
  assert not (parts.contaminated[parts.labelled] != CLEAN).any()
  rows = parts.rows("pool")
  if contamination:
    np.testing.assert_array_equal(rows.kind, parts.contaminated)
    assert (rows.label[parts.contaminated != CLEAN] == -1).all()
  else:
    assert rows.kind is None


def test_a_pool_of_covers_is_contaminated_too():
  class Covers(badnets.Backdoor):
    def plan(self, seed, labels, rate, score=None):
      return super().plan(seed, labels, rate) * COVER

  parts = Parts(DATA, 0, 0.1, 0.1, 0.05, Covers())
  assert (parts.rows("pool").kind == COVER).sum() == 10


def test_plans_of_teacher_and_pool_are_chosen_apart():
  labels, target = DATA.train.labels, 1
  parts = make(rate=0.2, teacher_plan="target_only", pool_plan="ladder", target=target)
  poisoned, pool = parts.rows("poisoned").kind, parts.contaminated
  assert (poisoned == POISONED).sum() == 40 and (labels[poisoned == POISONED] == target).all()
  assert (labels[pool == POISONED] == target).sum() == 5 == (pool != CLEAN).sum() / 2
  np.testing.assert_array_equal(pool, make(pool_plan="ladder", target=target).contaminated)
  covered = make(teacher_plan="cover").rows("poisoned").kind
  assert (covered == POISONED).sum() == (covered == COVER).sum() == 15
  np.testing.assert_array_equal(parts.rows("poisoned").label, labels)


def test_the_pools_boundary_are_the_best_scored_of_the_unlabelled_victims():
  parts = make(contamination=0.15, pool_plan="boundary", score=SCORE)
  may = DATA.train.labels != 0
  may[parts.labelled] = False
  best = np.argsort(np.where(may, -SCORE, np.inf))[:30]
  np.testing.assert_array_equal(np.flatnonzero(parts.contaminated), np.sort(best))


def test_a_score_is_asked_for_when_it_is_needed():
  asked = []

  def score():
    asked.append(1)
    return SCORE

  parts = make(pool_plan="boundary", score=score)
  for part in ("poisoned", "clean", "labelled"):
    parts.rows(part)
  assert make(contamination=0.0, pool_plan="boundary", score=score).rows("pool").kind is None
  assert not asked
  ready = make(pool_plan="boundary", score=SCORE)
  np.testing.assert_array_equal(parts.contaminated, ready.contaminated)
  parts.rows("pool")
  assert len(asked) == 1


def test_the_defenders_labels_altogether():
  parts = make(contamination=0.5)
  rows, some, held = parts.rows("labelled+holdout"), parts.rows("labelled"), DATA.holdout
  assert len(rows) == 32 and rows.kind is None
  np.testing.assert_array_equal(rows.image, [*some.image, *held.images])
  np.testing.assert_array_equal(rows.label, [*some.label, *held.labels])
  assert rows.label.dtype == np.int32 and rows.image.dtype == np.uint8
  np.testing.assert_array_equal(make(labels=0.0).rows("labelled+holdout").image, held.images)


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
    ({"contamination": 0.002}, r"0\.002 of 200 images is less than half .*=0\.005 for one"),
    ({"labels": 0.01}, "none for class"),
    ({"target": 4}, "class 4; there are 0..3"),
    ({"size": 9}, "badnets.size is 9"),
    ({"teacher_plan": "laddr"}, "plan is called 'laddr'. Did you mean 'ladder'"),
    ({"pool_plan": "covers"}, "plan is called 'covers'. Did you mean 'cover'"),
    ({"teacher_plan": "boundary", "score": SCORE}, "config.teacher.plan is 'boundary'"),
  ],
)
def test_what_cannot_be_is_said_at_once(wrong, message):
  with pytest.raises(UserError, match=message):
    make(**wrong)


def test_parts_that_are_not_there():
  with pytest.raises(UserError, match=re.escape(f"'pol'; there are {', '.join(PARTS)}")):
    make().rows("pol")
  with pytest.raises(UserError, match="labels is 0"):
    make(labels=0.0).rows("labelled")


@pytest.mark.parametrize(
  ("wrong", "message"),
  [
    ({"pool_plan": "target_only", "contamination": 0.3}, "wants 60 .* there are 45"),
    ({"pool_plan": "boundary"}, "'boundary' needs a score"),
    ({"pool_plan": "boundary", "score": SCORE[1:]}, r"shape \(199,\); it must be \(200,\)"),
    ({"teacher_plan": "target_only", "rate": 0.3}, "wants 60 .* there are 50"),
  ],
)
def test_plans_that_cannot_be(wrong, message):
  with pytest.raises(UserError, match=message):
    parts = make(**wrong)  # at once, but for "boundary": its score asks networks
    assert wrong["pool_plan"] == "boundary"
    parts.rows("pool")


def test_images_without_labels_stand_behind_the_training_images():
  more = np.random.default_rng(3).integers(0, 256, (50, 8, 8, 1), np.uint8)
  whole = dataclasses.replace(DATA, unlabelled=more)
  parts = Parts(whole, 0, 0.1, 0.15, 0.5, badnets.Backdoor())
  rows = parts.rows("pool")
  np.testing.assert_array_equal(rows.image, np.concatenate([DATA.train.images, more]))
  assert (rows.label[SIZE:] == -1).all() and parts.count("pool") == len(rows) == 250
  assert (parts.contaminated > 0).sum() == 125 and (parts.contaminated[SIZE:] > 0).any()
  assert not (parts.contaminated[parts.labelled] > 0).any()
  for part in ("clean", "poisoned", "labelled"):
    plain = make(contamination=0.5).rows(part)
    np.testing.assert_array_equal(parts.rows(part).image, plain.image)
  np.testing.assert_array_equal(parts.labelled, make().labelled)
  with pytest.raises(UserError, match="means 238 triggered images, but 230 of 250"):
    Parts(whole, 0, 0.1, 0.15, 0.95, badnets.Backdoor())
