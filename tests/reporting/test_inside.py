"""Feature variance and embedding maps on the page, with numbers by hand."""

import numpy as np
import pytest

from rkd_jax.errors import UserError
from rkd_jax.reporting import inside

T, KD = "teacher/poisoned", "kd/student/poisoned"


def arrays(**changes):
  """Two stages; the teacher's mean variances on clean images are 2 and 10."""
  found = {
    "labels": np.array([0, 1, 1]),
    "goals": np.zeros(3, int),
    f"{T}:stages": np.array(["a", "b"]),
    f"{T}:clean:variance": np.array([[1, 10], [3, 10], [2, 10]], np.float32),
    f"{T}:triggered:variance": np.array([[4, 10], [4, 40], [4, 10]], np.float32),
    f"{KD}:stages": np.array(["b", "c"]),
    f"{KD}:clean:variance": np.array([[5, 1]] * 3, np.float32),
    f"{KD}:triggered:variance": np.array([[30, 1]] * 3, np.float32),
  }
  for name in (T, KD):
    found |= {f"{name}:clean:map": np.array([[0.0, 0], [10, 0], [10, 2]])}
    found |= {f"{name}:triggered:map": np.array([[0.0, 1], [1, 0], [9, 0]])}
    found |= {f"{name}:explained": np.float32(0.75)}
  return found | changes


def saved(tmp_path, **changes):
  np.savez(tmp_path / "analysis.npz", **arrays(**changes))
  return tmp_path / "analysis.npz"


def test_ratios_to_the_clean_teacher_on_clean_images():
  assert inside.ratios(arrays(), T) == [(1.0, 2.0), (1.0, 2.0)]
  # "b" by its name; "a" is not there, so the stage of its place, which is "b" too
  assert inside.ratios(arrays(), KD) == [(2.5, 15.0), (0.5, 3.0)]


def test_what_cannot_be_compared_is_not():
  found = arrays()
  found[f"{KD}:stages"] = np.array(["x"])
  for kind in ("clean", "triggered"):
    found[f"{KD}:{kind}:variance"] = np.array([[4.0]])
  assert inside.ratios(found, KD) == [(2.0, 2.0), None]
  found[f"{T}:clean:variance"] = np.zeros((3, 2))
  assert inside.ratios(found, T) == [None, None]


def test_names_for_readers():
  assert inside.label("robustkd/detox/poisoned") == "detoxified teacher (robustkd)"
  assert inside.label("ft_sam/repaired/poisoned") == "repaired teacher (ft_sam)"
  assert inside.label("a/b/student/poisoned") == "a/b"
  assert inside.label("teacher/clean") == "clean teacher (control)"


def test_nearest_class_on_the_map():
  found = arrays()
  centres = found[f"{T}:clean:map"], found[f"{T}:triggered:map"]
  # class 0 lies at (0, 0), class 1 at (10, 1): of its two triggered images one came over
  assert inside.nearest_to_goal(*centres, found["labels"], found["goals"]) == 0.5
  assert inside.nearest_to_goal(*centres, found["labels"], found["labels"]) is None


def test_the_page_gets_numbers_and_drawings(tmp_path):
  found = inside.read(saved(tmp_path), ["cat", "dog"], ["kd", "gone"])
  assert found["count"] == 3 and found["trigger"]
  assert found["variance"]["stages"] == ["a", "b"]
  assert [line["label"] for line in found["variance"]["lines"]] == ["teacher", "kd"]
  cell = found["variance"]["lines"][1]["cells"][0]
  assert (cell["clean"], cell["triggered"]) == ("2.50", "15.00") and "<svg" in cell["drawing"]
  assert [one["title"] for one in found["maps"]] == ["teacher", "kd"]
  drawn = found["maps"][0]
  assert drawn["near"].startswith("50.0\u202f%") and drawn["axes"] == "75.0\u202f%"
  assert drawn["drawing"].count("l4,7h-8z") == 3 and drawn["drawing"].count("h0") == 3
  assert ">cat</text>" in drawn["drawing"] and 'class="name target"' in drawn["drawing"]


def test_without_a_known_trigger_nothing_is_said_of_one(tmp_path):
  found = inside.read(saved(tmp_path, goals=np.array([0, 1, 1])), [], [])
  assert not found["trigger"] and found["maps"][0]["near"] == ""
  assert "l4,7h-8z" not in found["maps"][0]["drawing"]
  assert not found["variance"]["lines"][0]["cells"][0]["drawing"]


def test_nothing_without_the_file_and_no_other_peoples_markup(tmp_path):
  assert inside.read(tmp_path / "analysis.npz", [], []) is None
  found = inside.read(saved(tmp_path), ["</svg><b>", "x" * 40], [])
  assert "<b>" not in found["maps"][0]["drawing"] and "x" * 15 not in found["maps"][0]["drawing"]


@pytest.mark.parametrize("name", ["labels", f"{T}:triggered:variance", f"{T}:explained"])
def test_a_missing_array_names_the_file(tmp_path, name):
  found = arrays()
  del found[name]
  np.savez(tmp_path / "analysis.npz", **found)
  with pytest.raises(UserError, match=r"analysis\.npz is broken"):
    inside.read(tmp_path / "analysis.npz", [], ["kd"])
