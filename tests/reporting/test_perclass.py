"""ASR by true class, counted by hand."""

import numpy as np

from rkd_jax.reporting import perclass
from rkd_jax.reporting.results import Cell
from rkd_jax.reporting.table import Row

LABELS = np.array([0, 0, 1, 1, 1, 2, 2, 2])
GOALS = np.zeros(8, int)
SAID = np.array([0, 0, 0, 0, 1, 2, 0, 2])  # on triggered images


def row(label, method=None, labels=None):
  return Row(label, method, None, (Cell(metric="asr", method=method, labels=labels),))


def counts(found):
  return {k: tuple(map(int, count)) for k, count in found.items()}


def test_hits_of_all_by_class_without_the_target():
  assert counts(perclass.by_class(LABELS, GOALS, SAID)) == {1: (2, 3), 2: (1, 3)}


def test_all_to_all_counts_every_class_and_no_trigger_none():
  goals = (LABELS + 1) % 3
  found = perclass.by_class(LABELS, goals, np.where(LABELS == 1, 2, 9))
  assert counts(found) == {0: (0, 2), 1: (3, 3), 2: (0, 3)}
  assert perclass.by_class(LABELS, LABELS, SAID) == {}


def write(tmp_path, seed, **said):
  path = tmp_path / "predictions" / f"seed{seed}.npz"
  path.parent.mkdir(exist_ok=True)
  names = {f"{name}:triggered": value for name, value in said.items()}
  np.savez(path, labels=LABELS, goals=GOALS, **names)


def test_seeds_are_counted_together(tmp_path):
  write(tmp_path, 0, **{"teacher/poisoned": GOALS, "kd/student/poisoned": SAID})
  write(tmp_path, 3, **{"teacher/poisoned": GOALS, "kd/student/poisoned": LABELS})
  rows = [row("teacher"), row("kd", "kd"), row("lost", "lost")]
  found = perclass.table(tmp_path, [0, 3, 9], rows, ["zero", "one"])
  assert found["classes"] == ["one", "2"] and found["seeds"] == 2 and found["left"] == 0
  assert [line["label"] for line in found["lines"]] == ["teacher", "kd"]
  assert found["lines"][0]["cells"] == [{"text": "100", "count": "6/6", "level": 5}] * 2
  assert found["lines"][1]["cells"] == [
    {"text": "33", "count": "2/6", "level": 2},
    {"text": "17", "count": "1/6", "level": 1},
  ]


def test_none_is_told_apart_by_its_labels(tmp_path):
  found = {"none/0.05:triggered": SAID, "none/1:triggered": LABELS}
  for labels, said in ((0.05, SAID), (1.0, LABELS)):
    assert perclass.arrays_of(row("none", "none", labels), found) is said
  assert perclass.arrays_of(row("kd", "kd"), found) is None


def test_of_many_classes_those_with_most_hits():
  many = {"a": {k: np.array([k, 40]) for k in range(30)}}
  assert perclass._most_hit(many, range(30)) == list(range(18, 30))


def test_no_predictions_or_no_known_trigger_no_table(tmp_path):
  assert perclass.table(tmp_path, [0], [row("teacher")], []) is None
  (tmp_path / "predictions").mkdir()
  said = {"teacher/poisoned:triggered": SAID}
  np.savez(tmp_path / "predictions" / "seed0.npz", labels=LABELS, goals=LABELS, **said)
  assert perclass.table(tmp_path, [0], [row("teacher")], []) is None
