"""A teacher that was made elsewhere: taken as it is, checked, and never said to be trusted."""

import json
import pathlib
import shutil
import types

import numpy as np
import pytest
from test_run import config

from rkd_jax import config as configs
from rkd_jax import experiment, first_look, given
from rkd_jax.backdoors import badnets
from rkd_jax.errors import UserError
from rkd_jax.reporting import results

pytestmark = pytest.mark.slow
SOME = {"methods": ("none", "kd"), "clean_teacher_seeds": -1, "all_labels_control": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """The folder of a teacher with a backdoor, as its author leaves it."""
  workdir = tmp_path_factory.mktemp("author") / "run"
  made = config(**SOME | {"methods": ("kd",), "clean_teacher_seeds": 0})
  experiment.run(made, workdir, "author", quiet=True)
  (found,) = (workdir.parent / "teachers").glob("*/done.json")
  return found.parent


def run(tmp_path, **changes) -> tuple[dict, list[results.Cell]]:
  made = config(**SOME | changes)
  experiment.run(made, tmp_path / "run", "given", quiet=True)
  return results.read(tmp_path / "run" / "results.json")


def value(cells, **fields):
  (cell,) = results.select(cells, **fields)
  return cell.value


def test_its_known_trigger_is_measured_as_if_it_were_trained_here(folder, tmp_path):
  manifest, cells = run(tmp_path, **{"teacher.checkpoint": str(folder)})
  author = results.read(folder.parents[1] / "run" / "results.json")[1]
  for metric in ("acc", "asr", "ra"):
    wanted = value(author, network="teacher", metric=metric)
    assert value(cells, network="teacher", teacher="given", metric=metric) == wanted
    wanted = value(author, network="student", method="kd", metric=metric)
    assert value(cells, network="student", method="kd", metric=metric) == wanted  # to the byte
  assert {c.teacher for c in cells} == {None, "given"} and {c.teacher_seed for c in cells} == {0}
  (teacher,) = manifest["teachers"]
  assert teacher["kind"] == "given"
  assert teacher["sha256"] == json.loads((folder / "done.json").read_text())["sha256"]


@pytest.mark.parametrize("follows", [0.0, 1.01])
def test_a_trigger_that_it_does_not_follow_is_doubted(folder, tmp_path, monkeypatch, follows):
  monkeypatch.setattr(first_look, "FOLLOWS", follows)
  changes = {"teacher.checkpoint": str(folder), "methods": ("none",), "clean_teacher_seeds": 0}
  looked = run(tmp_path, **changes)[0]["given"]
  assert 0 <= looked["trigger_rate"] <= 1
  said = " ".join(looked["warnings"])
  assert ("the trigger 'badnets' sends" in said) == bool(follows)
  assert ("--config.backdoor=unknown --config.contamination=0" in said) == bool(follows)


@pytest.mark.parametrize(
  ("classes", "accuracy", "doubted"),
  [
    (2, 0.995, False),
    (2, 0.7, True),
    (3, 0.9, False),
    (3, 0.6, True),
    (10, 0.4, False),
    (10, 0.2, True),
  ],
)
def test_a_teacher_that_is_hardly_better_than_chance_is_doubted(classes, accuracy, doubted):
  names = tuple(map(str, range(classes)))
  data = types.SimpleNamespace(classes=classes, class_names=names)
  labels = np.arange(1200) % classes
  wrong = (labels + 1 + np.arange(1200) // classes % (classes - 1)) % classes
  said = np.where(np.arange(1200) < 1200 * accuracy, labels, wrong)
  teacher = given.Given("x", "resnet-8", ((0.5,), (0.5,)), "0" * 64, "teacher")
  found = first_look.doubts(teacher, data, said, labels, {}, float((said == labels).mean()))
  assert any("Nothing good can" in line for line in found) == doubted


def test_how_often_a_trigger_works_by_hand():
  """Images of the target's class count for nothing."""
  backdoor = badnets.Backdoor(target=0)
  labels, said = np.array([0, 1, 2, 3, 0]), np.array([0, 0, 2, 0, 1])
  assert first_look.followed(backdoor, labels, said) == pytest.approx(2 / 3)
  assert first_look.followed(backdoor, labels[[0, 4]], said[[0, 4]]) is None
  images = np.full((2, 8, 8, 1), 10, np.uint8)
  shown = first_look.triggered(backdoor, images)
  assert shown.dtype == np.uint8 and (shown != images).any() and (shown == 10).any()


TRIGGERED = ("asr", "ra", "target_acc", "natural_rate", "carried_asr")


def test_without_a_known_trigger_nothing_is_said_of_it(folder, tmp_path):
  changes = {"teacher.checkpoint": str(folder), "backdoor": "unknown", "contamination": 0.0}
  _, cells = run(tmp_path, seeds=(0, 1), **changes)
  triggered = [c for c in cells if c.metric in TRIGGERED]
  assert triggered and all(c.value is None and c.ci95 is None for c in triggered)
  assert all(c.value is not None for c in cells if c.metric in ("acc", "fidelity"))
  report = (tmp_path / "run" / "report.html").read_text()
  assert "unknown" in report.lower() and "removed the backdoor" not in report
  assert "can be trusted" not in report.lower()
  assert len({c.seed for c in cells}) == 2 and {c.teacher_seed for c in cells} == {0}


def test_its_own_normalisation_goes_with_it(folder, tmp_path):
  other = tmp_path / "other"
  shutil.copytree(folder, other)
  record = json.loads((other / "done.json").read_text())
  record["phase"]["settings"]["normalisation"]["student"] = [[0.9], [0.1]]
  (other / "done.json").write_text(json.dumps(record))
  _, cells = run(tmp_path, **{"teacher.checkpoint": str(other)})
  author = results.read(folder.parents[1] / "run" / "results.json")[1]
  asked = {"network": "teacher", "metric": "acc"}
  assert value(cells, **asked) < value(author, **asked) - 0.1


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"backdoor": "unknown", "contamination": 0.0}, "teacher is trained here"),
    ({"backdoor": "unknown", "teacher.checkpoint": "x"}, "--config.contamination=0"),
    ({"backdoor": "adba", "teacher.checkpoint": "x"}, "trained together with its teacher"),
    ({"teacher.sha256": "abc"}, "no config.teacher.checkpoint"),
  ],
)
def test_what_cannot_be_is_said_before_any_work(changes, message):
  with pytest.raises(UserError, match=message):
    configs.check(config(**changes))


def test_a_folder_that_holds_no_network(tmp_path):
  with pytest.raises(UserError, match="holds no network: expected the folder of a finished phase"):
    given.read(tmp_path)
  with pytest.raises(UserError, match="holds no network"):
    given.read(tmp_path / "nowhere")


def test_a_damaged_or_another_teacher_is_refused(folder, tmp_path):
  digest = json.loads((folder / "done.json").read_text())["sha256"]
  assert given.read(folder, digest.upper()).sha256 == digest
  with pytest.raises(UserError, match="another network than the one you mean"):
    given.read(folder, "0" * 64)
  other = tmp_path / "other"
  shutil.copytree(folder, other)
  record = json.loads((other / "done.json").read_text())
  (other / "done.json").write_text(json.dumps(record | {"sha256": "0" * 64}))
  with pytest.raises(UserError, match="is damaged"):
    given.read(other).variables()
  broken = tmp_path / "broken"
  shutil.copytree(folder, broken)
  spoil(broken / "final")
  with pytest.raises(UserError, match=r"Cannot read the network|is damaged"):
    given.read(broken).variables()


def spoil(final: pathlib.Path) -> None:
  """Cuts every file of some size in half."""
  for file in final.rglob("*"):
    if file.is_file() and file.stat().st_size > 2000:
      file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_another_architecture_is_named(folder, tmp_path):
  changes = {"teacher.checkpoint": str(folder), "teacher.network": "wideresnet-16-1"}
  with pytest.raises(UserError, match=r"Say --config\.teacher\.network=wideresnet"):
    run(tmp_path, **changes)


def test_its_variables_are_those_that_were_saved(folder):
  found = given.read(folder)
  leaves = np.concatenate([np.ravel(x) for x in found.variables()["params"]["conv"].values()])
  assert np.isfinite(leaves).all() and leaves.std() > 0


def test_the_report_shows_its_first_look(folder, tmp_path):
  run(tmp_path, **{"teacher.checkpoint": str(folder)})
  report = (tmp_path / "run" / "report.html").read_text()
  assert "Given teacher: first look" in report and "clean hold-out images are right" in report
