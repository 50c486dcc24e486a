"""The command: a planted backdoor is named, a clean network is not, and whatever does not fit is
said. On digits, networks of one hidden layer."""

import json
import shutil

import numpy as np
import pytest

from configs import quickstart
from rkd_jax import auditing, experiment, references, subjects
from rkd_jax import config as configs
from rkd_jax.commands import audit
from rkd_jax.errors import UserError
from rkd_jax.finished import Run
from rkd_jax.reporting import report
from rkd_jax.reporting.files import read_json, write_json

pytestmark = pytest.mark.slow
FAST = ["--tests", "patch,head", "--steps", "12", "--devices", "1"]
FLAT = "small_nets.flat-16"


def config(**changes):
  found = quickstart.get_config("smoke")
  found.update({"devices": 1, "methods": ("none", "kd"), "contamination": 0.02})
  found.update({"clean_teacher_seeds": 0, "all_labels_control": False})
  for section in ("teacher", "student"):
    found[section].update({"network": FLAT, "epochs": 30, "batch_size": 128})
    found[section].optimizer.update({"name": "adam", "learning_rate": 0.01, "weight_decay": 0.0})
  found.labelled.steps = 60
  found.update(changes)
  return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A run of a second, with teachers beside it."""
  workdir = tmp_path_factory.mktemp("audited") / "run"
  experiment.run(config(), workdir, "quickstart", quiet=True)
  return workdir


@pytest.fixture(scope="module")
def calibrated(finished):
  """The run, audited with twenty references: (status, audit.json, the calibration's file)."""
  file = finished.parent / "calibration.json"
  more = ["--method", "teacher", "--save-calibration", str(file)]
  status = audit.main([str(finished), *FAST, *more])
  return status, read_json(finished / "audit.json"), file


def test_the_backdoor_of_a_teacher_is_named(calibrated, finished):
  status, made, _ = calibrated
  (network,) = made["networks"]
  assert status == audit.SUSPICIOUS == 3 and network["verdict"] == "suspicious"
  assert network["suspect"] == 0 and network["references"] == 20 and network["p"] <= 0.05
  assert made["complete"] and made["calibrations"][0]["count"] == 20
  assert network["name"] == "seed0/teacher" and len(network["tests"]["patch"]["sizes"]) == 10
  with np.load(finished / network["triggers"]) as arrays:
    assert arrays["patch/mask"].shape == (10, 16, 16, 1)
  text = report.write(finished).read_text()
  assert "without knowing the trigger" in text and "Suspicious." in text
  assert "Smallest patch that leads images to 0" in text


def test_it_is_done_once_and_goes_on(calibrated, finished):
  """What is known is not measured again: another call takes the records that are there."""
  folder = finished / "audit" / "records"
  before = {path: path.stat().st_mtime_ns for path in folder.glob("*.json")}
  assert len(before) == 21
  assert audit.main([str(finished), *FAST, "--method", "teacher"]) == 3
  assert {path: path.stat().st_mtime_ns for path in folder.glob("*.json")} == before
  gone = next(iter(before))
  gone.unlink()
  assert audit.main([str(finished), *FAST, "--method", "teacher", "--json"]) == 3
  assert gone.exists() and sum(p.stat().st_mtime_ns != before[p] for p in before) == 1


def test_a_clean_network_is_not_flagged(calibrated, finished, tmp_path, capsys):
  """One of the references, in the form of a file, among the others."""
  _, _, file = calibrated
  calibration = read_json(file)
  folders = [path.parent for path in (finished.parent / "teachers").glob("*/done.json")]
  shas = {read_json(f / "done.json")["sha256"]: f for f in folders}
  kept = [one for one in calibration["networks"] if one["sha256"] in shas]
  assert len(kept) == 20
  own, rest = kept[7], [one for one in kept if one is not kept[7]]
  write_json(tmp_path / "rest.json", calibration | {"networks": rest, "method": references.MIXED})
  words = [str(shas[own["sha256"]]), "--data", "digits", "--holdout", "197"]
  words += [
    "--test",
    "500",
    "--out",
    str(tmp_path / "out"),
    *FAST,
    "--calibration",
    str(tmp_path / "rest.json"),
  ]
  status = audit.main(words)
  said = capsys.readouterr()
  assert status == audit.NOTHING == 0, said.out + said.err
  assert "nothing found" in said.out and "no proof" in said.out


def test_without_references_it_is_unknown(finished, tmp_path, capsys):
  words = [str(finished), *FAST, "--calibrate", "0", "--method", "kd", "--out", str(tmp_path)]
  assert audit.main([*words, "--json"]) == audit.UNKNOWN == 4
  made = json.loads(capsys.readouterr().out)
  assert [one["name"] for one in made["networks"]] == ["seed0/teacher", "seed0/kd"]
  assert all(one["verdict"] == "unknown" and one["p"] is None for one in made["networks"])
  assert made == read_json(tmp_path / "audit.json")
  words = [str(finished), *FAST, "--calibrate", "0", "--controls", "--out", str(tmp_path)]
  assert audit.main(words) == 4
  assert "seed0/none" in capsys.readouterr().out


def test_a_student_is_compared_with_students_of_clean_teachers(calibrated, finished, tmp_path):
  """Of its own method, five of them; the report says so."""
  words = [str(finished), *FAST, "--method", "kd", "--calibrate", "5", "--alpha", "0.2"]
  status = audit.main([*words, "--out", str(tmp_path)])
  made = read_json(tmp_path / "audit.json")
  teacher, student = made["calibrations"]
  assert (teacher["method"], student["method"], student["count"]) == ("", "kd", 5)
  own = made["networks"][1]
  assert own["name"] == "seed0/kd" and own["references"] == 5 and not own["doubts"]
  assert status == max(audit.STATUS[n["verdict"]] for n in made["networks"]) == 3
  shutil.copy(finished / "results.json", tmp_path)
  assert "(kd): 5 clean networks, students of clean" in report.write(tmp_path).read_text()


def test_a_file_is_compared_with_networks_trained_in_two_ways(finished, tmp_path, capsys):
  teacher = next(
    f.parent for f in (finished.parent / "teachers").glob("*/done.json")
    if read_json(f)["phase"]["part"] == "poisoned"
  )  # fmt: skip
  words = [str(teacher), "--data", "digits", "--holdout", "197", "--test", "500", "--epochs", "30"]
  words += [*FAST, "--calibrate", "6", "--alpha", "0.2", "--out", str(tmp_path / "out")]
  status = audit.main(words)
  made = read_json(tmp_path / "out" / "audit.json")
  (line,), (one,) = made["calibrations"], made["networks"]
  assert line["method"] == references.MIXED and line["count"] == 6
  assert status == audit.STATUS[one["verdict"]] and "only a hint" in one["doubts"][-1]
  kinds = [read_json(f)["phase"]["method"]["name"] for f in tmp_path.glob("**/done.json")]
  assert sum(".kd." in name for name in kinds) == 3


def test_a_calibration_of_something_else_is_refused(calibrated, finished, tmp_path, capsys):
  _, _, file = calibrated
  words = [str(finished), "--method", "teacher", "--out", str(tmp_path), "--devices", "1"]
  assert (
    audit.main([*words, "--steps", "13", "--tests", "patch,head", "--calibration", str(file)]) == 2
  )
  assert "was made for other settings" in capsys.readouterr().err
  found = read_json(file)
  assert audit.main([*words[:1], *words[3:], *FAST[:4], "--calibration", str(file)]) == 2
  assert "was made for networks trained in another way" in capsys.readouterr().err
  others = {"another network": ("network", "wideresnet-10-1")}
  for said, (key, value) in (others | {"other data": ("data", {"name": "tfds:cifar10"})}).items():
    write_json(tmp_path / "other.json", found | {key: value})
    assert audit.main([*words, *FAST[:4], "--calibration", str(tmp_path / "other.json")]) == 2
    assert f"was made for {said}" in capsys.readouterr().err
  there = json.loads(json.dumps(found["trained"]))
  there["teacher"]["optimizer"]["learning_rate"] = 0.5
  write_json(tmp_path / "other.json", found | {"trained": there})
  assert audit.main([*words, *FAST[:4], "--calibration", str(tmp_path / "other.json")]) == 2
  assert "learning_rate is 0.5 there, 0.01 here" in capsys.readouterr().err
  write_json(tmp_path / "other.json", {"kind": "something"})
  assert audit.main([*words, *FAST[:4], "--calibration", str(tmp_path / "other.json")]) == 2
  assert "is no calibration" in capsys.readouterr().err


def test_a_network_that_knows_nothing_is_unknown(finished, calibrated, tmp_path, capsys):
  own = config(methods=("none",), seeds=(5,))
  own.teacher.update({"steps": 1})
  own.teacher.optimizer.learning_rate = 1e-7
  shutil.rmtree(tmp_path / "run", ignore_errors=True)
  experiment.run(own, tmp_path / "run", "quickstart", quiet=True)
  words = [str(tmp_path / "run"), *FAST, "--method", "teacher"]
  assert audit.main(words) == 4
  assert "too little" in capsys.readouterr().out
  assert not [*tmp_path.glob("run/audit/references/*")]  # none was trained for it
  assert audit.main([*words, "--calibration", str(calibrated[2])]) == audit.CANNOT == 2
  assert "was made for networks trained in another way" in capsys.readouterr().err


def test_usage(finished, tmp_path, capsys):
  wrong = {
    (str(tmp_path / "gone"),): "There is no",
    (str(tmp_path),): "say which images",
    (str(finished), "--data", "digits"): "knows its data",
    (str(finished), "--holdout", "0.2"): "--holdout is for a file",
    (str(tmp_path), "--data", "digits", "--method", "kd"): "--method is for a run",
    (str(finished), "--alpha", "1"): "between 0 and 1",
    (str(finished), "--calibrate", "-1"): "0 for none",
    (str(finished), "--calibrate", "3"): "5 networks at the least",
    (str(finished), "--tests", "pach"): "Did you mean 'patch'",
    (str(finished), "--tests", "patch,patch"): "name each once",
    (str(finished), "--reference-part", "pool"): "clean, labelled",
    (str(finished), "--seed", "8"): "The run has no seed 8; it has 0",
    (str(finished), "--method", "kdd"): "Did you mean 'kd'",
    (str(finished), "--images", "3"): "the audit's images",
  }
  for words, said in wrong.items():
    assert audit.main([*words]) == 2
    assert said in capsys.readouterr().err
  with pytest.raises(SystemExit) as caught:
    audit.main(["--what"])
  assert caught.value.code == 1


def test_the_runs_config_comes_back(finished):
  made = Run(finished).config
  assert made.methods == ("none", "kd") and made.teacher.network == FLAT
  assert configs.identity(made) == configs.identity(config())


def test_other_images_are_refused(finished, tmp_path, capsys):
  document = read_json(finished / "results.json")
  document["run"]["data"]["fingerprint"] = "0" * 64
  write_json(tmp_path / "results.json", document)
  assert audit.main([str(tmp_path), *FAST]) == 2
  assert "was made from other images" in capsys.readouterr().err


def test_a_network_that_is_gone_is_named(finished, tmp_path):
  shutil.copy(finished / "results.json", tmp_path)
  with pytest.raises(UserError, match="the run's phases/ and its teachers"):
    subjects.of_run(Run(tmp_path), [], [], controls=False)


def test_a_plan_has_defaults():
  plan = auditing.Plan()
  assert (plan.alpha, plan.count, plan.part) == (0.05, 20, "clean")
