"""A finished run, opened again: which phase is whose, where it lies, which strength was chosen."""

import json

import pytest

from rkd_jax import config as configs
from rkd_jax import finished, given, subjects
from rkd_jax.errors import UserError
from rkd_jax.finished import Run
from rkd_jax.reporting import results
from rkd_jax.reporting.files import write_json

GRID = (0.0, 0.25, 0.5)
SPECS = {"kd": {"alpha": 0.9}, **{f"blend{v}": {"base": {}, "amplitude": v} for v in GRID}}
CHOSEN = {"strength": "amplitude", "chosen": 0.25}


def phase(name, key, teacher="poisoned", seed=0):
  return {"name": name, "key": key, "teacher": teacher, "seed": seed, "sha256": "0" * 64}


def comparison(label, taught, seed=0):
  return {"seed": seed, "label": label, "networks": {"student": taught}}


def cost(method, *keys, teacher="poisoned"):
  return {"seed": 0, "method": method, "teacher": teacher, "phases": list(keys)}


@pytest.fixture
def workdir(tmp_path):
  """As a run leaves it, but without arrays: kd, a strength that was chosen, a clean teacher."""
  blends = [f"blend{value}" for value in GRID]
  made = [phase("teacher", "poisoned"), phase("teacher", "clean", "clean")]
  made += [phase("alone-labelled", "alone", None), phase("student", "kd")]
  made += [phase("student", "kd-clean", "clean"), *(phase("student", key) for key in blends)]
  lines = [cost("none", "alone"), cost("kd", "kd"), cost("blend", *reversed(blends))]
  lines += [cost("none", "alone", teacher="clean"), cost("kd", "kd-clean", teacher="clean")]
  manifest = {
    "config": json.loads(json.dumps(configs.default().to_dict())),
    "seeds": [0, 1],
    "phases": made,
    "costs": lines,
    "selection": [{"seed": 0, "method": "blend", "teacher": "poisoned", **CHOSEN}],
    "comparisons": [
      comparison("none", False), comparison("kd", True), comparison("blend", True),
      comparison("none/1", False),
    ],
  }  # fmt: skip
  results.write(tmp_path / "run" / "results.json", manifest, [])
  for one in made:
    own = tmp_path / "run" / "phases" / "seed0" / f"{one['name']}-{one['key'][:8]}"
    folder = tmp_path / "teachers" / one["key"] if one["name"] == "teacher" else own
    write_json(folder / "done.json", {"phase": {"method": SPECS.get(one["key"], {})}})
  return tmp_path / "run"


def changed(workdir, **fields):
  """The same run with other lines in its manifest."""
  manifest, _ = results.read(workdir / "results.json")
  results.write(workdir / "results.json", manifest | fields, [])
  return Run(workdir)


def names(run, *wanted, controls=False):
  return [one.name for one in subjects.of_run(run, [], wanted, controls)]


@pytest.fixture
def unread(monkeypatch):
  """Networks that are not opened."""
  monkeypatch.setattr(
    given, "read", lambda path, sha256="": given.Given(path, "net", ((), ()), sha256, "")
  )


def test_a_methods_student_and_the_last_one_that_was_taught(workdir):
  run = Run(workdir)
  assert run.methods() == ["none", "kd", "blend"]
  assert run.student(0, "kd")[0]["key"] == "kd" and run.student(0, "none")[0]["key"] == "alone"
  assert run.student(0) == (run.student(0, "blend")[0], "blend")
  assert run.teacher(0)["key"] == "poisoned"
  assert [one["key"] for one in run.students(0, "kd", "clean")] == ["kd-clean"]
  assert finished.is_run(workdir) and not finished.is_run(workdir.parent)
  with pytest.raises(UserError, match=r"no method 'kds'. Did you mean 'kd'"):
    run.student(0, "kds")
  with pytest.raises(UserError, match="no seed 4; it has 0, 1"):
    run.seed(4)
  with pytest.raises(UserError, match="names no teacher of seed 1"):
    run.teacher(1)


def test_a_given_teacher_is_every_seeds(workdir):
  run = changed(workdir, phases=[phase("teacher", "given", "given")])
  assert run.teacher(1)["key"] == run.teacher(0)["key"] == "given"


def test_the_strength_that_was_chosen_and_no_other(workdir, unread):
  run = Run(workdir)
  assert run.student(0, "blend")[0]["key"] == "blend0.25"
  assert names(run) == ["seed0/teacher", "seed0/kd", "seed0/blend"]
  audited = subjects.of_run(run, [], [], False)[-1]
  assert audited.given.path.endswith("student-blend0.2") and audited.method == "blend"


def test_the_audits_controls_are_named_once(workdir, unread):
  found = names(Run(workdir), controls=True)
  assert found[:2] == ["seed0/teacher", "seed0/teacher-clean"]
  assert found[2:] == ["seed0/none", "seed0/kd", "seed0/blend", "seed0/kd-clean"]
  assert names(Run(workdir), "kd") == ["seed0/teacher", "seed0/kd"]
  assert names(Run(workdir), "teacher") == ["seed0/teacher"]


def test_where_the_students_do_not_say_what_was_chosen(workdir, unread):
  """A strength of another phase: an audit takes all of them, an export asks for the folder."""
  line = {"seed": 0, "method": "blend", "teacher": "poisoned", "strength": "radius", "chosen": 2.0}
  run = changed(workdir, selection=[line])
  assert [name.partition("blend")[2] for name in names(run)[2:]] == ["", "-blend0.2", "-blend0.0"]
  with pytest.raises(UserError, match="Name the folder of the phase"):
    run.student(0, "blend")


def test_folders_are_where_the_run_or_the_caller_says(workdir, tmp_path):
  teacher = Run(workdir).teacher(0)
  assert Run(workdir).folder(teacher) == workdir.parent / "teachers" / "poisoned"
  (tmp_path / "teachers").rename(tmp_path / "elsewhere")
  with pytest.raises(UserError, match=r"neither .* nor .* Start the run's command again"):
    Run(workdir).folder(teacher)
  moved = Run(workdir, {"teachers_dir": str(tmp_path / "elsewhere")})
  assert moved.folder(teacher) == tmp_path / "elsewhere" / "poisoned"
  plain = Run(workdir).manifest["config"] | {"teachers_dir": str(tmp_path / "elsewhere")}
  further = changed(workdir, config=plain)
  assert further.folder(teacher) == moved.folder(teacher)
  named = Run(workdir, {"teachers_dir": str(tmp_path / "third")})  # where it was is still looked at
  assert named.folder(teacher) == moved.folder(teacher)


def test_a_config_comes_back_with_what_is_newer():
  plain = json.loads(json.dumps(configs.default().to_dict()))
  del plain["teacher"]["augment"], plain["contamination"]
  plain |= {"seeds": [3, 4], "method": {"own": {"name": "kd", "alpha": 0.5}}}
  made = finished.restored(plain, {"data.data_dir": "", "devices": 2, "seeds": None})
  default = configs.default()
  assert made.teacher.augment.to_dict() == default.teacher.augment.to_dict()
  assert made.contamination == default.contamination and made.devices == 2
  assert made.seeds == (3, 4) and made.method.own.alpha == 0.5
  assert made.data.data_dir == default.data.data_dir
