"""The command that makes numbers again: what it prints, and its status."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from rkd_jax.commands import table, verify

ROOT = pathlib.Path(__file__).parents[2]
QUICKSTART = ROOT / "results" / "quickstart"


@pytest.fixture
def project(tmp_path):
  """A folder with a run, and a README with its table."""
  shutil.copytree(QUICKSTART, tmp_path / "results" / "quickstart")
  shutil.copytree(QUICKSTART, tmp_path / "results" / "pair" / "a")
  shutil.copytree(QUICKSTART, tmp_path / "results" / "pair" / "b")
  readme = tmp_path / "docs" / "README.md"
  readme.parent.mkdir()
  readme.write_text("".join(f"<!-- table:{n} -->\n<!-- /table -->\n\n" for n in NAMES))
  for name in NAMES:
    table.insert(readme, name, verify.rendered(name, readme))
  return tmp_path


NAMES = (
  "quickstart",
  "pair",
  "quickstart against=kd",
  "quickstart+pair against=kd",
  "quickstart+pair only=kd,rkd",
)


def call(capsys, *arguments) -> tuple[int, str, str]:
  status = verify.main([str(a) for a in arguments])
  return status, *capsys.readouterr()


def test_runs_and_tables_that_hold(project, capsys):
  runs, readme = project / "results" / "quickstart", project / "docs" / "README.md"
  status, out, err = call(capsys, runs, "--docs", readme)
  assert status in (verify.EQUAL, verify.PARTLY) and not err
  assert "153 cells" in out and "5 tables" in out and "differs" not in out


def test_a_changed_digit_of_a_run(project, capsys):
  path = project / "results" / "quickstart" / "results.json"
  text = path.read_text()
  count = re.search(r'"count": (4\d\d)', text)
  wrong = int(count[1]) - 1
  path.write_text(text[: count.start(1)] + str(wrong) + text[count.end(1) :])
  status, out, _ = call(capsys, path.parent)
  assert status == verify.DIFFERS
  said = f"differs: teacher poisoned teacher, seed 0, acc: count is {wrong} there, {count[1]}"
  assert said in out


@pytest.mark.parametrize("name", NAMES)
def test_a_changed_digit_of_a_table(project, capsys, name):
  readme = project / "docs" / "README.md"
  text = readme.read_text()
  at = text.index(f"<!-- table:{name} -->") + len(name)
  digit = re.compile(r"(?<=[ .])\d(?=\.| |,|\u202f)").search(text, at)
  readme.write_text(f"{text[: digit.start()]}{9 - int(digit[0])}{text[digit.end() :]}")
  status, out, _ = call(capsys, "--docs", readme)
  assert status == verify.DIFFERS and f"differs: the table {name}\n" in out


def test_a_table_that_lacks_a_line(project, capsys):
  readme = project / "docs" / "README.md"
  lines = readme.read_text().splitlines(keepends=True)
  readme.write_text("".join(line for line in lines if not line.startswith("| kd")))
  assert call(capsys, "--docs", readme)[0] == verify.DIFFERS


@pytest.mark.parametrize("lost", ["<!-- /table -->", "/table -->\n"])
def test_a_table_without_its_end_is_not_passed_over(project, capsys, lost):
  readme = project / "docs" / "README.md"
  readme.write_text(readme.read_text().replace(lost, "", 1))
  status, _, err = call(capsys, "--docs", readme)
  assert status == verify.UNREADABLE and "a table has no end" in err and str(readme) in err


def test_predictions_of_another_run_are_told_as_such(project, capsys):
  run = project / "results" / "quickstart"
  other = ROOT / "results" / "ablation_agreement" / "predictions" / "seed0.npz"
  shutil.copy(other, run / "predictions")
  status, out, err = call(capsys, run)
  assert status == verify.DIFFERS and not err
  assert "seed0.npz is not the file that the run left" in out


def test_a_table_of_no_run_and_a_folder_without_one(project, capsys):
  other = project / "other.md"
  other.write_text("<!-- table:nowhere -->\n<!-- /table -->\n")
  status, _, err = call(capsys, project, "--docs", other, project / "none.md")
  assert status == verify.UNREADABLE
  assert "results/nowhere" in err and "results.json" in err and "none.md" in err


def test_the_gravest_is_the_status_and_hides_nothing(project, capsys):
  path = project / "results" / "quickstart" / "results.json"
  document = json.loads(path.read_text())
  del document["cells"][7]
  path.write_text(json.dumps(document))
  status, out, err = call(capsys, project, path.parent)
  assert status == verify.DIFFERS and "the cell is missing" in out and "error: " in err
  with pytest.raises(SystemExit):
    call(capsys)


def test_many_differences_are_counted_not_poured_out(project, capsys):
  path = project / "results" / "quickstart" / "results.json"
  document = json.loads(path.read_text())
  document["cells"] = document["cells"][:9]
  path.write_text(json.dumps(document))
  _, out, _ = call(capsys, path.parent)
  assert len(out.splitlines()) < 30 and re.search(r"and \d+ more", out)


def test_as_a_command_whose_reader_has_gone():
  command = [sys.executable, "-m", "rkd_jax.commands.verify", "--docs", "README.md"]
  ran = subprocess.run(
    ["sh", "-c", '"$@" | true', "sh", *command],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  assert "Traceback" not in ran.stderr and "Exception" not in ran.stderr


def test_the_readme_shows_what_was_measured(capsys):
  status, out, _ = call(capsys, "--docs", *ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))
  assert status == verify.EQUAL, out
