"""What a report says of attacks on test images: curves, tables, doubts, verdicts."""

import dataclasses

import pytest
from test_report import student

from rkd_jax.evaluation.metrics import Proportion
from rkd_jax.reporting import headline, results, summary, table, withstood
from rkd_jax.reporting.results import Cell

NONE = {"backdoor": "none", "threat": "clean", "contamination": None, "labels": 1.0}


def under(cell, share, eps=0.1, attack="pgd-20", norm="linf"):
  """The cell of the same network under an attack: `share` of 100 images are right."""
  right = Proportion(round(100 * share), 100).fields()
  how = {"attack": attack, "norm": norm, "eps": eps}
  return dataclasses.replace(cell, metric="adv_acc", **right, **how)


def network(method, shares, seed=0, **how):
  """A student without a backdoor's numbers, right on so many under attack: {eps: share}."""
  acc = student(method, None, seed=seed, teacher="clean", **NONE)[0]
  if method == "teacher":
    acc = dataclasses.replace(acc, network="teacher", method=None, labels=None, threat=None)
  return [acc, *(under(acc, share, eps, **how) for eps, share in shares.items())]


def rows(*cells):
  return table.rows([c for many in cells for c in many], ("none", "kd", "kdiga"))


ROBUST = {0.05: 0.9, 0.1: 0.8, 0.2: 0.3}


def test_a_section_has_a_column_for_each_attack_and_radius():
  made = withstood.section(rows(network("teacher", ROBUST), network("kd", {0.1: 0.1})))
  assert made["columns"] == ["pgd-20, l∞ ≤ 0.05", "pgd-20, l∞ ≤ 0.1", "pgd-20, l∞ ≤ 0.2"]
  lines = {one["label"]: [cell["main"] for cell in one["cells"]] for one in made["lines"]}
  assert lines["teacher"] == ["90.0\u202f%", "80.0\u202f%", "30.0\u202f%"]
  assert lines["kd"] == ["–", "10.0\u202f%", "–"]
  assert made["count"] == 100 and made["legend"] == ["teacher", "kd"] and not made["doubts"]


def test_a_curve_begins_with_the_accuracy_on_clean_images():
  (one,) = withstood.section(rows(network("teacher", ROBUST)))["drawings"]
  drawn = str(one["drawing"])
  assert one["title"] == "pgd-20" and "Accuracy under pgd-20" in drawn
  line = drawn.split('points="')[1].split('"')[0].split()
  assert len(line) == 4 and line[0].startswith("44.0,")  # the radius 0 is at the left end
  heights = [float(point.split(",")[1]) for point in line]
  assert heights == sorted(heights)  # downwards: less and less is right


def test_nobody_attacked_nothing_shown():
  assert withstood.section(rows(network("kd", {}))) is None
  assert withstood.judging(rows(network("kd", {}))) is None


@pytest.mark.parametrize(
  ("kept", "outcome"), [(0.4, "transferred"), (0.39, "not transferred"), (0.9, "transferred")]
)
def test_half_of_the_teachers_accuracy_under_attack_is_taken_over(kept, outcome):
  cells = network("teacher", ROBUST), network("none", {0.1: 0.0}), network("kdiga", {0.1: kept})
  cells[1][0] = dataclasses.replace(cells[1][0], teacher=None)
  cells[1][1] = dataclasses.replace(cells[1][1], teacher=None)
  (found,) = withstood.judged(rows(*cells), "class 0")  # none had no teacher to take it from
  assert (found.label, found.outcome) == ("kdiga", outcome)
  assert "pgd-20, l∞ ≤ 0.1" in found.sentence and "80.0\u202f%" in found.sentence
  word = headline.make([found])[0]["word"]
  assert word == {"transferred": "Robustness taken over"}.get(outcome, "Robustness lost")


def test_the_worst_seed_decides():
  cells = [network("teacher", ROBUST, seed=s) for s in (0, 1)]
  cells += [network("kdiga", {0.1: share}, seed=s) for s, share in enumerate((0.9, 0.1))]
  (found,) = withstood.judged(rows(*cells), "class 0")
  assert found.outcome == "not transferred" and "worst seed" in found.sentence


def test_without_an_attack_nothing_is_known():
  (found,) = withstood.judged(rows(network("teacher", {}), network("kdiga", {})), "class 0")
  assert found.outcome == "unknown" and "no attack was tried" in found.sentence


def test_with_a_backdoor_the_verdict_is_about_it():
  cells = [*student("kd", 0.9), under(student("kd", 0.9)[0], 0.5)]
  assert withstood.judged(table.rows(cells, ("kd",)), "class 0")[0].outcome == "carried over"


def doubts(*cells):
  made = rows(*cells)
  return list(withstood.doubts(made, withstood.attacks(made)))


@pytest.mark.parametrize(("norm", "said"), [("linf", "l∞ ≤ 8"), ("l2", "l2 ≤ 8")])
def test_nothing_can_be_withstood_in_a_huge_ball(norm, said):
  """It is larger than the config's largest, at which more steps are tried as well."""

  def kd(last):
    own = network("kd", {0.1: 0.6, 8.0: last})
    own.append(under(own[0], 0.6, attack="pgd-100"))
    return [c if c.norm is None else dataclasses.replace(c, norm=norm) for c in own]

  (found,) = doubts(kd(0.4))
  assert "kd keeps 40.0\u202f%" in found and said in found
  assert not doubts(kd(0.0)) and withstood.plain(rows(kd(0.0))) == [("pgd-20", norm, 0.1)]


def test_a_teacher_that_withstands_nothing_hands_nothing_on():
  (found,) = withstood.judged(
    rows(network("teacher", {0.1: 0.0}), network("kdiga", {0.1: 0.0})), "class 0"
  )
  assert found.outcome == "unknown" and "withstands nothing itself" in found.sentence


def test_a_student_is_compared_with_its_own_teacher():
  """The worst of each would be .2 and .15."""
  cells = [network("teacher", {0.1: share}, seed=s) for s, share in enumerate((0.2, 0.8))]
  cells += [network("kdiga", {0.1: share}, seed=s) for s, share in enumerate((0.15, 0.3))]
  (found,) = withstood.judged(rows(*cells), "class 0")
  assert found.outcome == "not transferred" and "30.0\u202f%" in found.sentence


def test_images_made_against_another_network_should_not_fool_more_often():
  own = network("kd", {0.1: 0.6})
  assert not doubts([*own, under(own[0], 0.7, attack="transfer-pgd-20")])
  assert not doubts([*own, under(own[0], 0.59, attack="transfer-pgd-20")])  # within chance
  (found,) = doubts([*own, under(own[0], 0.5, attack="transfer-pgd-20")])
  assert "its own gradients mislead" in found


def test_more_steps_should_not_find_much_more():
  own = network("kd", {0.1: 0.6})
  assert not doubts([*own, under(own[0], 0.6, attack="pgd-100")])
  (found,) = doubts([*own, under(own[0], 0.5, attack="pgd-100")])
  assert "20 steps of PGD are too few" in found


def test_what_was_measured_stands_in_a_table_of_its_own():
  own = network("kd", ROBUST)
  how = {"attack": "tangent", "norm": "linf", "eps": 0.1}
  bend = dataclasses.replace(own[0], metric="local_linearity", value=0.25, ci95=None, **how)
  made = withstood.section(rows([*own, bend]))["measured"]
  assert made["columns"] == [{"metric": "local_linearity", "how": "tangent, l∞ ≤ 0.1"}]
  assert made["lines"] == [{"label": "kd", "cells": [{"main": "0.250", "sub": ""}]}]


def test_the_runs_last_lines_tell_what_it_was_judged_by():
  cells = network("teacher", ROBUST) + network("kdiga", ROBUST)
  lines = summary.lines({"config": {"methods": ("kdiga",)}, "seeds": [0]}, cells)
  assert lines[0].split("  ")[0] == "Network" and "pgd-20, l∞ ≤ 0.1" in lines[0]
  assert "ASR" not in lines[0] and lines[2].endswith("transferred")


def test_a_radius_is_part_of_what_tells_two_cells_apart(tmp_path):
  cells = network("kd", ROBUST)
  results.write(tmp_path / "results.json", {}, cells)
  with pytest.raises(ValueError, match="two cells agree"):
    results.write(tmp_path / "results.json", {}, [*cells, cells[-1]])
  assert isinstance(cells[0], Cell)
