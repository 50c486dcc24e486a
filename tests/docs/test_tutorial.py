"""The tutorial, followed to the letter in an empty folder: files, commands, what it says."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from rkd_jax.reporting import results

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
  return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def rate(run: pathlib.Path, **fields: object) -> float | None:
  _, cells = results.read(run / "results.json")
  (cell,) = results.select(cells, **fields)
  return cell.value


@pytest.mark.slow
def test_the_tutorial_does_what_it_says(tmp_path):
  for code in blocks("python"):
    name = re.match(r"# (\S+\.py)\n", code)
    assert name, "a block of Python says which file it is"
    (tmp_path / name[1]).write_text(code, encoding="utf-8")
  environment = {
    **os.environ,
    "PATH": f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONPATH": str(ROOT),
  }
  for commands in blocks("bash"):
    subprocess.run(["bash", "-ec", commands], cwd=tmp_path, env=environment, check=True)

  known, mine, suspected = (tmp_path / "runs" / name for name in ("known", "mine", "suspected"))
  students = {"network": "student", "teacher": "poisoned"}
  assert rate(known, network="teacher", metric="asr") > 0.9
  assert rate(known, **students, method="kd", metric="asr") > 0.5
  assert rate(known, **students, method="agreement", metric="asr") < 0.1
  for run in (known, mine, suspected):
    assert (run / "report.html").exists()
  _, cells = results.read(mine / "results.json")
  assert {cell.value for cell in results.select(cells, metric="asr")} == {None}
  report = (mine / "report.html").read_text(encoding="utf-8")
  assert "Unknown" in report and "trusted" not in report.lower().replace("not trusted", "")
  (acc,) = results.select(cells, method="agreement", network="student", metric="acc")
  assert acc.value > 0.9 and list((mine / "phases" / "seed0").glob("student-*"))
  assert rate(suspected, network="teacher", metric="asr") > 0.9
  assert rate(suspected, method="none", network="student", metric="asr", labels=0.2) < 0.1
