"""The Markdown table of a run, and its place in a file."""

import dataclasses

import pytest

from rkd_jax.commands import table
from rkd_jax.errors import UserError
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
  assert "| kd |" in table.markdown({}, cells())


# Several runs.


def another(seeds=(0, 1), labels=0.05, **method):
  """A run of kd and one more method, their accuracies and ASRs by hand, in per cent."""
  found = []
  for seed in seeds:
    ours = {**COMMON, "seed": seed, "teacher_seed": seed}
    teacher = {**ours, "network": "teacher", "teacher": "poisoned"}
    found += [Cell(metric="acc", value=0.98, **teacher), Cell(metric="asr", value=1.0, **teacher)]
    for name, values in method.items():
      fields = {**ours, "network": "student", "teacher": "poisoned", "method": name}
      fields |= {"base": "kd" if name != "kd" else None, "labels": labels}
      for metric, value in zip(("acc", "asr"), values[seed], strict=True):
        found.append(Cell(metric=metric, value=value / 100, **fields))
        found.append(Cell(metric=metric, value=0.0, **{**fields, "teacher": "clean"}))
  config = {"methods": list(method), "method": {}}
  return {"config": config, "seeds": list(seeds)}, found


def lines(**runs):
  text = table.grid({name.replace("_", "|"): run for name, run in runs.items()})
  return text.splitlines()


FIRST = another(ours=[(90, 2), (92, 1)], kd=[(95, 50), (93, 70)])
SECOND = another(kd=[(80, 10), (90, 0)], other=[(70, 5), (72, 3)])


def test_a_row_for_each_network_and_a_column_for_each_run():
  assert lines(one=FIRST, two=SECOND) == [
    "| Network | one | two |",
    "| --- | --- | --- |",
    "| teacher | 98.0 / 100.0 (100.0) | 98.0 / 100.0 (100.0) |",
    "| ours | 91.0 / 1.5 (2.0) | – |",
    "| kd | 94.0 / 60.0 (70.0) | 85.0 / 5.0 (10.0) |",
    "| other | – | 71.0 / 4.0 (5.0) |",
    "",
    "Mean ACC / mean ASR (worst ASR), in per cent; seeds 0, 1.",
  ]


def test_of_more_runs_than_networks_the_runs_are_the_rows():
  found = lines(one=FIRST, two=FIRST, three=FIRST, four=FIRST)
  assert found[0] == "| Run | teacher | ours | kd |"
  assert found[5] == "| four | 98.0 / 100.0 (100.0) | 91.0 / 1.5 (2.0) | 94.0 / 60.0 (70.0) |"


def test_some_methods_alone_of_the_runs_that_have_them_all():
  runs = {"one": FIRST, "two": SECOND}
  assert table.grid(runs, ["kd", "other"]).splitlines()[:4] == [
    "| Network | two |",
    "| --- | --- |",
    "| kd | 85.0 / 5.0 (10.0) |",
    "| other | 71.0 / 4.0 (5.0) |",
  ]
  with pytest.raises(UserError, match=r"of ours, other\. They have one: ours, kd; two: kd, other"):
    table.grid(runs, ["ours", "other"])


def test_shares_of_labels_are_not_told_apart_by_run():
  few, many = another(kd=[(95, 50), (93, 70)]), another(labels=1.0, kd=[(80, 10), (90, 0)])
  assert "| kd | 94.0 / 60.0 (70.0) | 85.0 / 5.0 (10.0) |" in lines(one=few, two=many)


def test_one_seed_has_no_worst():
  found = lines(one=another((0,), kd=[(95, 50)]), two=another((0,), kd=[(80, 10)]))
  assert found[2:4] == [
    "| teacher | 98.0 / 100.0 | 98.0 / 100.0 |",
    "| kd | 95.0 / 50.0 | 80.0 / 10.0 |",
  ]
  assert found[-1].endswith("in per cent; seed 0.")


def test_seeds_are_those_of_all_runs_and_may_be_unknown():
  other = {**SECOND[0], "seeds": [3, 1]}, SECOND[1]
  assert lines(one=FIRST, two=other)[-1].endswith("; seeds 0, 1, 3.")
  unknown = [({**manifest, "seeds": None}, cells) for manifest, cells in (FIRST, SECOND)]
  assert lines(one=unknown[0], two=unknown[1])[-1].endswith("(worst ASR), in per cent.")


def test_an_unknown_seed_leaves_the_entry_unknown():
  manifest, cells = SECOND
  lost = [c for c in cells if not (c.method == "kd" and c.metric == "asr")]
  assert "| kd | 94.0 / 60.0 (70.0) | 85.0 / – |" in lines(one=FIRST, two=(manifest, lost))
  kept = [dataclasses.replace(c, value=None) if c.seed and c.method == "kd" else c for c in cells]
  assert "| kd | 94.0 / 60.0 (70.0) | – |" in lines(one=FIRST, two=(manifest, kept))


def test_a_method_with_several_fractions_of_labels_is_told_apart():
  manifest, cells = another(kd=[(80, 10), (90, 0)])
  _, more = another(labels=0.25, kd=[(90, 4), (90, 2)])
  found = [
    line.replace("\u202f", " ") for line in lines(one=FIRST, a_b=(manifest, cells + more[4:]))
  ]
  assert found[0] == "| Network | one | a\\|b |"
  assert "| kd (5.0 % labels) | 94.0 / 60.0 (70.0) | 85.0 / 5.0 (10.0) |" in found
  assert "| kd (25.0 % labels) | – | 90.0 / 3.0 (4.0) |" in found


def test_differences_are_paired_by_run_and_seed():
  found = table.against({"one": FIRST, "two": SECOND}, "kd").splitlines()
  assert found[0].startswith("| Method | ACC, points | ASR, points | pairs |")
  # ours: ACC -5, -1 and ASR -48, -69; other: -10, -18 and -5, +3; t(.975, 1) = 12.706
  assert found[2].startswith("| ours | -3.0 [-28.4, +22.4] | -58.5 [-100.0, +74.9] | 2 |")
  assert found[3].startswith("| other | -14.0 [-64.8, +36.8] | -1.0 [-51.8, +49.8] | 2 |")
  assert found[-1].startswith("Minus kd, paired by run and seed")
  with pytest.raises(UserError, match=r"No run has students of 'kdd'\. Did you mean 'kd'"):
    table.against({"one": FIRST}, "kdd")


@pytest.mark.parametrize(
  ("runs", "said"),
  [
    ([[-0.5, -0.3]], "-40.0 [-100.0, +87.1]"),  # over seeds: .1 * 12.706
    ([[-0.5, -0.3], [-0.6]], "-50.0"),
    # means -.4, -.6 and -.5: .1 / sqrt(3) * 4.303
    ([[-0.5, -0.3], [-0.6, -0.6], [-0.5]], "-50.0 [-74.8, -25.2]"),
    ([[0.2, 0.2, 0.2]], "+20.0"),
    ([], "–"),
  ],
)
def test_of_several_runs_each_counts_once(runs, said):
  assert table.gap(runs) == said


def test_an_accuracy_is_shown_where_the_rate_is_not_known():
  manifest, cells = FIRST
  cells = [dataclasses.replace(c, value=None) if c.metric == "asr" else c for c in cells]
  assert "| kd | 94.0 / – |" in table.grid({"one": (manifest, cells)})


def test_differences_between_students_of_clean_teachers():
  """Where only some seeds have one; the worst is the one that lost most."""
  clean = {("ours", 0): 0.9, ("ours", 1): 0.88, ("kd", 0): 0.91, ("kd", 1): 0.92, ("other", 0): 0.9}
  manifest, cells = another(
    ours=[(90, 2), (92, 1)], other=[(1, 1), (1, 1)], kd=[(95, 50), (93, 70)]
  )
  cells = [
    dataclasses.replace(c, value=clean.get((c.method, c.seed)))
    if c.teacher == "clean" and c.metric == "acc" else c
    for c in cells
  ]  # fmt: skip
  found = table.against({"one": (manifest, cells)}, "kd").splitlines()
  assert found[0].endswith("| pairs | ACC of a clean teacher's student (worst) | pairs |")
  # -1 and -4
  assert found[2].endswith("| 2 | -2.5 [-21.6, +16.6] (-4.0) | 2 |")
  assert found[3].endswith("| 2 | -1.0 | 1 |")


def test_one_pair_has_no_interval_and_what_is_unknown_is_no_pair():
  manifest, cells = FIRST
  lost = [
    dataclasses.replace(c, value=None) if (c.method, c.metric, c.seed) == ("kd", "asr", 1) else c
    for c in cells
    if c.teacher != "clean"
  ]
  found = table.against({"one": (manifest, lost)}, "kd").splitlines()
  assert found[2] == "| ours | -3.0 [-28.4, +22.4] | -48.0 | 2 |"
  assert found[0] == "| Method | ACC, points | ASR, points | pairs |"


def test_several_runs_are_read_and_named_after_their_directories(tmp_path, capsys):
  paths = [tmp_path / "one", tmp_path / "two", tmp_path / "again" / "one"]
  for path, (manifest, cells) in zip(paths, (FIRST, SECOND, SECOND), strict=True):
    path.mkdir(parents=True)
    results.write(path / "results.json", manifest, cells)
  readme = tmp_path / "README.md"
  readme.write_text("<!-- table:grid -->\n<!-- /table -->\n")
  assert table.main([*map(str, paths[:2]), "--into", str(readme), "--name", "grid"]) == 0
  assert table.main([*map(str, paths[:2])]) == 0
  printed = capsys.readouterr().out
  assert printed.startswith("| Network | one | two |") and printed.strip() in readme.read_text()
  assert table.main([*map(str, paths)]) == 0  # two of one name
  assert f"| Network | {paths[0]} | two | {paths[2]} |" in capsys.readouterr().out
  assert table.main([str(paths[0]), str(tmp_path / "nowhere")]) == 2
  assert "no file" in capsys.readouterr().err


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
