"""A bad environment: full and read-only disks, signals, clocks, locks, leftovers of a kill.

Whatever happens at whichever write, the run ends with a message for people or as the signal wants,
leaves nothing half-written, and the same call goes on to the same bytes.
"""

import errno
import gc
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from configs import quickstart
from rkd_jax import evidence, experiment, workdir
from rkd_jax.errors import UserError
from rkd_jax.reporting import results
from rkd_jax.training.loop import Preempted

# Orbax leaves threads and coroutines behind where a save fails; they complain when collected.
pytestmark = [
  pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
  pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]


@pytest.fixture(autouse=True)
def collected():
  """They complain here, where it is expected, and not in whichever test comes next."""
  yield
  gc.collect()


def config():
  """The smallest run: a teacher and a student, two rounds each, a checkpoint after each of them."""
  found = quickstart.get_config("smoke")
  found.update({"methods": ("kd",), "clean_teacher_seeds": 0, "all_labels_control": False})
  found.update({"devices": 1, "save_every": 1, "labels": 0.0, "contamination": 0.0})
  found.update({"eval_batch": 20})
  found.data.update({"train": 40.0, "test": 20.0, "holdout": 20.0})
  for section in (found.teacher, found.student):
    section.update({"network": "resnet-8-2", "steps": 2, "batch_size": 16})
  return found.lock()


def run(base: pathlib.Path) -> pathlib.Path:
  experiment.run(config(), base / "run", "tiny", quiet=True)
  return base / "run"


class Writes:
  """Sees every file that Python opens for writing, makes or renames below a folder.

  Attributes:
    base: the folder; None sees nothing.
    seen: what was written.
    at: from which write on (1 is the first) `act` is called, with the path.
    once: only at that one.
  """

  def __init__(self):
    self.lock = threading.Lock()
    self.base, self.seen, self.at, self.once, self.act = None, [], 0, False, None

  def __call__(self, event: str, arguments: tuple) -> None:
    if self.base is None or event not in ("open", "os.mkdir", "os.rename"):
      return
    path = arguments[event == "os.rename"]
    if event == "open" and not self._writes(*arguments[1:]):
      return
    if not isinstance(path, str | bytes | os.PathLike):
      return
    path = os.fsdecode(path)
    if not path.startswith(self.base) or path.endswith(".lock"):
      return
    with self.lock:
      self.seen.append(f"{event} {path[len(self.base) :]}")
      number = len(self.seen)
    if self.act and (number == self.at if self.once else number >= self.at):
      self.act(path)

  def _writes(self, mode, flags) -> bool:
    if isinstance(mode, str):
      return any(letter in mode for letter in "wax+")
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))

  def watch(self, base: pathlib.Path, at: int = 0, act=None, once: bool = False) -> None:
    self.base, self.seen, self.at, self.act, self.once = str(base), [], at, act, once


WRITES = Writes()


@pytest.fixture(scope="module", autouse=True)
def _hook():
  sys.addaudithook(WRITES)  # for the rest of the process: there is no way to remove one
  yield
  WRITES.base = None


def summary(workdir: pathlib.Path) -> dict:
  """All that may not depend on what happened on the way."""
  base = workdir.parent
  artefacts = [*base.glob("teachers/*/done.json"), *workdir.glob("phases/*/*/done.json")]
  return {
    "artefacts": {p.parent.name: json.loads(p.read_text())["sha256"] for p in artefacts},
    "cells": json.loads((workdir / "results.json").read_text())["cells"],
    "predictions": (workdir / "predictions" / "seed0.npz").read_bytes(),
    "metrics": {p.name: p.read_text() for p in (workdir / "metrics").iterdir()},
  }


def nothing_is_half_written(base: pathlib.Path) -> None:
  for path in base.rglob("*.json"):
    json.loads(path.read_text())
  for path in base.rglob("*.npz"):
    with np.load(path) as arrays:
      assert all(arrays[name] is not None for name in arrays.files)
  for path in base.rglob("report.html"):
    assert path.read_text().rstrip().endswith("</html>")
  assert not [*base.rglob(".*.tmp")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """(the summary of an undisturbed run, what it wrote in order)."""
  base = tmp_path_factory.mktemp("whole")
  WRITES.watch(base)
  found = run(base)
  WRITES.base = None
  assert not evidence.check(found).differences
  return summary(found), WRITES.seen


def goes_on(base: pathlib.Path, whole) -> None:
  """What a disturbed run left is whole, and the same call ends in the same bytes."""
  WRITES.base = None
  nothing_is_half_written(base)
  found = run(base)
  assert summary(found) == whole[0]
  assert not [path for path in base.rglob("*tmp*")]


EVERY = 11  # write: all of them are a matter of minutes


@pytest.mark.slow
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_is_full_from_any_write_on(whole, tmp_path, code):
  """`EVERY` = 1 tries each write there is."""

  def full(path):
    raise OSError(code, os.strerror(code), path)

  total = len(whole[1])
  assert total > 100
  for at in range(1 if code == errno.ENOSPC else EVERY // 2, total + 1, EVERY * 2):
    base = tmp_path / str(at)
    WRITES.watch(base, at, full)
    with pytest.raises(UserError, match=os.strerror(code)) as error:
      run(base)
    assert str(base) in str(error.value) and len(str(error.value)) < 500, whole[1][at - 1]
    goes_on(base, whole)


class Signals:
  """Sends so many SIGINTs; `sent` of them have gone. From a thread beside the main one it is one:
  there the run may have ended, as it should, before a second one comes."""

  def __init__(self, times: int):
    self.times, self.sent = times, 0

  def __call__(self, _path) -> None:
    main = threading.current_thread() is threading.main_thread()
    for number in range(self.times if main else 1):
      time.sleep(0.2 * number)  # two at once are one
      self.sent += 1
      os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.slow
def test_ctrl_c_at_any_write(whole, tmp_path):
  """Once: it stops where everything is saved, or is done; twice: it stops at once."""
  total, ended = len(whole[1]), set()
  for number, at in enumerate(range(6, total + 1, 17)):
    base, signals = tmp_path / str(at), Signals(1 + number % 2)
    WRITES.watch(base, at, signals, once=True)
    try:
      run(base)
      ended.add("done")
      last = "results.json" in whole[1][at - 1] or "report" in whole[1][at - 1]
      assert last or signals.sent < 2
    except Preempted as error:
      ended.add("saved")
      assert signals.sent == 1 and "SIGINT" in str(error)
    except KeyboardInterrupt:
      ended.add("at once")
      assert signals.sent == 2
    goes_on(base, whole)
  assert ended >= {"saved", "at once"}


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_while_networks_are_asked(whole, tmp_path, monkeypatch, times):
  from rkd_jax.story import Interview

  with monkeypatch.context() as patch:
    ask = Interview.__call__

    def asked(self, *args):
      Signals(times)(None)
      return ask(self, *args)

    patch.setattr(Interview, "__call__", asked)
    with pytest.raises(Preempted if times == 1 else KeyboardInterrupt):
      run(tmp_path)
  assert not (tmp_path / "run" / "predictions").exists()
  goes_on(tmp_path, whole)


@pytest.mark.slow
def test_a_clock_that_jumps_and_files_of_any_age(whole, tmp_path, monkeypatch):
  """Nothing is decided by the time of day, nor by the time that a file carries."""
  clock = {"ahead": 1e8}
  day, nanoseconds = time.time, time.time_ns
  monkeypatch.setattr(time, "time", lambda: day() + clock["ahead"])
  monkeypatch.setattr(time, "time_ns", lambda: nanoseconds() + int(clock["ahead"] * 1e9))

  def set_back(path):
    clock["ahead"] -= 1000

  WRITES.watch(tmp_path, 1, set_back)
  with monkeypatch.context() as patch:
    patch.setattr(experiment.results, "write", lambda *_: Signals(2)(None))
    with pytest.raises(KeyboardInterrupt):
      run(tmp_path)
  WRITES.base, clock["ahead"] = None, -2e8
  draw = random.Random(0)
  for path in tmp_path.rglob("*"):
    os.utime(path, (age := day() + draw.uniform(-1e9, 1e9), age))
  shutil.rmtree(*tmp_path.glob("run/phases/*/*/final"))  # the student is made again
  (left,) = [p for p in tmp_path.rglob("done.json") if "phases" in str(p)]
  left.unlink()
  goes_on(tmp_path, whole)


# What a kill leaves.


def test_unfinished_files_are_removed_and_others_are_not(tmp_path):
  ours = [
    ".results.json.0123abcd.tmp",
    "predictions/.seed0.npz.0123abcd.tmp",
    "metrics/.seed0.jsonl.0123abcd.tmp",
    "phases/seed0/student-0123/.done.json.0123abcd.tmp",
  ]
  others = [".notes.tmp", "results.json.tmp", "my/.x.json.0123abcd.tmp", "predictions/seed0.npz"]
  for name in (*ours, *others):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("half a file")
  with workdir.only_run(tmp_path):
    pass
  left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
  assert left == {*others, ".lock"}
  teacher = tmp_path / "teachers" / "0123"
  teacher.mkdir(parents=True)
  (teacher / ".done.json.0123abcd.tmp").write_text("half a file")
  with workdir.making(teacher, pytest.fail, lambda _: None):
    assert not [*teacher.iterdir()]


HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


def holder(path: pathlib.Path) -> subprocess.Popen:
  """Another process that holds a lock."""
  command = [sys.executable, "-c", HOLD, str(path)]
  process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
  assert process.stdout and process.stdout.readline() == "held\n"
  return process


def kill(process: subprocess.Popen) -> None:
  process.kill()
  process.wait()
  process.stdout.close()  # pyright: ignore[reportOptionalMemberAccess]


def test_a_lock_goes_with_its_holder(tmp_path):
  other = holder(tmp_path / ".lock")
  with pytest.raises(UserError, match="Another run is at work"), workdir.only_run(tmp_path):
    pytest.fail("two runs in one workdir")
  kill(other)
  with workdir.only_run(tmp_path):
    pass


def test_of_two_runs_that_want_one_teacher_one_waits(tmp_path):
  other, said = holder(tmp_path / ".0123.lock"), []

  def check(where):
    assert "waiting" in where
    kill(other)

  with workdir.making(tmp_path / "0123", said.append, check):
    pass
  assert len(said) == 1 and "Another process is making" in said[0]


def test_whoever_waits_can_be_stopped(tmp_path):
  other = holder(tmp_path / ".0123.lock")

  def stop(where):
    raise Preempted(where)

  with pytest.raises(Preempted), workdir.making(tmp_path / "0123", lambda _: None, stop):
    pytest.fail("it had the lock")
  kill(other)


def test_a_file_system_without_locks_is_explained(tmp_path, monkeypatch):
  def none(*_):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

  monkeypatch.setattr("fcntl.flock", none)
  with pytest.raises(UserError, match=r"cannot be locked.*choose a"), workdir.only_run(tmp_path):
    pytest.fail("without a lock")


def test_a_name_that_is_no_utf8_does_not_spoil_the_results(tmp_path):
  name = os.fsdecode(b"caf\xe9")
  results.write(tmp_path / "results.json", {"command": f"main.py --workdir {name}"}, [])
  run, _ = results.read(tmp_path / "results.json")
  assert run["command"].endswith(name)
  document = results.read_document(tmp_path / "results.json")
  assert document["sha256"] == results.seal(document)
