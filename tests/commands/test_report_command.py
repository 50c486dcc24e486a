"""`python -m rkd_jax.commands.report`: one run again, several beside each other, mistakes."""

import html
import pathlib
import re
import shutil

import pytest

from rkd_jax.commands import report
from rkd_jax.reporting import results
from rkd_jax.reporting.results import Cell

QUICKSTART = pathlib.Path(__file__).parents[2] / "results" / "quickstart"


def run(path, acc=0.9, asr=0.5, methods=("kd",), labels=0.05, **config):
  """A run of one seed."""
  cells = []
  for method in methods:
    fields = {"method": method, "network": "student", "teacher": "poisoned", "seed": 0}
    fields |= {"dataset": "digits", "backdoor": "badnets", "labels": labels}
    cells += [Cell(metric="acc", value=acc, **fields), Cell(metric="asr", value=asr, **fields)]
  manifest = {"config_name": "x", "seeds": [0], "config": {"methods": list(methods), **config}}
  path.mkdir(parents=True)
  results.write(path / "results.json", manifest, cells)
  return path


def shown(path):
  """The page's words."""
  text = re.sub(r"<style>.*?</style>|<[^>]*>", " ", path.read_text(), flags=re.DOTALL)
  return " ".join(html.unescape(text).replace("\u202f", " ").split())


def test_one_run_again(tmp_path, capsys):
  path = run(tmp_path / "one")
  assert report.main([str(path)]) == 0
  assert capsys.readouterr().out.strip() == str(path / "report.html")
  assert "Carried over by undefended kd" in shown(path / "report.html")
  again = (path / "report.html").read_bytes()
  assert report.main([str(path), "--out", str(tmp_path / "new" / "page.html")]) == 0
  assert (tmp_path / "new" / "page.html").read_bytes() == again


def test_an_old_run_still_has_its_report(tmp_path):
  newer = shutil.ignore_patterns("analysis.npz", "examples.npz", "metrics")
  shutil.copytree(QUICKSTART, tmp_path / "old", ignore=newer)
  assert report.main([str(tmp_path / "old"), "--out", str(tmp_path / "page.html")]) == 0
  text = shown(tmp_path / "page.html")
  assert "Removed by rkd (accuracy 99" in text and "Attack success by true class" in text
  assert "Feature variance by stage" not in text


def test_several_runs_on_one_page(tmp_path, capsys):
  one = run(tmp_path / "one", asr=0.5, seed=1, name="a|b<c>")
  two = run(tmp_path / "two", acc=0.8, asr=0.0, methods=("kd", "ofd"), seed=2, name="a|b<c>")
  assert report.main([str(one), str(two)]) == 0
  page = one / "comparison.html"
  assert capsys.readouterr().out.strip() == str(page)
  text = shown(page)
  assert "2 runs compared" in text and "one digits · badnets Carried over by undefended kd" in text
  assert "kd 90.0 % / 50.0 % carried over 80.0 % / 0.0 % not carried over" in text
  assert "ofd – 80.0 % / 0.0 % nothing to remove" in text
  settings = text.partition("Settings that differ")[2]
  assert "seed 1 2" in settings and 'methods ["kd"] ["kd", "ofd"]' in settings
  assert "a|b<c>" not in settings  # it is the same in both
  assert "Keys that only some runs have" not in settings


def test_keys_of_one_run_alone_are_folded(tmp_path):
  one, two = run(tmp_path / "one", same=1), run(tmp_path / "two", same=1, method={"new": {"a": 3}})
  text = shown(report.write([one, two], None)).partition("Settings that differ")[2]
  assert text.startswith(
    " All keys that every run has are the same. Keys that only some runs have (1)"
  )
  assert "method.new.a – 3" in text


def test_shares_of_labels_are_told_apart_over_runs(tmp_path):
  runs = [run(tmp_path / name, labels=labels) for name, labels in (("a", 0.05), ("b", 0.25))]
  report.write(runs, tmp_path / "page.html")
  text = shown(tmp_path / "page.html")
  assert "kd (5.0 % labels) 90.0 % / 50.0 % carried over –" in text
  assert "kd (25.0 % labels) – 90.0 % / 50.0 % carried over" in text


def test_runs_of_one_name_are_told_apart(tmp_path):
  runs = [run(tmp_path / where / "same") for where in "ab"]
  text = shown(report.write(runs, None))
  assert all(str(path) in text for path in runs) and "All runs have the same config" in text


@pytest.mark.parametrize(
  "given, said",
  [
    (["nowhere"], "no file"),
    (["one", "nowhere"], "no file"),
    (["one", "one"], "given twice"),
    (["one", "./one/../one"], "given twice"),
    (["one", "--out", "one"], "is a directory; name the file"),
  ],
)
def test_mistakes_are_told(tmp_path, monkeypatch, capsys, given, said):
  run(tmp_path / "one")
  monkeypatch.chdir(tmp_path)
  before = sorted(tmp_path.rglob("*"))
  assert report.main(given) == 2
  assert said in capsys.readouterr().err and sorted(tmp_path.rglob("*")) == before


def test_without_a_run_there_is_usage(capsys):
  with pytest.raises(SystemExit) as error:
    report.main([])
  assert error.value.code == 2 and "DIR" in capsys.readouterr().err
