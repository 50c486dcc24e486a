"""A whole run without data, of a few rounds: what stands in its results and on its page."""

import json

import numpy as np
import pytest

from configs import digits_abd
from rkd_jax import experiment

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  config = digits_abd.get_config("badnets")
  config.update({"seeds": (1,), "devices": 1, "clean_teacher_seeds": 0})
  config.update({"methods": ("zskt", "abd"), "all_labels_control": False})
  config.data.train = 200.0
  for section in (config.teacher, config.student):
    section.update({"network": "wideresnet-10-1", "batch_size": 32})
  config.teacher.epochs = 1
  config.student.update({"steps": 2, "rounds_per_epoch": 1})
  config.method.zskt.update({"width": 4, "students": 2})
  config.method.vaccine.update({"trials": 1, "window": 1, "skip": 0, "tail": 0.5})
  config.method.abd.rounds = 1
  path = tmp_path_factory.mktemp("free") / "run"
  experiment.run(config.lock(), path, "digits_abd", quiet=True)
  return path


def test_its_students_are_told_apart_from_those_of_a_pool(workdir):
  cells = json.loads((workdir / "results.json").read_text())["cells"]
  students = [c for c in cells if c["network"] == "student" and c["metric"] in ("acc", "asr")]
  assert {(c["method"], c["threat"]) for c in students} == {
    ("zskt", "data-free"),
    ("abd", "data-free"),
  }
  assert all(c["contamination"] is None and 0 <= c["value"] <= 1 for c in students)


def test_what_the_vaccine_and_the_search_decided_is_in_the_results_and_on_the_page(workdir):
  run = json.loads((workdir / "results.json").read_text())["run"]
  vaccinated, student = run["outcomes"]
  who = {"seed": 1, "method": "abd", "teacher": "poisoned"}
  assert {k: vaccinated[k] for k in who} == {k: student[k] for k in who} == who
  assert (vaccinated["network"], student["network"]) == ("vaccinated", "student")
  # one image in two hundred lies three deviations below the rest at most: the check cannot pass
  assert vaccinated["outcome"].startswith("None of 1 shufflings passed")
  assert "the last was kept" in vaccinated["outcome"] and "suspected" in student["outcome"]
  page = (workdir / "report.html").read_text()
  assert vaccinated["outcome"] in page and student["outcome"] in page


def test_the_images_that_were_invented_are_there_to_look_at(workdir):
  with np.load(workdir / "synthetic.npz") as arrays:
    names = {k.split(":")[0] for k in arrays if k.endswith(":images")}
    assert names == {f"{n}/poisoned" for n in ("zskt/student", "abd/vaccinated", "abd/student")}
    assert all(arrays[f"{name}:images"].shape == (256, 16, 16, 1) for name in names)
