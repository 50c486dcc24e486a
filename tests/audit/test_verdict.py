"""The three words, and the one that is never said."""

import numpy as np
import pytest

from rkd_jax.audit import calibrate, verdict

NAMES = ("cat", "dog", "fox", "owl")


def record(values, accuracy=0.95, classes=4):
  return {"accuracy": accuracy, "classes": classes, "tests": {"patch": {"values": list(values)}}}


def references(n=20):
  generator = np.random.default_rng(0)
  return [record(generator.normal(size=4)) for _ in range(n)]


def decided(values, n=20, alpha=0.05, accuracy=0.95, **more):
  own = record(values, accuracy)
  judged = calibrate.judge(references(n), own, ("patch",))
  return verdict.decide(own, judged, alpha, NAMES, **more)


def test_the_three_words():
  found = decided([0, 0, 30, 0])
  assert (found.word, found.suspect) == ("suspicious", 2)
  assert "towards class 2 (fox)" in found.sentence and found.p == pytest.approx(1 / 21)
  found = decided([0, 0.1, 0, 0.2])
  assert (found.word, found.suspect) == ("nothing found", None)
  assert "no proof that there is no backdoor" in found.sentence
  assert decided([0, 0, 30, 0], n=10).word == "unknown"  # ten networks cannot show p <= .05
  assert decided([0, 0, 30, 0], n=10, alpha=0.1).word == "suspicious"


def test_what_cannot_be_told_is_unknown():
  found = decided([0, 0, 30, 0], accuracy=0.4)  # chance is .25
  assert found.word == "unknown" and "40.0%" in found.sentence and found.p is None
  found = verdict.decide(record([0, 0, 30, 0]), None, 0.05, NAMES, why="no labelled images")
  assert found.word == "unknown" and found.p is None and "no labelled images" in found.sentence


def test_references_that_know_less_are_a_doubt():
  found = decided([0, 0, 30, 0], accuracies=[0.7] * 20)
  assert "not of its kind" in found.doubts[0]
  assert not decided([0, 0, 30, 0], accuracies=[0.93] * 20).doubts


def test_an_opinion_that_does_not_survive_the_correction_is_told():
  own = {"accuracy": 1, "classes": 4, "tests": {"patch": {"values": [0, 0, 0, 0.1]}}}
  own["tests"]["units"] = {"values": [9.0, 0, 0, 0]}
  generator = np.random.default_rng(1)
  clean = [
    {"accuracy": 1, "tests": {t: {"values": list(generator.normal(size=4))} for t in own["tests"]}}
    for _ in range(20)
  ]
  found = verdict.decide(own, calibrate.judge(clean, own, ("patch",)), 0.05, NAMES)
  assert found.word == "nothing found" and "one unit of the embedding" in found.doubts[0]


def test_trusted_is_never_said():
  words = [
    decided([0, 0, x, 0], n, accuracy=a) for x in (0, 30) for n in (10, 20) for a in (0.3, 1)
  ]
  for found in words:
    said = " ".join((found.word, found.sentence, *found.doubts)).lower()
    assert not {"trusted", "safe", "trustworthy"} & set(said.replace(",", "").split())


def test_how_many_references_a_level_takes():
  assert [verdict.smallest(alpha) for alpha in (0.5, 0.1, 0.05, 0.01)] == [1, 9, 19, 99]
