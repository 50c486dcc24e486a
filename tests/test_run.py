"""End to end in seconds: complete, checkable, resumed to the same bytes, and never done twice."""

import contextlib
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from configs import quickstart
from rkd_jax import evidence, experiment
from rkd_jax.training import checkpoint

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parents[1]
SMALL = {"devices": 1, "save_every": 4, "data.train": 300.0, "methods": ("none", "kd", "agreement")}


def config(**changes):
  found = quickstart.get_config("smoke")
  for key, value in {**SMALL, **changes}.items():
    section, _, name = key.rpartition(".")
    (found[section] if section else found)[name] = value
  return found.lock()


def run(workdir: pathlib.Path, **changes) -> pathlib.Path:
  experiment.run(config(**changes), workdir, "quickstart", quiet=True)
  return workdir


JUST_KD = {"methods": ("kd",), "clean_teacher_seeds": 0, "all_labels_control": False}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  return run(tmp_path_factory.mktemp("whole") / "run")


def artefacts(workdir: pathlib.Path) -> dict[str, dict]:
  """{directory: its done.json} of all phases, teachers too."""
  teachers = workdir.parent / "teachers"
  found = [*teachers.glob("*/done.json"), *workdir.glob("phases/*/*/done.json")]
  base = workdir.parent
  return {
    str(p.parent.relative_to(base)).replace(workdir.name, "run", 1): json.loads(p.read_text())
    for p in found
  }


def summary(workdir: pathlib.Path) -> dict:
  """Everything in a run that may not depend on how often it was interrupted."""
  digest = lambda path: hashlib.sha256(path.read_bytes()).hexdigest()  # noqa: E731
  return {
    "artefacts": {name: done["sha256"] for name, done in artefacts(workdir).items()},
    "cells": json.loads((workdir / "results.json").read_text())["cells"],
    "predictions": digest(workdir / "predictions" / "seed0.npz"),
    "metrics": {p.name: p.read_text() for p in (workdir / "metrics").iterdir()},
  }


def test_leaves_a_report_and_all_its_cells(whole):
  assert "<html" in (whole / "report.html").read_text()[:200].lower()
  document = json.loads((whole / "results.json").read_text())
  cells = document["cells"]
  measured = {"count", "n", "value", "ci95"}
  assert len({str([v for k, v in c.items() if k not in measured]) for c in cells}) == len(cells)
  found = {}
  for cell in cells:
    if cell["labels"] in (None, 0.05):
      where = (cell["method"], cell["network"], cell["teacher"])
      found.setdefault(where, set()).add(cell["metric"])
  rates, compared = {"acc", "asr", "ra", "target_acc"}, {"fidelity", "transfer_ratio"}
  last = rates | compared | {"natural_rate", "carried_asr"}
  kept = {"kept", "kept_triggered"}
  expected = {
    (None, "teacher", "poisoned"): rates,
    (None, "teacher", "clean"): rates,
    ("none", "student", None): rates,
    ("kd", "student", "poisoned"): last,
    ("kd", "student", "clean"): rates | compared,
    ("agreement", "witness", None): rates,
    ("agreement", "round1", "poisoned"): rates | compared | kept,
    ("agreement", "round1", "clean"): rates | compared,
    ("agreement", "student", "poisoned"): last | kept | {"der", "rir"},
    ("agreement", "student", "clean"): rates | compared,
  }
  assert set(found) == set(expected)
  for where, metrics in expected.items():
    assert found[where] >= metrics, where
  assert len(document["run"]["phases"]) == len(artefacts(whole)) == 10


def test_its_numbers_follow_from_its_predictions(whole):
  cells = json.loads((whole / "results.json").read_text())["cells"]
  arrays = dict(np.load(whole / "predictions" / "seed0.npz"))
  labels = arrays["labels"]
  victims = labels != 0

  def answers(cell):
    if cell["network"] == "teacher":
      return tuple(arrays[f"teacher/{cell['teacher']}:{k}"] for k in ("clean", "triggered"))
    if cell["method"] == "none":
      name = f"none/{cell['labels']:g}"
    else:
      name = f"{cell['method']}/{cell['network']}/{cell['teacher'] or 'poisoned'}"
    return arrays[f"{name}:clean"], arrays[f"{name}:triggered"]

  def asr(triggered):
    return (triggered[victims] == 0).mean()

  checked = 0
  for cell in cells:
    clean, triggered = answers(cell)
    undefended = arrays["kd/student/poisoned:clean"], arrays["kd/student/poisoned:triggered"]
    gap = [(undefended[0] == labels).mean() - (clean == labels).mean(), asr(undefended[1])]
    if cell["metric"] == "acc":
      value = (clean == labels).mean()
    elif cell["metric"] == "asr":
      value = asr(triggered)
    elif cell["metric"] == "ra":
      value = (triggered == labels)[victims].mean()
    elif cell["metric"] == "target_acc":
      value = (clean == labels)[~victims].mean()
    elif cell["metric"] == "fidelity":
      value = (clean == arrays[f"teacher/{cell['teacher']}:clean"]).mean()
    elif cell["metric"] == "transfer_ratio":
      value = asr(triggered) / (asr(arrays[f"teacher/{cell['teacher']}:triggered"]) or np.nan)
    elif cell["metric"] == "carried_asr":
      value = asr(triggered) - asr(arrays[f"{cell['method']}/student/clean:triggered"])
    elif cell["metric"] == "der":
      value = (max(0, gap[1] - asr(triggered)) - max(0, gap[0]) + 1) / 2
    elif cell["metric"] in ("kept", "kept_triggered"):
      keep = arrays[f"agreement/{cell['network']}:kept"]
      wrong = arrays["pool:triggered"] & arrays["pool:victims"]
      value = keep.mean() if cell["metric"] == "kept" else keep[wrong].mean()
    else:
      continue
    checked += 1
    shown = np.nan if cell["value"] is None else cell["value"]
    np.testing.assert_allclose(shown, value, atol=1e-12, err_msg=str(cell))
    if cell["n"]:
      assert cell["count"] == round(value * cell["n"])
  assert checked > 40


def test_it_can_be_verified(whole, tmp_path):
  found = evidence.check(whole)
  assert not found.differences and not found.unverified and found.files == 1
  shutil.copytree(whole, tmp_path / "run")
  text = (whole / "results.json").read_text()
  (tmp_path / "run" / "results.json").write_text(text.replace('"count": 4', '"count": 3', 1))
  assert evidence.check(tmp_path / "run").differences


def test_done_once_is_done(whole):
  before = {p: p.stat().st_mtime_ns for p in whole.parent.rglob("done.json")}
  old = summary(whole)
  run(whole)
  assert {p: p.stat().st_mtime_ns for p in whole.parent.rglob("done.json")} == before
  assert summary(whole) == old


def start(workdir: pathlib.Path) -> subprocess.Popen:
  command = [sys.executable, "-m", "rkd_jax.main", "--config", "configs/quickstart.py:smoke"]
  flags = [f"--config.{key}={value}" for key, value in SMALL.items()]
  environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
  return subprocess.Popen(
    [*command, *flags, "--workdir", str(workdir)],
    cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
  )  # fmt: skip


def kill(process: subprocess.Popen) -> None:
  process.kill()
  assert process.wait() == -signal.SIGKILL
  process.stdout.close()


def test_killed_at_random_and_started_again_it_ends_in_the_same_bytes(whole, tmp_path):
  draw = random.Random(0)
  workdir = tmp_path / "run"
  process = start(workdir)  # killed in the middle of training the teacher, past a checkpoint
  while not [*tmp_path.glob("teachers/*/checkpoints/4")]:
    assert process.poll() is None, process.stdout.read()
    time.sleep(0.002)
  kill(process)
  assert not [*tmp_path.glob("teachers/*/done.json")]
  process = start(workdir)  # killed some time after some line
  for _ in range(draw.randint(3, 5)):
    process.stdout.readline()
  time.sleep(draw.uniform(0, 1))
  kill(process)
  assert 0 < len(artefacts(workdir)) < len(artefacts(whole))
  assert not (workdir / "results.json").exists()
  run(workdir)
  assert summary(workdir) == summary(whole)


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
  return run(tmp_path_factory.mktemp("distilled") / "run", **JUST_KD)


def parameters(workdir: pathlib.Path) -> dict[str, dict]:
  found = {}
  for path in [*workdir.parent.glob("teachers/*/final"), *workdir.glob("phases/*/*/final")]:
    found[path.parent.name.split("-")[0]] = checkpoint.load_tree(path)["roles"]["student"]
  return found


def test_eight_devices_tell_the_same(distilled, tmp_path):
  eight = run(tmp_path / "run", **{**JUST_KD, "devices": 8})
  a, b = (dict(np.load(w / "predictions" / "seed0.npz")) for w in (distilled, eight))
  assert set(a) == set(b)
  np.testing.assert_array_equal(a["pool:triggered"], b["pool:triggered"])
  same = {k: (a[k] == b[k]).mean() for k in a}
  one, other = parameters(distilled), parameters(eight)
  assert set(one) == set(other) and len(one) == 3
  gaps = {}
  for phase in one:  # |a - b| / |a| over all of a network's parameters
    pairs = zip(
      jax.tree.leaves(one[phase]["params"]), jax.tree.leaves(other[phase]["params"]), strict=True
    )
    squares = np.sum([(np.sum((x - y) ** 2), np.sum(x**2)) for x, y in pairs], 0)
    gaps[phase] = float(np.sqrt(squares[0] / squares[1]))
  print(f"8 devices against 1: predictions {min(same.values()):.4f}, parameters {gaps}")
  # Sums are added in another order, and what differs in the last bit grows with every step. After
  # one epoch a network's answers are nearly ties, so some of them turn.
  assert max(gaps.values()) < 5e-3
  assert np.mean([*same.values()]) >= 0.98 and min(same.values()) >= 0.95


def test_teachers_are_trained_once_for_two_workdirs(distilled):
  before = {p: p.stat().st_mtime_ns for p in distilled.parent.glob("teachers/*/done.json")}
  other = run(distilled.parent / "other", **{**JUST_KD, "student.epochs": 2})
  after = {p: p.stat().st_mtime_ns for p in distilled.parent.glob("teachers/*/done.json")}
  assert before == after and len(after) == 1
  assert not [*other.glob("phases/*/teacher*")]


def flip(path: pathlib.Path, byte: int) -> None:
  data = bytearray(path.read_bytes())
  data[byte] ^= 1
  path.write_bytes(data)


def test_a_damaged_artefact_is_made_again(distilled, tmp_path, capsys):
  shutil.copytree(distilled.parent, tmp_path / "copy")
  workdir = tmp_path / "copy" / "run"
  (final,) = workdir.glob("phases/seed0/student-*/final")
  largest = max(final.rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
  flip(largest, largest.stat().st_size // 2)
  before = {p: p.stat().st_mtime_ns for p in workdir.parent.rglob("done.json")}
  run(workdir, **JUST_KD)
  assert "is damaged" in " ".join(capsys.readouterr().err.split())
  aside = final.parent.with_name(f"{final.parent.name}.unreadable")
  assert (aside / "final").is_dir()
  shutil.rmtree(aside)
  after = {p: p.stat().st_mtime_ns for p in workdir.parent.rglob("done.json")}
  assert [p.parent for p in after if after[p] != before[p]] == [final.parent]
  assert summary(workdir) == summary(distilled)


@pytest.mark.parametrize("error", [MemoryError, PermissionError])
def test_what_is_not_the_artefacts_fault_leaves_it_alone(distilled, tmp_path, monkeypatch, error):
  shutil.copytree(distilled.parent, tmp_path / "copy")
  before = sorted((tmp_path / "copy").rglob("done.json"))

  def refuse(path):
    raise error

  monkeypatch.setattr(checkpoint, "load_tree", refuse)
  with pytest.raises(error):
    run(tmp_path / "copy" / "run", **JUST_KD)
  assert sorted((tmp_path / "copy").rglob("done.json")) == before


def test_a_flipped_byte_in_an_artefact_is_seen(distilled, tmp_path):
  (final,) = distilled.glob("phases/seed0/student-*/final")
  want = json.loads((final.parent / "done.json").read_text())["sha256"]
  draw = random.Random(1)
  files = [p for p in final.rglob("*") if p.is_file() and p.stat().st_size]
  sizes, seen = [p.stat().st_size for p in files], 0
  for number in range(20):
    copy = tmp_path / str(number)
    shutil.copytree(final, copy)
    path = draw.choices(files, sizes)[0]
    flip(copy / path.relative_to(final), draw.randrange(path.stat().st_size))
    with contextlib.suppress(Exception):
      found = checkpoint.digest(checkpoint.load_tree(copy))
      seen += found != want
      continue
    seen += 1
  assert seen >= 15  # most bytes are parameters
