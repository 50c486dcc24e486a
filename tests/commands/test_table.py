"""The Markdown table of a run, and its place in a file."""

import pytest

from rkd_jax.commands import table
from rkd_jax.reporting import results
from rkd_jax.reporting.results import Cell

COMMON = {"dataset": "digits", "backdoor": "badnets"}
POOL = {**COMMON, "threat": "contaminated", "contamination": 0.02, "network": "student"}


def cells(seeds=(0, 1)):
  found = []
  for seed in seeds:
    ours = {"seed": seed, "teacher_seed": seed}
    teacher = {**COMMON, **ours, "network": "teacher", "teacher": "poisoned"}
    found += [Cell(metric="acc", value=0.99, **teacher), Cell(metric="asr", value=1.0, **teacher)]
    kd = {**POOL, **ours, "method": "kd", "teacher": "poisoned"}
    found += [
      Cell(metric="acc", value=0.9 + 0.02 * seed, ci95=(0.8, 0.95), **kd),
      Cell(metric="asr", value=0.5 + 0.2 * seed, ci95=(0.4, 0.8), **kd),
      Cell(metric="carried_asr", value=None if seed else -0.004, **kd),
      Cell(metric="asr", value=0.0, **{**kd, "teacher": "clean"}),
    ]
    none = {**COMMON, **ours, "network": "student", "method": "none"}
    found.append(Cell(metric="acc", value=0.8, ci95=(0.7, 0.9), **none))
  return found


MANIFEST = {
  "config_name": "quickstart",
  "config": {"methods": ["none", "kd", "agreement"], "method": {"kd": {"alpha": 0.9}}},
  "versions": {"rkd_jax": "0.1.0"},
  "git": "0123456789abcdef0123+",
  "devices": ["cpu"],
  "phases": [{"seconds": 60.0}, {"seconds": 30.0}],
}


def made(seeds=(0, 1)):
  text = table.markdown({**MANIFEST, "seeds": list(seeds)}, cells(seeds))
  return text.replace("\u202f", " ").splitlines()


def test_means_worst_and_every_seed():
  lines = made()
  assert lines[0] == "| Network | ACC | ASR | RA | Carried ASR | Natural rate |"
  assert lines[1] == "| --- | --- | --- | --- | --- | --- |"
  assert [line.split(" | ")[0] for line in lines[2:5]] == ["| teacher", "| none", "| kd"]
  assert "| 91.0 % (90.0 %)<br>90.0, 92.0 | 60.0 % (70.0 %)<br>50.0, 70.0 | – |" in lines[4]


def test_a_mean_of_some_seeds_says_of_how_many():
  assert "| −0.4 % (1 of 2 seeds)<br>−0.4, – |" in made()[4]


def test_one_seed_shows_its_interval():
  assert "| kd | 90.0 % [80.0, 95.0] | 50.0 % [40.0, 80.0] |" in made((0,))[4]


def test_the_caption_names_data_seeds_time_and_code():
  assert made()[-1] == (
    "Mean (worst seed), below it each seed. Config `quickstart`, digits, badnets backdoor, 2.0 % of"
    " the pool triggered, seeds 0, 1, 1.5 minutes (1 x cpu) of training, rkd_jax 0.1.0,"
    " revision `0123456789abcdef0123+`."
  )


def test_a_config_of_one_method_and_a_manifest_of_nothing():
  assert table.methods({"config": {"methods": ["none"], "method": {"name": "x.y"}}}) == ["x.y"]
  assert "| kd |" in table.markdown({}, cells())


def test_names_cannot_break_the_table():
  assert table.escaped("a|b") == "a\\|b"


@pytest.fixture
def run(tmp_path):
  results.write(tmp_path / "results.json", {**MANIFEST, "seeds": [0, 1]}, cells())
  return tmp_path


def test_prints(run, capsys):
  assert table.main([str(run)]) == 0
  assert capsys.readouterr().out.startswith("| Network | ACC")


def test_into_replaces_only_what_is_between_its_markers(run):
  path = run / "README.md"
  other = "<!-- table:cifar10 -->\nkeep\n<!-- /table -->\n"
  path.write_text(f"a\n\n{other}\n<!-- table:quickstart -->\nold \\1\n<!-- /table -->\n\nb\n")
  for _ in range(2):  # again: the same bytes
    assert table.main([str(run), "--into", str(path)]) == 0
    text = path.read_text()
    assert text.startswith(f"a\n\n{other}\n<!-- table:quickstart -->\n| Network")
    assert text.endswith(".\n<!-- /table -->\n\nb\n") and "old" not in text


@pytest.mark.parametrize(
  "text",
  ["", "<!-- table:quickstart -->\n", "<!-- table:quickstart -->\n<!-- /table -->\n" * 2],
)
def test_files_without_the_markers_are_refused(run, capsys, text):
  path = run / "README.md"
  path.write_text(text)
  assert table.main([str(run), "--into", str(path)]) == 2
  assert "<!-- table:quickstart -->" in capsys.readouterr().err and path.read_text() == text


def test_mistakes_are_told(tmp_path, run, capsys):
  assert table.main([str(tmp_path / "nowhere")]) == 2
  assert "no file" in capsys.readouterr().err
  assert table.main([str(run), "--into", str(run / "none.md")]) == 2
  assert "Cannot read" in capsys.readouterr().err
