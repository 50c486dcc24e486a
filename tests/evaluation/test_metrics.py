"""Numbers by hand: proportions, composites, intervals."""

import numpy as np
import pytest

from rkd_jax.evaluation import metrics, recount
from rkd_jax.reporting import results

LABELS = np.array([0, 0, 1, 1, 2, 2])


def test_accuracy_counts_hits():
  proportion = metrics.accuracy(np.array([0, 1, 1, 1, 2, 0]), LABELS)
  assert (proportion.count, proportion.n, proportion.value) == (4, 6, 4 / 6)


def test_target_class_is_left_out_of_asr_and_ra():
  predicted = np.array([0, 0, 0, 1, 0, 0])  # on triggered images; the first two belong to class 0
  assert metrics.attack_success(predicted, LABELS, 0) == metrics.Proportion(3, 4)
  assert metrics.robust_accuracy(predicted, LABELS, 0) == metrics.Proportion(1, 4)


def test_all_to_all_leaves_nothing_out():
  target = (LABELS + 1) % 3
  assert metrics.attack_success(target, LABELS, target) == metrics.Proportion(6, 6)


def test_nothing_but_the_target_class_is_unknown_not_zero():
  proportion = metrics.attack_success(np.zeros(2, int), np.zeros(2, int), 0)
  assert proportion == metrics.Proportion(0, 0)
  assert proportion.fields() == {"count": 0, "n": 0, "value": None, "ci95": None}


def test_no_examples_at_all():
  assert metrics.accuracy(np.array([]), np.array([])).value is None


@pytest.mark.parametrize(
  "predicted, error",
  [(np.zeros(5, int), "shapes"), (np.zeros((6, 3), int), "shapes"), (np.zeros(6), "logits")],
)
def test_what_is_not_classes_is_refused(predicted, error):
  with pytest.raises(ValueError, match=error):
    metrics.accuracy(predicted, LABELS)


@pytest.mark.parametrize(
  "goals, expected",
  [
    (0, (1, 2)),
    ([0, 0, 0, 0, 0], (1, 2)),
    ([0, 0, 0, 2, 2], (1, 2)),  # images of class 1 alone are led away
    ([0, 0, 1, 2, 2], (0, 0)),  # nothing is led away: no trigger is known
    ([1, 1, 2, 0, 0], (0, 0)),  # each class to the next
  ],
)
def test_target_acc_is_of_the_class_that_others_are_led_to(goals, expected):
  labels, said = np.array([0, 0, 1, 2, 2]), np.array([0, 1, 1, 2, 0])
  goals = np.array(goals)
  assert metrics.target_accuracy(said, labels, goals) == metrics.Proportion(*expected)
  arrays = {
    "labels": labels, "goals": np.broadcast_to(goals, 5), "teacher/poisoned:clean": said,
  }  # fmt: skip
  cell = results.Cell(metric="target_acc", network="teacher", teacher="poisoned", seed=0)
  assert recount.counted(arrays, cell) == expected


def test_fidelity_asks_nothing_of_the_labels():
  assert metrics.fidelity(np.array([1, 2, 3]), np.array([1, 0, 3])) == metrics.Proportion(2, 3)


@pytest.mark.parametrize(
  "count, n, interval",
  [
    (81, 263, (0.2553, 0.3662)),  # Newcombe (1998), table I, method 3
    (15, 148, (0.0624, 0.1605)),
    (0, 20, (0.0, 0.1611)),
    (1, 29, (0.0061, 0.1718)),
  ],
)
def test_wilson_against_newcombe(count, n, interval):
  assert metrics.Proportion(count, n).ci95 == pytest.approx(interval, abs=5e-5)


def test_wilson_at_the_upper_end_is_the_mirror_image():
  low, high = metrics.Proportion(20, 20).ci95 or (0, 0)
  assert (low, high) == (pytest.approx(1 - 0.1611, abs=5e-5), 1.0)


def test_more_hits_than_examples_is_refused():
  with pytest.raises(ValueError, match="between 0 and n = 2"):
    metrics.Proportion(3, 2)


@pytest.mark.parametrize(
  "acc0, asr0, acc, asr, expected",
  [
    (0.9, 0.9, 0.9, 0.9, 0.5),  # did nothing
    (0.9, 1.0, 0.9, 0.0, 1.0),  # perfect
    (0.9, 0.9, 0.8, 0.1, 0.85),  # (0.8 - 0.1 + 1) / 2
    (0.8, 0.5, 0.9, 0.5, 0.5),  # a gain in accuracy is not rewarded
    (0.9, 0.1, 0.9, 0.6, 0.5),  # a rise of ASR is not punished twice
    (0.9, 0.1, 0.5, 0.6, 0.3),  # worse than nothing: only accuracy was lost
  ],
)
def test_der(acc0, asr0, acc, asr, expected):
  assert metrics.der(acc0, asr0, acc, asr) == pytest.approx(expected)


def test_rir_rewards_a_rise_of_ra():
  assert metrics.rir(acc0=0.9, ra0=0.1, acc=0.8, ra=0.7) == pytest.approx((0.6 - 0.1 + 1) / 2)
  assert metrics.rir(acc0=0.9, ra0=0.7, acc=0.9, ra=0.1) == pytest.approx(0.5)


def test_composites_of_the_unknown_are_unknown():
  assert metrics.der(0.9, None, 0.9, 0.1) is None
  assert metrics.rir(None, 0.1, 0.9, 0.1) is None
  assert metrics.carried(0.9, None) is None
  assert metrics.transfer_ratio(None, 0.9) is None
  assert metrics.transfer_ratio(0.1, 0.0) is None


def test_carried_and_transfer_ratio():
  assert metrics.carried(0.3, 0.5) == pytest.approx(-0.2)
  assert metrics.transfer_ratio(0.4, 0.8) == pytest.approx(0.5)
  ratios = metrics.transfer_ratio(np.array([0.4, 0.4]), np.array([0.8, 0.0]))
  np.testing.assert_array_equal(ratios, [0.5, np.nan])


def test_share_is_the_asr_of_a_resample():
  hits = np.array([[True, True, False], [True, True, True]])
  members = np.array([[True, False, True], [False, False, False]])
  np.testing.assert_array_equal(metrics.share(hits, members), [0.5, np.nan])
  np.testing.assert_allclose(metrics.share(hits), [2 / 3, 1.0])


def test_bootstrap_of_a_mean_is_about_the_normal_interval():
  hits = np.arange(1000) < 300
  low, high = metrics.paired_bootstrap(metrics.share, hits, seed=0) or (0, 0)
  half = 1.96 * (0.3 * 0.7 / 1000) ** 0.5
  assert (low, high) == pytest.approx((0.3 - half, 0.3 + half), abs=3e-3)


def test_bootstrap_covers():
  rng = np.random.default_rng(0)
  covered = 0
  for trial in range(200):
    hits = rng.random(200) < 0.3
    low, high = metrics.paired_bootstrap(metrics.share, hits, seed=trial, resamples=300) or (0, 0)
    covered += low <= 0.3 <= high
  assert 0.88 <= covered / 200 <= 0.99


def test_bootstrap_is_paired():
  a = np.random.default_rng(0).random(500) < 0.5
  interval = metrics.paired_bootstrap(lambda x, y: x.mean(-1) - y.mean(-1), a, a, seed=0)
  assert interval == (0.0, 0.0)  # the same network twice differs in no resample


def test_bootstrap_takes_chunks_and_composites():
  rng = np.random.default_rng(0)
  n = 6000  # more than one chunk
  right0, right, hit0, hit = (rng.random(n) < p for p in (0.9, 0.85, 0.9, 0.1))
  victims = rng.random(n) < 0.9

  def statistic(a0, s0, a, s, v):
    return metrics.der(a0.mean(-1), metrics.share(s0, v), a.mean(-1), metrics.share(s, v))

  low, high = metrics.paired_bootstrap(statistic, right0, hit0, right, hit, victims, seed=1) or (
    0,
    0,
  )
  assert low < (0.8 - 0.05 + 1) / 2 < high and high - low < 0.03


def test_bootstrap_of_nothing_is_unknown():
  assert metrics.paired_bootstrap(metrics.share, np.array([]), seed=0) is None
  never = metrics.paired_bootstrap(metrics.share, np.ones(3, bool), np.zeros(3, bool), seed=0)
  assert never is None


def test_bootstrap_refuses_ragged_arrays():
  with pytest.raises(ValueError, match=r"\[2, 3\]"):
    metrics.paired_bootstrap(metrics.share, np.ones(2), np.ones(3), seed=0)


def test_t_interval():
  assert metrics.t_interval([0.5]) is None
  # mean 0.5, sd 0.1, t(2 degrees) = 4.3027, half = 4.3027 * 0.1 / sqrt(3)
  assert metrics.t_interval([0.4, 0.5, 0.6]) == pytest.approx((0.2516, 0.7484), abs=1e-4)
  assert metrics.t_interval([0.0, 0.9]) == (0.0, 1.0)
  assert metrics.t_interval([-0.4, 0.4], (-1.0, 1.0)) == (-1.0, 1.0)
