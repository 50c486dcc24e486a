"""The rule that chooses strengths: where grids stand, what it looks at, and what it takes."""

import numpy as np
import pytest

from rkd_jax import selection
from rkd_jax.errors import UserError

KD = {"name": "kd", "alpha": 0.9}


def spec(amplitude, weight=1.0, **base):
  inner = {"name": "consistency", "amplitude": amplitude, "weight": weight, "base": KD | base}
  return {"name": "agreement", "readmit": "always", "base": inner}


def right(accuracy, size=1000):
  return np.arange(size) < round(accuracy * size)


def test_grids_are_found_where_a_number_is_expected_inner_ones_first():
  found = selection.strengths(spec((0.5, 0.25), alpha=(0.0, 0.5)))
  assert found == {("base", "base", "alpha"): (0.0, 0.5), ("base", "amplitude"): (0.0, 0.25, 0.5)}
  assert list(found) == [("base", "base", "alpha"), ("base", "amplitude")]
  assert selection.strengths(spec(0.5)) == {}
  taps = {"name": "ofd", "taps": ("stage1", "stage2"), "weight": (1.0, 10.0)}
  assert selection.strengths(taps) == {("weight",): (0.0, 1.0, 10.0)}  # taps are no grid


@pytest.mark.parametrize("grid", [(0.0,), (), (-1.0, 1.0), ("a", "b"), (True, 2.0)])
def test_what_is_no_grid_is_said_so(grid):
  with pytest.raises(UserError, match=r"consistency.amplitude is .*a grid of strengths"):
    selection.strengths(spec(grid))


@pytest.mark.parametrize(
  ("field", "grid", "said"),
  [
    ("temperature", (1.0, 4.0), "strength 0, which this field cannot have: .*temperature is 0"),
    ("redraw", (0.5, 100.5), "whole numbers"),
    ("redraw", (50, 100), "redraw is 0"),
  ],
)
def test_a_field_that_cannot_be_zero_takes_no_grid(field, grid, said):
  with pytest.raises(UserError, match=said):
    selection.strengths({"name": "consistency", field: grid, "base": {"name": "kd"}})
  rounds = {"name": "agreement", "rounds": (2, 3), "base": {"name": "kd"}}  # a recipe's own field
  assert selection.strengths(rounds) == {("rounds",): (0, 2, 3)}


def test_numbers_take_the_place_of_grids():
  grids = spec((0.0, 0.5))
  found = selection.with_values(grids, {("base", "amplitude"): 0.25})
  assert found == spec(0.25) and grids == spec((0.0, 0.5))


def test_the_rule_by_hand():
  hits = {0.0: right(0.95), 0.1: right(0.96), 1.0: right(0.94), 10.0: right(0.938)}
  assert selection.largest(hits) == 1.0  # a whole point is allowed, more is not
  assert selection.largest({0.0: right(0.95), 0.1: right(0.9), 1.0: right(0.945)}) == 1.0
  assert selection.largest({0.0: right(0.95), 0.1: right(0.2)}) == 0.0


def test_strengths_are_chosen_one_after_another_and_those_not_yet_chosen_are_zero():
  asked = []

  def ask(one):
    alpha, amplitude = one["base"]["base"]["alpha"], one["base"]["amplitude"]
    asked.append((alpha, amplitude))
    return right(0.95 - 0.02 * (alpha > 0.5) - 0.005 * (amplitude > 0.1))

  found, choices = selection.choose(spec((0.25, 0.5), alpha=(0.5, 1.0)), ask)
  assert found == spec(0.5, alpha=0.5)
  assert asked == [(0, 0), (1, 0), (0.5, 0), (0.5, 0), (0.5, 0.5)]  # nothing below what passes
  chosen = {choice.path: choice.chosen for choice in choices}
  assert chosen == {"base.base.alpha": 0.5, "base.amplitude": 0.5}
  assert list(choices[0].accuracies().items()) == [(0.0, 0.95), (0.5, 0.95), (1.0, 0.93)]


def test_a_strength_of_whole_numbers_stays_one_while_others_are_chosen():
  seen = []
  grids = {**spec((0.0, 0.5)), "seconds": (0, 2)}
  found, _ = selection.choose(grids, lambda one: seen.append(one["seconds"]) or right(0.9))
  candidates = [one["seconds"] for one in selection.candidates(grids)]
  assert (seen, found["seconds"], candidates) == ([0, 0, 0, 2], 2, [0, 0, 0, 2])
  assert {type(value) for value in (*seen, *candidates, found["seconds"])} == {int}


def test_what_is_not_tried_would_change_nothing():
  grid, rng = (0.0, 0.25, 0.5, 1.0), np.random.default_rng(0)
  tried = set()
  for accuracies in 0.9 + 0.04 * rng.random((200, len(grid))):
    hits = {value: right(accuracy) for value, accuracy in zip(grid, accuracies, strict=True)}
    ask = lambda one, hits=hits: hits[one["base"]["amplitude"]]  # noqa: E731
    found, (choice,) = selection.choose(spec(grid), ask)
    assert found["base"]["amplitude"] == choice.chosen == selection.largest(hits)
    tried.add(len(choice.hits))
  assert tried == {2, 3, 4}


def test_without_grids_nothing_is_asked():
  assert selection.choose(spec(0.5), lambda one: pytest.fail("asked")) == (spec(0.5), [])


def test_a_holdout_too_small_for_one_point_is_refused():
  selection.check("m", spec((0.0, 0.5)), 100)
  selection.check("m", spec(0.5), 3)
  with pytest.raises(UserError, match=r"\(base.amplitude\) .* 99 images; .*at least 100"):
    selection.check("m", spec((0.0, 0.5)), 99)
