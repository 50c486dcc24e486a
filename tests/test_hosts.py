"""Several processes that are one run: what they are told, what they agree on, and what a kill
leaves."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest

from configs import quickstart
from rkd_jax import experiment, hosts
from rkd_jax.errors import UserError
from rkd_jax.reporting import files, progress, writer
from rkd_jax.reporting.files import read_json
from rkd_jax.training import checkpoint, loop

ROOT = pathlib.Path(__file__).parents[1]
TOLD = {"RKD_COORDINATOR": "host0:1234", "RKD_PROCESSES": "4", "RKD_PROCESS": "1"}


def test_what_is_told_reaches_jax():
  assert hosts.told(*TOLD.values()) == {
    "coordinator_address": "host0:1234", "num_processes": 4, "process_id": 1,
    "cluster_detection_method": "deactivate",
  }  # fmt: skip


@pytest.mark.parametrize(
  ("change", "said"),
  [
    ({"RKD_PROCESS": ""}, "RKD_PROCESS not set"),
    ({"RKD_COORDINATOR": "", "RKD_PROCESSES": ""}, "RKD_COORDINATOR and RKD_PROCESSES not set"),
    ({"RKD_PROCESS": "4"}, "RKD_PROCESS is '4', RKD_PROCESSES '4'"),
    ({"RKD_PROCESS": "-1"}, "RKD_PROCESS is '-1'"),
    ({"RKD_PROCESSES": "many"}, "'many'"),
    ({"RKD_COORDINATOR": "host0"}, "RKD_COORDINATOR is 'host0'; it is HOST:PORT"),
    ({"RKD_COORDINATOR": "host0:http"}, "'host0:http'"),
  ],
)
def test_what_is_told_wrongly(change, said):
  with pytest.raises(UserError) as error:
    hosts.join(TOLD | change)
  assert said in str(error.value)


def test_one_process_joins_nobody():
  for environ in (
    {},
    {"SLURM_STEP_NUM_TASKS": "1"},
    {"SLURM_NTASKS": "4"},
    TOLD | {"RKD_PROCESSES": "1", "RKD_PROCESS": "0"},
  ):
    hosts.join(environ)
    assert hosts.first() and hosts.count() == 1


@pytest.mark.parametrize(
  ("environ", "wanted"),
  [
    ({"SLURM_STEP_NUM_TASKS": "2"}, True),
    ({"SLURM_STEP_NUM_TASKS": "1"}, False),
    ({"SLURM_NTASKS": "2"}, False),  # of an allocation, outside of any step
    ({"OMPI_COMM_WORLD_SIZE": "8"}, True),
    ({"TPU_WORKER_HOSTNAMES": "t0,t1"}, True),
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
    ({"JAX_COORDINATOR_ADDRESS": "job-0.svc:8476"}, True),
    ({"SLURM_STEP_NUM_TASKS": "four"}, False),
  ],
)
def test_clusters_are_seen(environ, wanted):
  assert hosts.several(environ) == wanted


@pytest.fixture
def second(monkeypatch):
  """This process as the second of two."""
  monkeypatch.setattr(hosts, "_number", 1)
  monkeypatch.setattr(hosts, "_count", 2)


def test_the_others_write_nothing_and_say_nothing(second, tmp_path, capfd):
  files.write_json(tmp_path / "a.json", {})
  with writer.written(tmp_path / "metrics.jsonl", None, 0) as lines:
    lines.write(0, {"loss": 1.0})
    lines.flush()
  say = progress.Reporter()
  say.say("hello")
  say.warn("careful")
  assert not list(tmp_path.iterdir()) and capfd.readouterr() == ("", "")


@pytest.mark.parametrize("what", ["configs", "images", "workdirs", "versions"])
def test_who_differs_is_named(second, monkeypatch, tmp_path, what):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(hosts, "every", lambda told: [told, told | {what: "another"}])
  with pytest.raises(UserError, match=f"Processes 0 and 1 of the run have different {what}"):
    experiment.run(quickstart.get_config("smoke"), tmp_path / "run", quiet=True)
  assert not (tmp_path / "run").exists()


def test_what_several_processes_cannot_do(second, monkeypatch, tmp_path):
  attacked = quickstart.get_config("smoke")
  attacked.eval.adversarial.eps = (0.1,)
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  with pytest.raises(UserError, match="adversarial is not measured by several"):
    experiment.run(attacked, tmp_path / "run", quiet=True)
  monkeypatch.setattr(jax, "process_count", lambda: 4)
  with pytest.raises(UserError, match="started as 4 processes that the run does not know of"):
    experiment.run(attacked, tmp_path / "run", quiet=True)
  assert not (tmp_path / "run").exists()


def test_a_workdir_that_others_do_not_see(second, monkeypatch, tmp_path):
  monkeypatch.setattr(experiment, "SHARED_SECONDS", 1)
  monkeypatch.setattr(hosts, "every", lambda sees: [True, sees])
  with pytest.raises(UserError, match="not seen by process 1"):
    experiment.check_shared(tmp_path)
  (tmp_path / "config.json").touch()
  experiment.check_shared(tmp_path)


def test_a_damaged_checkpoint_is_no_matter_of_several(second, tmp_path):
  with pytest.raises(UserError, match=r"cannot be read \(ValueError: odd\).*as one process"):
    checkpoint.alone(tmp_path, ValueError("odd"))


def test_signals_are_looked_at_once_in_a_while(second, monkeypatch):
  asked, stop, now = [], loop.StopSignal(), [0.0]
  monkeypatch.setattr(time, "monotonic", lambda: now[0])
  monkeypatch.setattr(hosts, "every", lambda own: asked.append(own) or [["", 0.1]])

  def looks(steps) -> list[int]:
    found = []
    for step in steps:
      before = len(asked)
      assert not stop.asked(step)
      found += [step] * (len(asked) - before)
    return found

  stop.check("between two phases")  # a tenth of a second for one round, then for twenty
  assert looks(range(40, 60)) == [40, 41]
  stop.check("between two phases")
  stop.check("between two phases")
  assert looks(range(50, 58)) == [50, 51]  # how long a round of the next phase takes is not known
  monkeypatch.setattr(hosts, "every", lambda own: [own, ["SIGTERM", 0.1]])
  assert stop.asked(80) == "SIGTERM"
  with pytest.raises(loop.Preempted, match="SIGTERM came between"):
    stop.check("between two phases")


def test_what_the_first_cannot_do_all_are_told(second, monkeypatch):
  def refuse():
    raise UserError("The disk is full.")

  monkeypatch.setattr(hosts, "_all", lambda own: [own, own])
  monkeypatch.setattr(hosts, "_number", 0)
  with pytest.raises(UserError, match="The disk is full"):
    hosts.decide(refuse)
  assert hosts.decide(lambda: {"a": [1]}) == {"a": [1]}


def test_the_local_launcher_tells_each_who_it_is(tmp_path):
  fake = tmp_path / "python"
  fake.write_text(
    '#!/bin/sh\necho "$RKD_COORDINATOR $RKD_PROCESS of $RKD_PROCESSES: $*"\nexit $RKD_PROCESS\n'
  )
  fake.chmod(0o755)
  path = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "RKD_PORT": "1234"}
  command = [ROOT / "launch" / "local.sh", "2", "--config", "a b.py"]
  done = subprocess.run(command, env=os.environ | path, capture_output=True, text=True)
  said = "localhost:1234 {} of 2: -m rkd_jax.main --config a b.py"
  assert sorted(done.stdout.splitlines()) == [said.format(0), said.format(1)]
  assert done.returncode == 1
  done = subprocess.run(command[:1], capture_output=True, text=True)
  assert done.returncode and "Usage: launch/local.sh N" in done.stderr


SMALL = {
  "methods": "kd", "clean_teacher_seeds": 0, "all_labels_control": False, "labels": 0.0,
  "contamination": 0.0, "eval_batch": 20, "save_every": 10, "data.train": 40.0, "data.test": 20.0,
  "data.holdout": 20.0, "teacher.network": "resnet-8-2", "student.network": "resnet-8-2",
  "teacher.steps": 4, "student.steps": 120, "teacher.batch_size": 16, "student.batch_size": 16,
}  # fmt: skip


class Processes:
  """A run's processes, all of them on this machine, with so many devices together."""

  def __init__(self, workdir: pathlib.Path, count: int, devices: int = 2):
    with socket.socket() as free:
      free.bind(("localhost", 0))
      port = free.getsockname()[1]
    command = [sys.executable, "-m", "rkd_jax.main", "--config", "configs/quickstart.py:smoke"]
    command += [f"--config.{key}={value}" for key, value in SMALL.items()]
    told = {"RKD_COORDINATOR": f"localhost:{port}", "RKD_PROCESSES": str(count)}
    told["JAX_NUM_CPU_DEVICES"] = str(devices // count)
    self.started = [
      subprocess.Popen(
        [*command, "--workdir", str(workdir)],
        cwd=ROOT, env=os.environ | told | {"RKD_PROCESS": str(number)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
      )
      for number in range(count)
    ]  # fmt: skip

  def until(self, found) -> None:
    while not found():
      assert all(process.poll() is None for process in self.started), self.ended()
      time.sleep(0.01)

  def ended(self) -> list[tuple[int, str]]:
    """(status, output) of each."""
    said = [process.communicate(timeout=300)[0] for process in self.started]
    return [(p.returncode, text) for p, text in zip(self.started, said, strict=True)]


def bytes_of(workdir: pathlib.Path) -> dict[str, str]:
  """What a run's networks and predictions are."""
  made = read_json(workdir / "results.json")["run"]
  return made["predictions"] | {phase["name"]: phase["sha256"] for phase in made["phases"]}


@pytest.mark.slow
def test_two_processes_are_as_one_whoever_is_killed(tmp_path):
  one, two = tmp_path / "one" / "run", tmp_path / "two" / "run"
  (status, said), = Processes(one, 1).ended()  # fmt: skip
  assert status == 0, said

  def saved() -> set[int]:
    return {int(p.name) for p in two.glob("phases/*/student*/checkpoints/*") if p.name.isdecimal()}

  running = Processes(two, 2)
  running.until(saved)
  running.started[1].kill()
  (first, said), (status, _) = running.ended()
  assert status == -signal.SIGKILL and first != 0, said
  before = max(saved())
  assert not (two / "results.json").exists()

  running = Processes(two, 2)
  running.until(lambda: max(saved(), default=0) > before)
  running.started[1].terminate()  # one is told, all save and leave
  (first, said), (second, other) = running.ended()
  assert (first, second) == (75, 75), said + other
  assert "SIGTERM came" in said and "SIGTERM came" not in other

  resumed = said
  (status, said), (second, other) = Processes(two, 2).ended()
  assert (status, second) == (0, 0), said + other
  assert "from step" in resumed + said and "Report:" in said and "Report:" not in other
  assert bytes_of(two) == bytes_of(one)
  lines = [next((w / "metrics").glob("seed0-student*")).read_bytes() for w in (one, two)]
  assert lines[0] == lines[1]

  (two / "results.json").unlink()
  (status, said), = Processes(two, 1).ended()  # fmt: skip
  assert status == 0 and "found, made before" in said and bytes_of(two) == bytes_of(one)
