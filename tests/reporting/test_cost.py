"""What a run cost and how it is run again, from manifests by hand."""

import pytest

from rkd_jax.reporting import cost, rerun
from rkd_jax.reporting.results import Cell

GB = 1024**3


def phase(key, seconds, speed, seed=0, method="kd", name="student", teacher="poisoned", peak=None):
  return {
    "key": key, "seconds": seconds, "images_per_second": speed, "seed": seed, "method": method,
    "name": name, "teacher": teacher, "steps": 10, "peak_memory": peak,
  }  # fmt: skip


PHASES = [
  phase("t", 30.0, 10.0, method="supervised", name="teacher"),
  phase("w", 2.0, 100.0, method="supervised", name="alone", teacher=None),
  phase("k", 4.0, 50.0, peak={"device": None, "host": GB}),
  phase("k1", 8.0, 50.0, seed=1, peak={"device": None, "host": 3 * GB}),
  phase("kc", 99.0, 1.0, teacher="clean"),
]
COSTS = [
  {"seed": 0, "method": "kd", "teacher": "poisoned", "phases": ["k"]},
  {"seed": 1, "method": "kd", "teacher": "poisoned", "phases": ["k1"]},
  {"seed": 0, "method": "rkd", "teacher": "poisoned", "phases": ["w", "k", "gone"]},
  {"seed": 0, "method": "kd", "teacher": "clean", "phases": ["kc"]},
]


def test_means_over_seeds_of_sums_over_phases():
  teacher, kd, rkd = cost.table(PHASES, COSTS)
  assert teacher["method"] == "teacher" and teacher["time"] == "30.0\u202fs"
  assert kd == {
    "method": "kd", "phases": "1", "steps": "10", "time": "6.0\u202fs", "speed": "50",
    "device": "–", "host": "3.0\u202fGB",
  }  # fmt: skip
  assert (rkd["phases"], rkd["steps"], rkd["time"]) == ("2", "20", "6.0\u202fs")
  assert rkd["speed"] == "67"  # 2 s at 100 and 4 s at 50 are 400 images in 6 s


def test_an_old_manifest_has_a_line_for_each_phase():
  found = [{k: v for k, v in p.items() if k not in ("key", "peak_memory")} for p in PHASES]
  lines = cost.table(found, [])
  assert [line["method"] for line in lines] == ["teacher", "supervised, alone", "kd, student"]
  assert lines[2]["time"] == "6.0\u202fs" and lines[2]["host"] == "–"


def test_manifests_of_anyone():
  assert cost.table([], []) == []
  odd = [{"seconds": "long", "steps": None, "peak_memory": 3, "method": "x"}]
  assert cost.table(odd, [])[0]["time"] == "0.0\u202fs"


@pytest.mark.parametrize(
  "value, text",
  [
    (None, "–"),
    (0, "0\u202fB"),
    (1023, "1023\u202fB"),
    (1536, "1.5\u202fKB"),
    (5 * GB, "5.0\u202fGB"),
  ],
)
def test_bytes(value, text):
  assert cost.memory(value) == text


def test_durations():
  assert [cost.duration(s) for s in (None, 3, 300, 9000)] == [
    "–", "3.0\u202fs", "5.0\u202fmin", "2.5\u202fh",
  ]  # fmt: skip


def test_the_command_can_be_given_again():
  run = {"command": "main.py --config configs/a.py --config.seeds=3,4 --config.method.name=x"}
  assert rerun.command(run).splitlines() == [
    "python -m rkd_jax.main --config configs/a.py \\",
    "  --config.seeds=3,4 \\",
    "  --config.method.name=x",
  ]
  assert rerun.overrides(run) == ["seeds=3,4", "method.name=x"]
  spaced = {"command": "rkd --config a.py '--config.data.name=folder:my images' --workdir b"}
  assert rerun.command(spaced).splitlines() == [
    "python -m rkd_jax.main --config a.py \\",
    "  '--config.data.name=folder:my images' \\",
    "  --workdir b",
  ]
  assert rerun.overrides(spaced) == ["data.name=folder:my images"]
  assert rerun.command({"command": "/usr/bin/rkd --x"}) == "python -m rkd_jax.main --x"
  assert rerun.command({"command": "python other.py"}) == "python other.py"
  assert rerun.command({}) == "" and rerun.overrides({"command": "x '--config.a=1"}) == []
  assert rerun.install({"versions": {"jax": "1", "python": "3", "a b": "2"}}) == (
    "pip install jax==1 'a b==2'"
  )
  assert rerun.install({"versions": "?"}) == ""


def test_configs_are_flat():
  config = {"a": {"b": 1, "c": {}}, "d": [1, "x"]}
  assert rerun.flat(config) == {"a.b": "1", "a.c": "{}", "d": '[1, "x"]'}


def test_what_is_left_open_follows_from_the_cells():
  fields = {"network": "student", "metric": "asr", "backdoor": "badnets", "teacher": "poisoned"}
  cells = [Cell(**fields, n=450, count=0, value=0.0, seed=s, teacher_seed=s) for s in (0, 1)]
  said = {line["what"]: line["why"].replace("\u202f", " ") for line in rerun.limits(cells, False)}
  assert "Only badnets was tried" in said["Other triggers"]
  assert "450 triggered images even 0 hits leave up to 0.8 %" in said["An ASR of exactly zero"]
  assert said["Every teacher"].startswith("2 teachers were")
  assert "That the backdoor came from the teacher" in said
  clean = [*cells, Cell(**{**fields, "teacher": "clean"}, value=0.0)]
  assert "That the backdoor came from the teacher" not in {
    line["what"] for line in rerun.limits(clean, False)
  }
  assert "No trigger was tried" in rerun.limits([], True)[0]["why"]
