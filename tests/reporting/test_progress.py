"""What is seen while a run goes on: bars in a terminal, lines elsewhere, nothing that breaks."""

import os
import pathlib
import pty
import re
import select
import subprocess
import sys
import textwrap

import pytest

from rkd_jax.reporting import summary
from rkd_jax.reporting.plan import Plan, about
from rkd_jax.reporting.progress import Reporter
from rkd_jax.reporting.results import Cell

ROOT = pathlib.Path(__file__).parents[2]

# How long it still takes.


def test_nothing_is_said_before_anything_was_measured():
  plan = Plan([("seed 0  teacher: supervised", 100), ("seed 0  student: kd", 50)])
  assert plan.ahead() is None and about(None) == ""


def test_phases_of_the_same_name_and_method_say_most():
  titles = [f"seed {s}  {name}" for s in (0, 1) for name in ("teacher: supervised", "student: kd")]
  plan = Plan([(title, 100) for title in titles])
  plan.begin(titles[0])
  plan.end(titles[0], 100, 20.0)
  assert plan.ahead() == pytest.approx(300 * 0.2)  # by the only phase there is
  plan.begin(titles[1])
  plan.end(titles[1], 50, 5.0)  # half of it was made before
  assert plan.ahead() == pytest.approx(100 * 0.2 + 100 * 0.1)
  assert (plan.finished, plan.total) == (2, 4)


def test_a_running_phase_is_what_those_like_it_are_measured_by():
  plan = Plan([("seed 0  student: kd", 10), ("seed 1  student: kd", 10)])
  plan.begin("seed 0  student: kd")
  assert plan.ahead("seed 0  student: kd", 3.0) == 30.0
  assert plan.ahead("seed 0  student: kd") is None


def test_phases_of_one_title_are_told_apart_by_number_and_unforeseen_ones_counted():
  plan = Plan([("seed 0  student: kd", 10), ("seed 0  student: kd", 30)])
  plan.begin("seed 0  student: kd")
  plan.end("seed 0  student: kd", 10, 10.0)
  assert plan.ahead() == 30.0
  plan.begin("seed 0  student: another")
  assert plan.total == 3 and plan.ahead() == 30.0
  plan.end("seed 0  student: another")  # found: it says nothing of time
  assert plan.finished == 2


@pytest.mark.parametrize(
  "seconds, words",
  [(0.4, "0:00"), (59.6, "1:00"), (150, "2:30"), (3725, "1:02:05"), (90000, "1 d 1 h")],
)
def test_durations(seconds, words):
  assert about(seconds) == f"about {words}"


def test_the_time_of_day_is_not_asked(monkeypatch, capsys):
  """A clock that is set back or forth changes no estimate, and no line."""
  clock = iter([1e9, -5.0, 4e9] * 100)
  monkeypatch.setattr("time.time", lambda: next(clock))
  say = Reporter()
  say.expect([("seed 0  teacher: supervised", 2)])
  with say.phase("seed 0  teacher: supervised", 0, 2) as tick:
    tick(1)
  assert re.fullmatch(r"seed 0  teacher: supervised +2 steps +0\.\d s\n", capsys.readouterr().out)


# In a terminal, in a pipe, in a file.

SCRIPT = textwrap.dedent("""
  import sys, time
  from rkd_jax.reporting import terminal
  from rkd_jax.reporting.progress import Reporter
  terminal.ready()
  say = Reporter(quiet="quiet" in sys.argv, debug="debug" in sys.argv)
  name = "a-method-of-a-very-long-name-that-somebody-chose-for-reasons-of-their-own"
  titles = [f"seed {s}  student: {name}" for s in (0, 1)]
  say.expect([(title, 40) for title in titles])
  say.debug("where things lie")
  for title in titles:
    with say.phase(title, 0, 40) as tick:
      for step in range(0, 41, 10):
        tick(step)
        time.sleep(0.12)
  say.say("\\u22120.4\\u202f% \\u2013 " + "x" * 150)
  say.warn("careful")
""")


def environment(**changes: str) -> dict[str, str]:
  plain = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
  return {**plain, "PYTHONPATH": str(ROOT), "TERM": "xterm", **changes}


def seen(columns: int, *arguments: str, **changes: str) -> str:
  """What a terminal of that width gets."""
  master, slave = pty.openpty()
  command = ["sh", "-c", f'stty cols {columns} rows 24; exec "$@"', "sh"]
  process = subprocess.Popen(
    [*command, sys.executable, "-c", SCRIPT, *arguments],
    stdin=slave, stdout=slave, stderr=slave, env=environment(**changes),
  )  # fmt: skip
  os.close(slave)
  text = b""
  while select.select([master], [], [], 30)[0]:
    try:
      text += os.read(master, 65536)
    except OSError:  # its end
      break
  os.close(master)
  assert process.wait() == 0, text.decode(errors="replace")
  return text.decode(errors="replace")


CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.mark.parametrize("columns", [80, 40])
def test_bars_in_a_terminal_fit_its_width(columns):
  text = seen(columns)
  assert "\x1b[" in text and "/40" in text
  bars = [
    line for line in re.split(r"[\r\n]+", CONTROL.sub("", text)) if re.search(r"\d+/(40|2)\b", line)
  ]
  assert len(bars) >= 4 and max(map(len, bars)) <= columns
  if columns == 80:
    assert any("phase 2 of 2" in line for line in bars)
    assert any("about 0:" in line for line in bars)


@pytest.mark.parametrize("arguments, changes", [(["quiet"], {}), ([], {"TERM": "dumb"})])
def test_no_bars_where_they_are_not_wanted_or_cannot_be(arguments, changes):
  text = seen(80, *arguments, **changes)
  assert "/40" not in text and "careful" in text
  assert ("40 steps" in text) == (not arguments)


def piped(*arguments: str, **changes: str) -> tuple[str, str]:
  command = [sys.executable, "-c", SCRIPT, *arguments]
  ran = subprocess.run(command, capture_output=True, env=environment(**changes), check=True)
  return ran.stdout.decode(), ran.stderr.decode()


@pytest.mark.parametrize("changes", [{}, {"FORCE_COLOR": "1"}])
def test_a_pipe_gets_lines(changes):
  out, err = piped(**changes)
  lines = out.splitlines()
  assert len(lines) == 3 and "x" * 150 in lines[2]  # whole: a path can be copied
  assert not re.search(r"[\r\x00-\x08]", out) and "/40" not in out
  if not changes:
    assert "\x1b" not in out + err and err == "warning: careful\n"


def test_debug_says_more_and_quiet_only_warns():
  assert "debug: where things lie" in piped("debug")[0]
  out, err = piped("quiet")
  assert out == "" and err == "warning: careful\n"


@pytest.mark.parametrize(
  "changes",
  [
    {"PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"PYTHONIOENCODING": "latin-1"},
  ],
)
def test_an_encoding_that_lacks_letters(changes):
  assert "-0.4 % - " in piped(**changes)[0]


def test_a_terminal_that_is_not_utf8():
  assert "/40" in seen(80, PYTHONIOENCODING="ascii")


@pytest.mark.parametrize("shell", ['"$@" | head -n 1', '"$@" >&-', '"$@" 2>&-'])
def test_output_that_nobody_reads_ends_nothing(shell, tmp_path):
  script = SCRIPT + f"\nopen({str(tmp_path / 'end')!r}, 'w').close()\n"
  command = ["bash", "-c", f"set -o pipefail; {shell}", "sh", sys.executable, "-c", script]
  ran = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
  assert ran.returncode == 0 and (tmp_path / "end").exists(), ran.stderr
  assert "Traceback" not in ran.stderr and "Exception" not in ran.stderr


# The summary.


def cells(seeds=(0, 1)) -> list[Cell]:
  found, values = [], {"none": (0.8, 0.01, None), "kd": (0.9, 0.95, 0.9), "ours": (0.89, 0.02, 0.0)}
  for seed in seeds:
    shared = {"dataset": "digits", "backdoor": "badnets", "seed": seed, "teacher_seed": seed}
    found.append(Cell(metric="acc", value=0.99, network="teacher", teacher="poisoned", **shared))
    for method, (acc, asr, carried) in values.items():
      fields = {**shared, "network": "student", "method": method}
      fields |= {"teacher": "poisoned", "base": "kd"} if method != "none" else {}
      found += [
        Cell(metric="acc", value=acc, **fields),
        Cell(metric="asr", value=asr + 0.01 * seed, **fields),
      ]
      if carried is not None:
        found.append(Cell(metric="carried_asr", value=carried, **fields))
  return found


def test_the_summary_says_what_the_report_says():
  manifest = {"config": {"methods": ["none", "kd", "ours"]}, "seeds": [0, 1]}
  lines = [line.replace("\u202f", " ") for line in summary.lines(manifest, cells())]
  assert lines == [
    "Network     ACC     ASR  Carried  Verdict",
    "teacher  99.0 %       –        –",
    "none     80.0 %   2.0 %        –",
    "kd       90.0 %  96.0 %   90.0 %  carried over",
    "ours     89.0 %   3.0 %    0.0 %  removed",
    "ACC: mean of 2 seeds; ASR and carried ASR: the worst of them.",
  ]


def test_long_names_are_cut_to_the_width():
  long = [c if c.method != "ours" else Cell(**{**vars(c), "method": "m" * 90}) for c in cells((0,))]
  lines = summary.lines({"config": {}, "seeds": [0]}, long)
  assert max(map(len, lines)) <= 80
  assert any(re.search(r"m{20,}\.\.\. +89\.0.* removed$", line) for line in lines)


def test_a_run_without_cells_has_no_rows():
  assert summary.lines({"config": {}}, [])[0].startswith("Network")
