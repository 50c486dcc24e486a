"""Plans: exact counts, who may be taken, and what a seed fixes."""

import numpy as np
import pytest

from rkd_jax.backdoors import badnets, base, plans
from rkd_jax.backdoors.base import CLEAN, COVER, POISONED
from rkd_jax.errors import UserError

SIZE, TARGET = 200, 2
LABELS = np.random.default_rng(0).permutation(np.arange(SIZE) % 5).astype(np.int32)
SCORE = np.random.default_rng(1).normal(size=SIZE)
BACKDOOR = badnets.Backdoor(target=TARGET)


def plan(name, seed=0, rate=0.1, score=SCORE, labels=LABELS, backdoor=BACKDOOR):
  return plans.plan(name, backdoor, seed, labels, rate, score)


@pytest.mark.parametrize("name", plans.PLANS)
@pytest.mark.parametrize(("rate", "count"), [(0, 0), (0.005, 1), (0.034, 7), (0.1, 20), (0.2, 40)])
def test_counts_are_exact(name, rate, count):
  kinds = plan(name, rate=rate)
  assert kinds.dtype == np.int8 and kinds.shape == (SIZE,)
  assert (kinds != CLEAN).sum() == count
  assert (kinds == COVER).sum() == (count // 2 if name == "cover" else 0)


@pytest.mark.parametrize("name", plans.PLANS)
def test_a_plan_is_a_function_of_its_seed(name):
  score = None if name != "boundary" else np.round(SCORE)  # ties are drawn
  np.testing.assert_array_equal(plan(name, 3, score=score), plan(name, 3, score=score))
  assert (plan(name, 3, score=score) != plan(name, 4, score=score)).any()


@pytest.mark.parametrize("name", plans.PLANS)
def test_a_higher_rate_takes_the_same_and_more(name):
  few, many = plan(name, rate=0.055), plan(name, rate=0.13)
  np.testing.assert_array_equal(many[few != CLEAN], few[few != CLEAN])


def test_random_is_the_backdoors_own():
  np.testing.assert_array_equal(plan("random", 7), BACKDOOR.plan(7, LABELS, 0.1))

  class Own(badnets.Backdoor):
    def plan(self, seed, labels, rate, score=None):
      assert score is None
      return np.full(len(labels), COVER, np.int8)

  assert (plan("random", backdoor=Own()) == COVER).all()


def test_target_only_takes_the_target_class_alone():
  kinds = plan("target_only")
  assert (LABELS[kinds != CLEAN] == TARGET).all()
  whole = plan("target_only", rate=0.2)
  np.testing.assert_array_equal(whole == POISONED, LABELS == TARGET)


def test_too_few_are_counted():
  with pytest.raises(UserError, match=r"wants 41 images of the target class .* there are 40"):
    plan("target_only", rate=41 / SIZE)
  with pytest.raises(UserError, match=r"wants 41 images of the target class .* there are 40"):
    plan("ladder", rate=82 / SIZE)
  with pytest.raises(UserError, match=r"wants 161 victims .* there are 160"):
    plan("boundary", rate=161 / SIZE)
  with pytest.raises(UserError, match=r"wants 3 victims .* there are 0"):
    plan("ladder", rate=0.03, labels=np.full(SIZE, TARGET))


def test_boundary_takes_the_victims_with_the_highest_scores():
  kinds, victims = plan("boundary", rate=0.15), LABELS != TARGET
  assert not (kinds[~victims] != CLEAN).any()
  taken, left = SCORE[kinds == POISONED], SCORE[victims & (kinds == CLEAN)]
  assert len(taken) == 30 and taken.min() > left.max()
  np.testing.assert_array_equal(kinds, plan("boundary", 9, 0.15))  # no ties: no draw


def test_boundary_needs_a_score_for_everyone():
  with pytest.raises(UserError, match="'boundary' needs a score"):
    plan("boundary", score=None)
  for score in (SCORE[1:], np.where(np.arange(SIZE) == 5, np.nan, SCORE)):
    with pytest.raises(UserError, match="200 finite numbers"):
      plan("boundary", score=score)


@pytest.mark.parametrize(("count", "inside"), [(20, 10), (21, 11), (1, 1)])
def test_a_ladder_has_two_halves(count, inside):
  taken = LABELS[plan("ladder", rate=count / SIZE) == POISONED]
  assert (taken == TARGET).sum() == inside and len(taken) == count


def test_covers_are_drawn_from_all():
  kinds = plan("cover", rate=0.8)
  for kind in (POISONED, COVER):
    assert (np.bincount(LABELS[kinds == kind], minlength=5) > 5).all()


def test_victims_are_the_backdoors_to_say():
  class Every(base.Backdoor):
    def victims(self, labels):
      return labels >= 3

  kinds = plan("boundary", backdoor=Every(target=TARGET))
  assert (LABELS[kinds == POISONED] >= 3).all()
  assert (LABELS[plan("target_only", backdoor=Every(target=TARGET)) == POISONED] < 3).all()


@pytest.mark.parametrize("name", ["target_only", "ladder"])
def test_an_unknown_class_is_not_the_target(name):
  labels = np.concatenate([LABELS, np.full(SIZE, -1)])
  kinds = plan(name, rate=0.1, labels=labels)
  assert (kinds != CLEAN).sum() == 40 and (labels[kinds != CLEAN] >= 0).all()
  with pytest.raises(UserError, match=r"images of the target class .* there are 40"):
    plan(name, rate=0.25, labels=labels)


def test_names_and_rates_are_checked():
  with pytest.raises(UserError, match=r"'target'\. Did you mean 'target_only'"):
    plan("target")
  for name in plans.PLANS:
    for rate in (-0.1, 1.5, float("nan")):
      with pytest.raises(UserError, match="poison rate is"):
        plan(name, rate=rate)
