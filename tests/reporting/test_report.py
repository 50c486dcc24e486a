"""The report of small synthetic runs: what it says, and what it must never do."""

import dataclasses
import html.parser
import re

import numpy as np
import pytest

from rkd_jax.errors import UserError
from rkd_jax.evaluation.metrics import Proportion
from rkd_jax.reporting import files, formats, headline, report, results, table, verdict
from rkd_jax.reporting.results import Cell
from rkd_jax.reporting.writer import MetricsWriter

EVIL = '<img src="http://evil.example/x.png" onerror=alert(1)>'
VOID = {"meta", "link", "img", "br", "input", "path", "line", "polyline"}


def student(method, asr, acc=0.95, carried=None, seed=0, teacher="poisoned", **fields):
  """The cells of one student; `asr` and `acc` are shares of 1000, None where unknown."""
  common = {
    "dataset": "digits",
    "labels": 0.05,
    "threat": "contaminated",
    "contamination": 0.02,
    "backdoor": "badnets",
    "method": method,
    "network": "student",
    "teacher": None if method == "none" else teacher,
    "seed": seed,
    "teacher_seed": None if method == "none" else seed,
  } | fields

  def share(metric, value):
    numbers = {"value": None} if value is None else Proportion(round(1000 * value), 1000).fields()
    return Cell(metric=metric, **numbers, **common)

  cells = [share("acc", acc), share("asr", asr)]
  if carried is not None:
    cells.append(Cell(metric="carried_asr", value=carried, **common))
  return cells


def manifest(methods, **fields):
  return {
    "config_name": "quickstart",
    "config": {"methods": list(methods), "backdoor": "badnets", "target": 0},
    "git": {"commit": "abc123", "dirty": False},
    "versions": {"jax": "0.10.2"},
    "devices": ["cpu:0"],
    "command": "python -m rkd_jax.main --config=configs/quickstart.py",
    "teachers": [{"seed": 0, "sha256": "00ff", "kind": "planted"}],
    "data": {"name": "digits", "fingerprint": "f00", "classes": list("0123456789"), "sizes": {}},
    "phases": [],
  } | fields


def page(workdir, cells, **fields):
  methods = dict.fromkeys(c.method for c in cells if c.method)
  results.write(workdir / "results.json", manifest(methods, **fields), cells)
  return report.write(workdir).read_text()


class Tree(html.parser.HTMLParser):
  """Fails on tags that do not nest; keeps what is asked for and what is read."""

  def __init__(self, text):
    super().__init__()
    self.open, self.links, self.tags, self.text = [], [], set(), ""
    self.feed(text)
    self.close()
    assert not self.open

  def handle_starttag(self, tag, attrs):
    self.tags.add(tag)
    self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href", "action", "srcset")]
    assert not any(k.startswith("on") for k, _ in attrs)
    if tag not in VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    if tag not in VOID:
      assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data


def words(text):
  return " ".join(Tree(text).text.replace("\u202f", " ").split())


def say(*cells):
  rows = table.rows([c for group in cells for c in group], [])
  return {v.label: v for v in verdict.verdicts(rows, "class 0")}


def test_how_strengths_were_chosen(tmp_path):
  cells = student("kd", 0.9, carried=0.9)
  chosen = {"method": "rkd", "seed": 1, "teacher": "clean", "strength": "base.amplitude"}
  chosen |= {"chosen": 0.25, "holdout": 197, "accuracy": {"0": 0.985, "0.25": 0.98, "0.5": 0.9}}
  said = words(page(tmp_path, cells, selection=[chosen]))
  assert "rkd1cleanbase.amplitude0.250: 98.5 %, 0.25: 98.0 %, 0.5: 90.0 %" in said
  assert "1 choices" in said and "within one point of strength 0" in said
  assert "Strengths" not in words(page(tmp_path, cells))


def test_removed_not_removed_unknown(tmp_path):
  cells = [c for s in (0, 1, 2) for c in student("kd", 0.9 + s / 50, 0.98, 0.9, seed=s)]
  cells += [c for s in (0, 1, 2) for c in student("agreement", s / 500, 0.991, 0.0, seed=s)]
  cells += student("ofd", 0.4, carried=0.4) + student("abd", None) + student("none", 0.01, 0.9)
  text = words(page(tmp_path, cells))
  assert "Undefended distillation (kd) carried the backdoor over: 94.0 % [92.4, 95.3] of" in text
  assert "triggered images go to class 0 (worst of 3 teachers), at 98.0 % mean accuracy." in text
  assert "agreement removed the backdoor: ASR 0.4 % [0.2, 1.0] (worst of 3 teachers)" in text
  assert "ofd did not remove the backdoor: ASR 40.0 % [37.0, 43.1] (one teacher)" in text
  assert (
    "abd: unknown, at 95.0 % accuracy. The trigger's success was not measured for every seed."
    in text
  )
  assert "Images of the target class are left out" in text
  assert "contaminated, 2.0 % of the pool (no labelled image) carries the trigger." in text


def test_no_cure_is_claimed_where_nothing_was_carried_over():
  said = say(student("kd", 0.02, carried=0.0), student("agreement", 0.01, carried=0.0))
  assert said["kd"].outcome == "not carried over"
  assert said["agreement"].outcome == "nothing to remove"
  assert "no cure" in said["agreement"].sentence


def test_a_trigger_that_fools_everyone_was_not_carried_over():
  said = say(student("kd", 0.3, carried=0.01), student("agreement", 0.3, carried=0.01))
  assert said["kd"].outcome == "not carried over"
  assert said["agreement"].outcome == "not removed"
  assert "clean teacher's student follows the trigger as often" in said["agreement"].sentence


def test_a_teacher_without_a_working_backdoor_has_none_to_carry():
  teacher = {"network": "teacher", "method": None}
  said = say(student(asr=0.1, **teacher), student("kd", 0.02))["kd"]
  assert said.outcome == "not carried over"
  assert "The teacher itself hardly follows the trigger: ASR 10.0" in said.sentence
  assert "itself" not in say(student(asr=0.9, **teacher), student("kd", 0.02))["kd"].sentence


def natural(method, rate, seed=0):
  """The cell of a natural rate, as `student` makes those of the ASR."""
  asr = student(method, rate, seed=seed)[1]
  return [dataclasses.replace(asr, metric="natural_rate")]


def test_without_a_clean_teacher_the_natural_rate_must_be_lower():
  said = say(student("kd", 0.30), natural("kd", 0.27), student("agreement", 0.30))
  assert said["kd"].outcome == "unknown"
  sentence = said["kd"].sentence.replace("\u202f", " ")
  assert "never met the teacher follows it as often (27.0 %)" in sentence
  assert "Only a clean teacher's student would tell" in sentence
  assert said["agreement"].outcome == "not removed"
  kd = student("kd", 0.30), natural("kd", 0.27), student("kd", 0.9, seed=1), natural("kd", 0.2, 1)
  assert say(*kd)["kd"].outcome == "carried over"  # in the other seed
  assert say(*kd[:2], student("kd", 0.4, seed=1))["kd"].outcome == "carried over"  # by its ASR
  assert say(student("kd", 0.02), natural("kd", 0.02))["kd"].outcome == "not carried over"
  carried = student("kd", 0.30, carried=0.3), natural("kd", 0.27)
  assert say(*carried)["kd"].outcome == "carried over"  # the control is worth more


def test_a_low_asr_that_came_from_the_teacher_is_not_removed():
  said = say(student("kd", 0.9), student("agreement", 0.09, carried=0.06))
  assert said["agreement"].outcome == "not removed"


def test_a_carried_asr_that_is_known_in_one_seed_counts():

  def two(method, first, second, carried):
    cells = student(method, first, carried=carried) + student(method, second, seed=1)
    unknown = dataclasses.replace(student(method, None, seed=1)[1], metric="carried_asr")
    return [*cells, unknown]

  kd = two("kd", 0.09, 0.02, 0.08)
  said = say(kd, two("rkd", 0.08, 0.0, 0.08))
  assert said["kd"].outcome == "carried over" and said["rkd"].outcome == "not removed"
  assert "carried ASR 8.0\u202f% in one of the seeds" in said["rkd"].sentence
  low = say(kd, two("rkd", 0.01, 0.0, 0.01))
  assert low["rkd"].outcome == "removed"


def test_an_interval_that_reaches_over_the_limit_is_told():
  said = say(student("kd", 0.9), student("agreement", 0.095), student("rkd", 0.01))
  assert "an interval reaches to 11" in said["agreement"].sentence
  assert "reaches" not in said["rkd"].sentence


def test_a_low_asr_removes_nothing_that_is_not_known_to_have_been_there():
  said = say(student("agreement", 0.01))["agreement"]
  assert said.outcome == "unknown" and "no backdoor shows" in said.sentence
  asleep = student(asr=0.02, network="teacher", method=None)
  assert say(asleep, student("agreement", 0.01))["agreement"].outcome == "nothing to remove"
  assert "was asked how far" in say(student("kd", 0.9))["kd"].sentence
  assert "was asked" not in say(student("kd", 0.9), natural("kd", 0.0))["kd"].sentence


def test_one_unknown_seed_makes_the_verdict_unknown():
  said = say(student("kd", 0.9), student("agreement", 0.0), student("agreement", None, seed=1))
  assert said["agreement"].outcome == "unknown"


def test_without_an_undefended_student_the_gap_is_named():
  said = say(student("agreement", 0.01))
  assert "Whether undefended distillation would have carried it is unknown" in str(said)


def test_the_reference_is_the_student_of_the_same_base():
  kd, ofd = student("kd", 0.0), student("ofd", 0.9)
  said = say(kd, ofd, student("robustkd", 0.01, base="ofd"), student("agreement", 0.01, base="kd"))
  assert said["ofd"].outcome == "carried over"
  assert said["robustkd"].outcome == "removed"
  assert said["agreement"].outcome == "nothing to remove"


def target_acc(method, right, seed=0):
  """The cell of 50 images of the target class."""
  cell = student(method, 0.0, seed=seed)[0]
  return [dataclasses.replace(cell, metric="target_acc", **Proportion(right, 50).fields())]


def test_a_backdoor_that_goes_with_its_class_is_not_just_removed():
  kd = student("kd", 0.9), target_acc("kd", 30), student("kd", 0.9, seed=1), target_acc("kd", 30, 1)
  abd = student("abd", 0.01) + student("abd", 0.0, seed=1)
  said = say(*kd, abd, target_acc("abd", 15), target_acc("abd", 14, 1))["abd"]
  assert said.outcome == "class lost"
  text = said.sentence.replace("\u202f", " ")
  assert (
    "It gets 28.0 % of clean images of that class right, kd 60.0 % (the worst of 1 such" in text
  )
  assert "students of 2): a student that" in text
  half = say(*kd, abd, target_acc("abd", 15), target_acc("abd", 15, 1))["abd"]
  assert half.outcome == "removed"
  assert say(*kd, abd)["abd"].outcome == "removed"  # an older run tells nothing of the class
  high = say(*kd, student("abd", 0.3), target_acc("abd", 0))["abd"]
  assert high.outcome == "not removed"
  drawn = table.rows([*student("kd", 0.9), *target_acc("kd", 30), *student("abd", 0.0),
    *target_acc("abd", 0), *student("rkd", 0.05), *target_acc("rkd", 30)], [])  # fmt: skip
  best = verdict.best(drawn)
  assert best is not None and best.label == "rkd"


def test_target_acc_is_shown_where_it_is_known(tmp_path):
  cells = [*student("kd", 0.9), *target_acc("kd", 30)]
  assert "Target ACC" in words(page(tmp_path, cells)) and "60.0" in words(page(tmp_path, cells))
  nobody = [
    dataclasses.replace(c, count=0, n=0, value=None, ci95=None) for c in target_acc("kd", 1)
  ]
  for without in ([], nobody):
    assert 'data-label="Target ACC"' not in page(tmp_path, [*student("kd", 0.9), *without])


def test_what_a_student_without_a_teacher_does_as_well_is_said():
  said = say(student("none", 0.0, 0.97), student("kd", 0.9), student("agreement", 0.0, 0.95))
  assert "no better than without any teacher (97.0\u202f%)" in said["agreement"].sentence
  assert "none" not in said


def test_several_students_of_one_teacher_are_called_that():
  said = say(*(student("kd", 0.9, seed=s, teacher_seed=7) for s in range(3)))
  assert "worst of 3 students of one teacher" in said["kd"].sentence


def test_missing_values_are_shown_as_such(tmp_path):
  text = page(tmp_path, student("kd", None) + student("agreement", 0.0))
  shown = re.findall(r'data-label="([^"]+)"><span><span class="main">([^<]*)<', text)
  assert shown[8:11] == [
    ("ACC", "95.0\u202f%"),
    ("ASR", "unknown"),
    ("RA", "–"),
  ]  # after the teacher
  assert ("DER", "–") in shown and ("ASR", "0.0\u202f%") in shown
  assert "NaN" not in text and "None" not in text


def test_a_run_without_numbers_is_unknown(tmp_path):
  results.write(tmp_path / "results.json", {}, [])
  text = words(report.write(tmp_path).read_text())
  assert "Nothing to judge: no student with a teacher was measured." in text
  assert "Removed: the worst" not in text  # nothing was


def test_the_page_says_what_was_compared(tmp_path):
  config = {"methods": ["kd"], "teacher": {"network": "wideresnet-16-2"}}
  config["student"] = {"network": "resnet-8"}
  data = {"name": "digits", "sizes": {"test": 500}}
  made = manifest(["kd"], config=config, data=data) | {"methods": {"kd": "<b>Hinton"}}
  results.write(tmp_path / "results.json", made, student("kd", 0.9))
  text = report.write(tmp_path).read_text()
  said = words(text)
  assert "The teacher is a wideresnet-16-2, the student a resnet-8. Rates are of 500 test" in said
  assert 'href="#methods"' in text and "<dt>kd</dt><dd>&lt;b&gt;Hinton</dd>" in text
  assert 'href="#methods"' not in page(tmp_path, student("kd", 0.9))


def test_images_that_were_left_out_are_counted(tmp_path):
  data = {"name": "folder:x", "skipped": ["x/a.png: empty", "x/b.png: empty"]}
  assert "x/a.png: empty; x/b.png: empty" in words(page(tmp_path, student("kd", 0.9), data=data))
  data["skipped"] = []
  assert "Left out" not in words(page(tmp_path, student("kd", 0.9), data=data))


def test_a_method_without_cells_keeps_its_row(tmp_path):
  results.write(tmp_path / "results.json", manifest(["kd", "abd"]), student("kd", 0.9))
  text = report.write(tmp_path).read_text()
  assert 'scope="row">abd</th>' in text and "abd: unknown" in words(text)


def test_nulls_belong_to_every_setting():
  none = student("none", 0.0, threat="contaminated", contamination=None)
  assert len(table.settings(none + student("kd", 0.9))) == 1
  two = table.settings(none + student("kd", 0.9) + student("kd", 0.9, backdoor="blend"))
  assert [s["backdoor"] for s in two] == ["badnets", "blend"]


def test_an_unknown_trigger_leaves_everything_about_it_open(tmp_path):
  path = tmp_path / "predictions" / "seed0.npz"
  path.parent.mkdir()
  labels = np.arange(4)
  np.savez(path, labels=labels, goals=labels, **{"kd/student/poisoned:triggered": labels})
  cells = student("kd", None, backdoor="unknown") + student("agreement", None, backdoor="unknown")
  text = words(page(tmp_path, cells, seeds=[0]))
  assert "Unknown for kd and agreement." in text and "No trigger was tried" in text
  assert "agreement: unknown, at 95.0 % accuracy. No trigger is known." in text
  assert "Removed: the worst" not in text
  assert "Removed: the worst" in words(page(tmp_path, student("kd", 0.9)))
  assert "Threat model: unknown; no trigger was put on any image." in text
  assert "Attack success by true class" not in text and "removed the backdoor" not in text


def test_a_trigger_that_was_tried_on_a_given_teacher_was_tried(tmp_path):
  cells = student("teacher", 0.9, network="teacher", teacher="given")
  cells += student("kd", 0.9, teacher="given")
  for some in (cells, cells[:2]):  # with a student, and the teacher alone
    text = words(page(tmp_path, some))
    assert "Only badnets was tried." in text and "No trigger was tried" not in text
  assert "One teacher was distilled" in words(page(tmp_path, cells))


def test_the_headline_names_a_cure_with_its_price():
  cells = [c for name in "abcde" for c in student(name, 0.0, acc=0.5)]
  found = headline.make([*say(student("kd", 0.9), cells).values()])
  assert [part["word"] for part in found] == ["Removed", "Carried over"]
  assert found[0]["rest"].replace("\u202f", " ") == (
    " by a (accuracy 50.0 %), b (accuracy 50.0 %), c (accuracy 50.0 %) and 2 more."
  )
  (part,) = headline.make([])
  assert part["word"] + part["rest"] == "Nothing to judge: no student with a teacher was measured."


def test_what_needs_an_oracle_stays_out_of_the_comparison(tmp_path):
  cells = student("kd", 0.9) + student("kd", 0.0, oracle=True) + student("kd", 0.7, variant="int8")
  text = words(page(tmp_path, cells))
  assert "4 more" in text and "oracle" in text and "int8" in text and "worst 90" not in text


def full(workdir, evil="0"):
  """A run with everything in it, and `evil` wherever other people's text goes."""
  cells = [c for s in (0, 1) for c in student("kd", 0.9, seed=s) + student(evil, 0.0, seed=s)]
  cells += student("kd", 0.01, teacher="clean")
  cells += [
    Cell(metric=m, value=v, network="round1", method=evil, dataset="digits")
    for m, v in (("kept", 0.9), ("kept_triggered", 0.1))
  ]
  phases = [
    {"seed": s, "method": evil, "name": evil, "teacher": t, "steps": 4, "seconds": 1.5}
    | {"images_per_second": 100.0, "metrics": f"{s}{t}/metrics.jsonl"}
    for s in (0, 1)
    for t in ("poisoned", "clean")
  ]
  for phase in phases:
    with MetricsWriter(workdir / phase["metrics"]) as writer:
      for step in range(4):
        writer.write(step, {"loss": 1.0 / (step + 1), "holdout/acc": step / 4})
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (3, 8, 8, 1), np.uint8)
  predictions = {f"pred/{evil}/{kind}": np.array([0, 1, 9]) for kind in ("clean", "triggered")}
  with open(workdir / "examples.npz", "wb") as file:
    np.savez(file, clean=images, triggered=255 - images, labels=np.array([0, 1, 2]), **predictions)  # pyright: ignore[reportArgumentType]
  inside(workdir, evil)
  data = {"name": evil, "fingerprint": evil, "classes": [evil] * 3, "sizes": {evil: 3}}
  extra = {"config_name": evil, "command": evil, "git": {evil: evil}, "phases": phases}
  extra |= {
    "seeds": [0, 1],
    "versions": {evil: evil},
    "config": {"methods": ["kd", evil], evil: evil},
  }
  extra["costs"] = [{"seed": 0, "method": evil, "teacher": "poisoned", "phases": ["key"]}]
  phases[0]["key"] = "key"
  return page(workdir, cells, data=data, **extra)


def inside(workdir, evil):
  """predictions/ and analysis.npz."""
  rng = np.random.default_rng(1)
  labels, said = np.arange(30) % 3, rng.integers(0, 3, (2, 30))
  networks = ["teacher/poisoned", "kd/student/poisoned", f"{evil}/student/poisoned"]
  for seed in (0, 1):
    arrays = {f"{name}:triggered": said[seed] for name in networks}
    (workdir / "predictions").mkdir(exist_ok=True)
    with open(workdir / "predictions" / f"seed{seed}.npz", "wb") as file:
      np.savez(file, labels=labels, goals=0 * labels, **arrays)
  arrays = {"labels": labels, "goals": 0 * labels}
  for name in [*networks, f"{evil}/detox/poisoned"]:
    arrays[f"{name}:stages"] = np.array([f"{evil}1", f"{evil}2"])
    arrays[f"{name}:explained"] = np.float32(0.5)
    for kind in ("clean", "triggered"):
      arrays[f"{name}:{kind}:variance"] = rng.uniform(1, 9, (30, 2)).astype(np.float32)
      arrays[f"{name}:{kind}:map"] = rng.normal(size=(30, 2)).astype(np.float32)
  with open(workdir / "analysis.npz", "wb") as file:  # savez(path) would refuse "file" as a name
    np.savez(file, **arrays)


def test_everything_is_there_and_nothing_is_fetched(tmp_path):
  text = full(tmp_path)
  tree = Tree(text)
  assert tree.links and all(link.startswith(("data:", "#")) for link in tree.links)
  assert "script" not in tree.tags and not re.search(r"url\(|@import|https?://", text)
  assert text.count("<polyline") == 8 and text.count("data:image/png") == 9
  headings = "Comparison", "What was dropped", "Training", "Clean and triggered images", "Cost"
  headings += "Attack success by true class", "Feature variance by stage", "Where triggered images"
  for heading in (*headings, "What this does not prove", "Run it again", "Glossary"):
    assert re.search(rf"<h2 id=[^>]*>{heading}", text)
  assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
    "analysis.npz",
    "examples.npz",
    "report.html",
    "results.json",
  ]


def test_other_peoples_text_is_escaped(tmp_path):
  text = full(tmp_path, EVIL)
  tree = Tree(text)
  assert EVIL not in text and EVIL in tree.text
  assert "<img src=" not in text.replace('<img src="data:', "")
  assert all(link.startswith(("data:", "#")) for link in tree.links)


def test_curves_are_read_from_the_workdir_only(tmp_path):
  with MetricsWriter(tmp_path / "secret.jsonl") as writer:
    for step in range(3):
      writer.write(step, {"loss": 1.0})
  (tmp_path / "run").mkdir()
  phases = [{"seed": 0, "method": "kd", "name": "kd", "metrics": "../secret.jsonl"}]
  assert "<polyline" not in page(tmp_path / "run", student("kd", 0.9), phases=phases)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 cut off", b"\x93NUMPY"])
def test_broken_examples_are_a_user_error(tmp_path, data):
  files.atomic_write(tmp_path / "examples.npz", data)
  with pytest.raises(UserError, match=r"examples\.npz is broken"):
    page(tmp_path, student("kd", 0.9))


def test_pickles_are_never_opened(tmp_path):
  np.savez(tmp_path / "examples.npz", labels=np.array([object()]))
  with pytest.raises(UserError, match="pickle"):
    page(tmp_path, student("kd", 0.9))


@pytest.mark.parametrize(
  "value, text",
  [(None, "unknown"), (0.0, "0.0\u202f%"), (-1e-5, "0.0\u202f%"), (-0.012, "\u22121.2\u202f%")],
)
def test_percent(value, text):
  assert formats.percent(value) == text


def test_bounds_carry_the_unit_once():
  assert formats.interval("carried_asr", (-0.1, 0.25)) == "[\u221210.0, 25.0]"
  assert formats.interval("der", (0.5, 1.0)) == "[0.500, 1.000]"
  assert formats.interval("asr", None) == ""
