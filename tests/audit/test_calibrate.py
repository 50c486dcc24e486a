"""P-values: by hand, and as often right as they say, whatever the statistics' distribution."""

import json

import numpy as np
import pytest

from rkd_jax import references
from rkd_jax.audit import calibrate
from rkd_jax.errors import UserError


def record(accuracy=1.0, **tests):
  made = {name: {"values": list(map(float, values))} for name, values in tests.items()}
  return {"accuracy": accuracy, "classes": 10, "images": 100, "tests": made}


def test_surprise_by_hand():
  values = np.array([[0.0, 2, 1], [1, 0, 2], [0, 1, 4]])
  centred = values - 1  # every median is 1
  found = calibrate.surprise(values)
  others = centred[:2]  # of the last network
  mean, variance = others.mean(0), others.var(0, ddof=1)
  variance = 0.5 * variance + 0.5 * variance.mean()
  np.testing.assert_allclose(found[2], (centred[2] - mean) / np.sqrt(variance * 1.5), rtol=1e-6)


def test_surprise_knows_neither_level_nor_order():
  values = np.random.default_rng(0).normal(size=(9, 5))
  found = calibrate.surprise(values)
  level = np.linspace(-3, 3, 9)[:, None]
  np.testing.assert_allclose(calibrate.surprise(values + level), found, atol=1e-9)
  order = np.random.default_rng(1).permutation(9)
  np.testing.assert_allclose(calibrate.surprise(values[order]), found[order], atol=1e-9)
  assert np.isfinite(calibrate.surprise(np.ones((6, 4)))).all()  # nothing varies
  assert np.isfinite(calibrate.surprise(np.ones((6, 1)))).all()


def draws(generator, n, kind):
  """n + 1 networks of ten classes: skewed, correlated over classes and over tests."""
  easy = generator.normal(size=10) * 0.5  # some classes are easier for every network
  shared = generator.normal(size=(n + 1, 10))
  made = {}
  for test in ("patch", "l2", "mmbd"):
    noise = generator.normal(size=(n + 1, 10)) + shared
    noise = {"normal": noise, "skewed": np.exp(noise), "heavy": noise**3}[kind]
    made[test] = noise + easy + generator.normal(size=(n + 1, 1)) * 5
  return [record(**{t: v[i] for t, v in made.items()}) for i in range(n + 1)]


@pytest.mark.parametrize("kind", ["normal", "skewed", "heavy"])
def test_clean_networks_are_flagged_as_often_as_it_says(kind):
  """p is uniform on multiples of 1 / (n + 1), for three tests of ten classes together."""
  generator, found = np.random.default_rng(3), []
  for _ in range(400):
    *references, audited = draws(generator, 19, kind)
    found.append(calibrate.judge(references, audited, ("patch", "l2", "mmbd")).p)
  for level in (0.05, 0.25, 0.5):
    share = np.mean(np.array(found) <= level + 1e-9)
    assert abs(share - level) < 3 * np.sqrt(level * (1 - level) / 400), (level, share)


def test_one_class_that_stands_out_is_found_and_named():
  generator = np.random.default_rng(5)
  *references, audited = draws(generator, 20, "normal")
  audited["tests"]["mmbd"]["values"][7] += 20
  found = calibrate.judge(references, audited, ("patch", "l2", "mmbd"))
  assert found.test == "mmbd" and found.opinions["mmbd"].suspect == 7
  assert found.p == pytest.approx(1 / 21) and found.references == 20
  alone = calibrate.judge(references, audited, ("patch",))
  assert alone.test == "patch" and alone.opinions["mmbd"].p == pytest.approx(1 / 21)


def test_a_test_without_classes_names_none():
  references = [record(strip=[0.05 + i / 1000]) for i in range(20)]
  found = calibrate.judge(references, record(strip=[0.9]), ("strip",))
  assert found.p == pytest.approx(1 / 21) and found.opinions["strip"].suspect is None


def test_ties_count_against_suspicion():
  same = [record(patch=np.arange(10)) for _ in range(21)]
  assert calibrate.judge(same[:20], same[20], ("patch",)).p == 1


def test_references_that_do_not_fit_are_refused():
  ten, three = record(patch=np.arange(10)), record(patch=np.arange(3))
  with pytest.raises(UserError, match="another number of classes"):
    calibrate.judge([ten] * 20, three, ("patch",))
  with pytest.raises(UserError, match="5 at the least, 20"):
    calibrate.judge([ten] * 4, ten, ("patch",))
  with pytest.raises(UserError, match="none was made of every network"):
    calibrate.judge([ten] * 20, record(l2=np.arange(10)), ("patch", "l2"))


@pytest.mark.parametrize("wrong", [np.inf, -np.inf, np.nan, 1e200])
@pytest.mark.parametrize("whose", [0, 20])
def test_a_value_without_a_rank_is_refused(wrong, whose):
  """A NaN is not as high as itself: p would be 0, which no number of references can show."""
  networks = draws(np.random.default_rng(5), 20, "normal")
  networks[whose]["tests"]["l2"]["values"][3] = wrong
  with pytest.raises(UserError, match="'l2' has a value that is not finite"):
    calibrate.judge(networks[:20], networks[20], ("patch", "l2"))


def test_the_largest_value_still_has_a_rank():
  networks = draws(np.random.default_rng(5), 20, "normal")
  for sign in (1, -1):
    networks[3]["tests"]["l2"]["values"][3] = sign * calibrate.LARGEST
    assert calibrate.judge(networks[:20], networks[20], ("patch", "l2")).p >= 1 / 21


@pytest.mark.parametrize("wrong", ["1e999", "-1e999", "1" + "0" * 400])
def test_a_calibrations_numbers_are_finite(wrong):
  """JSON's 1e999 is read as infinity."""
  good = record(accuracy=0.5, patch=[1, 2, 3])
  assert references._is_record(good)
  number = json.loads(wrong)
  for tests in ({"patch": {"values": [1.0, number]}}, {"patch": {"values": [number]}}):
    assert not references._is_record(good | {"tests": tests})
  assert not references._is_record(good | {"accuracy": float("inf")})


def test_two_classes():
  generator = np.random.default_rng(0)
  references = [record(patch=generator.normal(size=2)) for _ in range(20)]
  assert calibrate.judge(references, record(patch=[0, 50]), ("patch",)).p == pytest.approx(1 / 21)


def test_false_alarms_are_the_references_own():
  networks = draws(np.random.default_rng(2), 11, "normal")
  found = calibrate.false_alarms(networks, ("patch", "l2"))
  assert len(found) == 12 and min(found) == pytest.approx(1 / 12)
  assert sum(p <= 0.5 for p in found) <= 7
