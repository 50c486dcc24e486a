"""From a finished run to files that run elsewhere: checked, measured again, told in the report."""

import errno
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("flatbuffers")

from configs import quickstart
from rkd_jax import evidence, experiment, networks
from rkd_jax.commands import export
from rkd_jax.evaluation import recount
from rkd_jax.export import formats, latency, ledger, onnx_file, subject, weights
from rkd_jax.models.network import Network
from rkd_jax.reporting import exported, files, report, results

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parents[2]
ALL = ("onnx", "stablehlo", "safetensors", "torch")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """The workdir of a run of seconds."""
  config = quickstart.get_config("smoke")
  config.methods, config.clean_teacher_seeds, config.all_labels_control = ("none", "kd"), 0, False
  config.data.update({"train": 200.0, "test": 90.0, "holdout": 60.0})
  config.teacher.steps = config.student.steps = config.labelled.steps = 12
  config.devices = 1
  workdir = tmp_path_factory.mktemp("made") / "run"
  experiment.run(config.lock(), workdir, "quickstart", quiet=True)
  return workdir


@pytest.fixture
def workdir(finished, tmp_path):
  """A copy that may be changed."""
  shutil.copytree(finished, tmp_path / "run")
  shutil.copytree(finished.parent / "teachers", tmp_path / "teachers")
  return tmp_path / "run"


@pytest.fixture(scope="module", autouse=True)
def quick():
  """Few repetitions: no time that is measured here means anything."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(latency, "SECONDS", 0.0)
    patch.setattr(latency, "LEAST", 2)
    yield


@pytest.fixture(scope="module")
def everything(finished, tmp_path_factory):
  """The run with all of its exports."""
  workdir = tmp_path_factory.mktemp("everything") / "run"
  shutil.copytree(finished, workdir)
  shutil.copytree(finished.parent / "teachers", workdir.parent / "teachers")
  for form in ALL:
    arguments = ["--int8", "--least-agreement", "0.5"] if form == "onnx" else []
    assert call(workdir, "--format", form, *arguments) == 0
  return workdir


def call(*arguments) -> int:
  return export.main([str(a) for a in arguments])


def test_every_file_is_measured_again(everything):
  found = {record["name"]: record for record in exported.read(everything)}
  names = ["kd-seed0.onnx", "kd-seed0-int8.onnx", "kd-seed0.stablehlo", "kd-seed0.safetensors"]
  assert list(found) == [*names, "kd-seed0.pth"]
  _, cells = results.read(everything / "results.json")
  for name, record in found.items():
    model = everything / "exports" / name
    assert record["bytes"] == model.stat().st_size and record["sha256"] == files.sha256(model)
    assert (record["params"], record["macs"]) == (77562, 3052160)
    mine = {c["metric"]: c for c in record["cells"] if c["metric"] != "latency"}
    assert mine["acc"]["variant"] == f"{record['format']}-{record['precision']}"
    assert mine["acc"]["n"] == 90 and mine["asr"]["n"] == mine["ra"]["n"] < 90
    for metric in ("acc", "asr", "ra"):
      (own,) = results.select(cells, method="kd", network="student", metric=metric)
      told = next(c for c in record["jax"] if c["metric"] == metric)
      assert (told["count"], told["n"]) == (own.count, own.n)
      if record["precision"] == "f32":
        assert mine[metric]["count"] == own.count
    assert record["check"]["on"] == "test images" and record["check"]["triggered"]["images"] == 90
  assert found["kd-seed0.safetensors"]["check"]["clean"]["max_difference"] == 0
  assert found["kd-seed0.safetensors"]["latency"] == []
  timed = found["kd-seed0.onnx"]["latency"]
  assert [(one["batch"], one["runtime"] == "jax") for one in timed] == [
    (1, False), (32, False), (1, True), (32, True),
  ]  # fmt: skip
  assert all(0 < one["fastest"] <= one["p50"] <= one["p95"] for one in timed)
  assert found["kd-seed0-int8.onnx"]["bytes"] < 0.4 * found["kd-seed0.onnx"]["bytes"]


def test_what_a_file_says_of_itself(everything):
  import onnx

  for suffix in (".onnx", "-int8.onnx"):
    model = onnx.load(everything / "exports" / f"kd-seed0{suffix}")
    said = {p.key: p.value for p in model.metadata_props}
    assert json.loads(said["classes"]) == [str(k) for k in range(10)]
    assert json.loads(said["input"])["shape"] == ["batch", 1, 16, 16]
    assert said["normalisation"].startswith("inside") and len(said["source_sha256"]) == 64
  beside = json.loads((everything / "exports" / "kd-seed0.pth.json").read_text())
  assert beside["normalisation"].startswith("not inside") and beside["names"].startswith("xternalz")


def test_the_report_shows_them(everything):
  page = report.write(everything).read_text()
  assert '<h2 id="exported">Exported models</h2>' in page and "kd-seed0-int8.onnx" in page
  assert "77,562" in page and "3,052,160" in page


def test_verify_makes_their_numbers_again(everything, tmp_path):
  before = len(results.read(everything / "results.json")[1])
  found = evidence.check(everything)
  assert not found.differences and found.cells > before + 5 * 10 and found.files == 6
  shutil.copytree(everything, tmp_path / "run")
  path = tmp_path / "run" / "exports.json"
  document = json.loads(path.read_text())
  for change in (
    lambda record: record["cells"][0].update(count=1),
    lambda record: record["jax"][1].update(value=0.5),
    lambda record: record["check"]["clean"].update(same=0),
    lambda record: record.update(macs=1),
    lambda record: record.update(bytes=1),
    lambda record: record["latency"].clear(),
    lambda record: record["predictions"].update(sha256="0"),
    lambda record: record.pop("of"),
  ):
    other = json.loads(json.dumps(document))
    change(other["exports"][0])
    other["sha256"] = results.seal(other)
    files.write_json(path, other)
    told = evidence.check(tmp_path / "run").differences
    assert told and all("exports.json" in text for text in told)
  document["exports"][0]["title"] = "another"
  files.write_json(path, document)
  (told,) = evidence.check(tmp_path / "run").differences
  assert "edited after it was written" in told


def test_another_test_set_or_file_is_told(everything, tmp_path):
  shutil.copytree(everything, tmp_path / "run")
  (tmp_path / "run" / "exports" / "kd-seed0.onnx").write_bytes(b"another")
  told = " ".join(evidence.check(tmp_path / "run").differences)
  assert "kd-seed0.onnx is not the file that was measured" in told and "has 7 bytes" in told
  (tmp_path / "run" / "exports" / "kd-seed0.onnx").unlink()  # models are large: they may stay away
  assert not evidence.check(tmp_path / "run").differences


ELSEWHERE = """
import json, sys
sys.modules["rkd_jax"] = None  # importing it fails, wherever it is installed
import numpy as np
images = np.load("images.npy")
if sys.argv[1].endswith(".onnx"):
  import onnxruntime
  session = onnxruntime.InferenceSession(sys.argv[1])
  channels_first = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
  logits = session.run(None, {"images": channels_first})[0]
else:
  import jax
  with open(sys.argv[1], "rb") as file:
    network = jax.export.deserialize(bytearray(file.read()))
  assert set(network.platforms) == {"cpu", "cuda", "tpu"}
  logits = network.call(images)
np.save("logits.npy", np.asarray(logits))
"""


@pytest.mark.parametrize("name", ["kd-seed0.onnx", "kd-seed0-int8.onnx", "kd-seed0.stablehlo"])
def test_they_run_where_the_package_is_not(everything, tmp_path, name):
  shutil.copy(everything / "exports" / name, tmp_path)
  (tmp_path / "run.py").write_text(ELSEWHERE)
  arrays = evidence.read_arrays(everything / "exports" / f"{name}.predictions.npz")
  images = experiment.load(
    quickstart_data(everything), experiment.Reporter(quiet=True)
  ).test.images[:7]
  np.save(tmp_path / "images.npy", images.astype(np.float32) / 255)
  environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
  done = subprocess.run(
    [sys.executable, "-P", "run.py", name], cwd=tmp_path, env=environment,
    capture_output=True, text=True,
  )  # fmt: skip
  assert done.returncode == 0 and not done.stderr, done.stderr
  said = np.load(tmp_path / "logits.npy")
  assert said.shape == (7, 10)
  np.testing.assert_array_equal(said.argmax(1), arrays["export:clean"][:7])


def quickstart_data(workdir):
  from rkd_jax.finished import restored

  return restored(results.read(workdir / "results.json")[0]["config"])


def test_the_teacher_and_a_method_by_name(workdir):
  assert call(workdir, "--format", "safetensors", "--network", "teacher") == 0
  assert call(workdir, "--format", "safetensors", "--method", "none") == 0
  teacher, alone = exported.read(workdir)
  assert teacher["name"] == "teacher-seed0.safetensors" and alone["of"]["method"] == "none"
  assert teacher["of"]["teacher"] == "poisoned" and alone["of"]["teacher"] is None
  reported = recount_of(workdir, "teacher/poisoned")
  arrays = evidence.read_arrays(workdir / teacher["predictions"]["file"])
  np.testing.assert_array_equal(arrays["export:triggered"], reported.triggered)
  assert call(workdir, "--format", "safetensors", "--method", "none") == 0  # again: in its place
  assert len(exported.read(workdir)) == 2 and not evidence.check(workdir).differences


def recount_of(workdir, name):
  return recount.answers(evidence.read_arrays(workdir / recount.saved(0)), name)


def test_a_phase_and_a_file_without_a_run(finished, tmp_path, capsys):
  (phase,) = finished.glob("phases/seed0/student-*")
  out = ["--out", tmp_path / "out", "--size", "16"]
  assert call(phase, "--format", "onnx", *out) == 0
  assert call(phase, "--format", "torch", *out) == 0
  made = tmp_path / "out" / f"{phase.name}.onnx"
  assert made.is_file() and not list(tmp_path.glob("**/exports.json"))
  assert "of 64 noise" in capsys.readouterr().out
  assert call(phase, "--format", "onnx", "--int8", *out) == 2
  assert "name the workdir of a run" in capsys.readouterr().err
  assert call(tmp_path / "out" / f"{phase.name}.pth", "--format", "onnx", *out) == 2
  assert "config.teacher.mean" in capsys.readouterr().err  # digits' normalisation is nobody's


def stranger(path, name):
  """A file with the usual names of a family, and ten classes."""
  network = Network(networks.module(name, classes=10), (32, 32, 3), (0.5,) * 3, (0.5,) * 3)
  variables = jax.tree.map(np.asarray, network.init(jax.random.key(0)))
  path.write_bytes(weights.torch_zip(weights.state_dict(network, variables, "")[1]))


def test_of_a_strangers_file_it_says_what_is_assumed(tmp_path, capsys):
  stranger(tmp_path / "other.pth", "resnet-8")
  assert call(tmp_path / "other.pth", "--format", "stablehlo", "--out", tmp_path / "out") == 0
  assert "warning: The normalisation is the usual one" in capsys.readouterr().out
  beside = json.loads((tmp_path / "out" / "other.stablehlo.json").read_text())
  assert beside["architecture"] == "resnet-8" and beside["doubt"] == subject.ASSUMED


def test_a_strangers_file_that_may_be_two_networks_is_refused(tmp_path, capsys):
  stranger(tmp_path / "other.pth", "mobilenet_v2-0.25-variant=cifar")
  out = tmp_path / "out"
  assert call(tmp_path / "other.pth", "--format", "stablehlo", "--out", out) == 2
  told = capsys.readouterr().err
  assert "may be mobilenet_v2-0.25-variant=cifar or mobilenet_v2-0.25-variant=imagenet" in told
  assert "--config.teacher.checkpoint and --config.teacher.network" in told
  assert not out.exists()


@pytest.mark.parametrize(
  ("arguments", "told"),
  [
    (["--format", "torch", "--int8"], "--int8 is of ONNX"),
    (["--format", "torch", "--layout", "nchw"], "weights alone"),
    (["--format", "onnx", "--names", "timm"], "--names is of PyTorch's"),
    (["--format", "onnx", "--method", "kds"], "no method 'kds'. Did you mean 'kd'"),
    (["--format", "onnx", "--seed", "4"], "has no seed 4; it has 0"),
  ],
)
def test_what_cannot_be_is_said(workdir, capsys, arguments, told):
  assert call(workdir, *arguments) == 2
  assert told in capsys.readouterr().err and not (workdir / "exports.json").exists()


def test_no_such_folder_and_a_run_whose_network_is_gone(workdir, tmp_path, capsys):
  assert call(tmp_path / "nowhere", "--format", "onnx") == 2
  assert "There is no" in capsys.readouterr().err
  shutil.rmtree(workdir / "phases")
  assert call(workdir, "--format", "onnx") == 2
  assert "Start the run's command again" in capsys.readouterr().err


def left(workdir) -> list[str]:
  """Names of what an export left."""
  return [p.name for p in (workdir / "exports").glob("*")] if (workdir / "exports").exists() else []


def test_an_export_that_answers_otherwise_is_not_written(workdir, capsys, monkeypatch):
  right = onnx_file.logits
  for wrong, told in (
    (lambda s, x: right(s, x) * 1.01, "does not answer as JAX does: logits differ by"),
    (lambda s, x: right(s, x) * np.nan, "not finite"),
  ):
    monkeypatch.setattr(onnx_file, "logits", wrong)
    assert call(workdir, "--format", "onnx") == 2
    assert told in capsys.readouterr().err
    assert not left(workdir) and not (workdir / "exports.json").exists()


def test_int8_that_agrees_too_little_leaves_the_float_file_alone(workdir, capsys, monkeypatch):
  def fault(made, images, method):
    wrong = formats.Made(b"", "-int8.onnx", "int8", {**made.about, "precision": "int8"},
                         lambda x: -made.answer(x), "nothing")  # fmt: skip
    return wrong

  monkeypatch.setattr(formats, "rounded", fault)
  assert call(workdir, "--format", "onnx", "--int8") == 2
  assert "at least 90% is asked for" in capsys.readouterr().err
  assert [record["name"] for record in exported.read(workdir)] == ["kd-seed0.onnx"]
  assert not any("int8" in name for name in left(workdir))


def test_other_weights_than_those_of_the_report_are_refused(workdir, capsys):
  path = workdir / recount.saved(0)
  arrays = evidence.read_arrays(path)
  arrays["kd/student/poisoned:clean"] = (arrays["kd/student/poisoned:clean"] + 1) % 10
  np.savez(path, **arrays)
  assert call(workdir, "--format", "torch") == 2
  assert "it is another network" in capsys.readouterr().err and not left(workdir)


def test_a_full_disk_leaves_what_was_there(workdir, capsys, monkeypatch):
  assert call(workdir, "--format", "torch") == 0
  before = (workdir / "exports.json").read_bytes(), sorted(left(workdir))

  def full(path, data):
    path.write_bytes(data[: len(data) // 2])
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(files, "_write_through", full)
  assert call(workdir, "--format", "torch") == 2
  assert "Free some space" in capsys.readouterr().err
  assert ((workdir / "exports.json").read_bytes(), sorted(left(workdir))) == before
  monkeypatch.undo()
  assert not evidence.check(workdir).differences


def test_a_place_that_is_no_folder(workdir, capsys):
  (workdir / "file").write_text("")
  assert call(workdir, "--format", "torch", "--out", workdir / "file" / "exports") == 2
  assert "Cannot write" in capsys.readouterr().err


KILLED = """
import os, signal, sys
from rkd_jax.commands import export
from rkd_jax.reporting import files

def dies(path, data):
  if "{victim}" in path.name:
    path.write_bytes(data[: len(data) // 2])
    os.kill(os.getpid(), signal.SIGKILL)
  right(path, data)

right, files._write_through = files._write_through, dies
export.main(sys.argv[1:])
"""


@pytest.mark.parametrize("victim", ["kd-seed0.pth.", "exports.json"])
def test_a_kill_leaves_nothing_half_written(workdir, victim):
  program = KILLED.replace("{victim}", victim)
  arguments = [sys.executable, "-c", program, str(workdir), "--format", "torch"]
  done = subprocess.run(arguments, cwd=ROOT, capture_output=True)
  assert done.returncode == -signal.SIGKILL
  assert not (workdir / "exports.json").exists()
  assert victim == "exports.json" or "kd-seed0.pth" not in left(workdir)
  assert not evidence.check(workdir).differences
  assert call(workdir, "--format", "torch") == 0
  assert not [name for name in left(workdir) if name.endswith(".tmp")]
  assert not evidence.check(workdir).differences


def test_the_records_of_another_version_are_no_records(workdir, capsys):
  (workdir / "exports.json").write_text('{"schema": 7}')
  assert call(workdir, "--format", "torch") == 2
  assert "Delete it and export again" in capsys.readouterr().err
  assert ledger.FOLDER == "exports" and jax.devices()[0].platform == "cpu"
