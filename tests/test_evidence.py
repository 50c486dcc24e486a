"""A run's numbers are made again from its predictions, and whatever was changed is told."""

import contextlib
import copy
import io
import json
import pathlib
import random
import re
import shutil
import zipfile

import numpy as np
import pytest

from rkd_jax import evidence
from rkd_jax.errors import UserError
from rkd_jax.evaluation import recount
from rkd_jax.reporting import results
from rkd_jax.reporting.files import sha256, write_json

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = {
  "backdoor": "badnets", "contamination": 0.02, "dtype": "float32", "labels": 0.5, "seeds": [0, 3],
  "teacher": {},
}  # fmt: skip


def predictions(seed: int) -> dict[str, np.ndarray]:
  """Of 8 test images in 3 classes, and a pool of 6; the target is class 0."""
  draw = np.random.default_rng(seed)
  labels = np.array([0, 1, 2, 0, 1, 2, 1, 2], np.int32)
  arrays = {"labels": labels, "goals": np.zeros(8, np.int32)}
  names = ["teacher/poisoned", "teacher/clean", "none/0.5", "none/1"]
  names += [f"kd/student/{kind}" for kind in ("poisoned", "clean")]
  names += [f"agreement/{n}/{k}" for k in ("poisoned", "clean") for n in ("witness", "student")]
  for name in names:
    for how in ("clean", "triggered"):
      arrays[f"{name}:{how}"] = draw.integers(0, 3, 8).astype(np.int32)
  for kind in ("poisoned", "clean"):  # the same network under the name of a method
    for how in ("clean", "triggered"):
      arrays[f"none/student/{kind}:{how}"] = arrays[f"none/0.5:{how}"]
  arrays["agreement/student:kept"] = draw.random(6) < 0.5
  hits = draw.random(200) < 0.9
  for value, wrong in ((0.0, 0), (0.25, 2), (0.5, 3)):  # of 200: two are one point, three are more
    arrays[f"agreement/poisoned/base.amplitude={value:g}:holdout"] = hits & (
      np.arange(200) >= wrong
    )
  hits[:3] = True
  arrays["agreement/poisoned/base.amplitude=0:holdout"] = hits
  arrays["pool:triggered"] = np.arange(6) < 2
  arrays["pool:victims"] = np.arange(6) % 2 == 1
  arrays["attacked:rows"] = np.arange(5)
  for name in ("teacher/poisoned", "kd/student/poisoned"):
    for eps in ("0.1", "0.2"):
      arrays[f"{name}:attacked/pgd-20/linf/{eps}"] = draw.integers(0, 3, 5).astype(np.int32)
    arrays[f"{name}:measured/local_linearity/tangent/linf/0.1"] = draw.random(5, np.float32)
  return arrays


def comparisons(seed: int) -> list[recount.Comparison]:
  taught = {"labels": 0.5, "threat": "contaminated", "contamination": 0.02}
  alone = {"method": "none", "base": None, "threat": None, "contamination": None}
  found = (
    ("none", {**alone, "labels": 0.5}, {"student": False}, None),
    ("kd", {"method": "kd", "base": None, **taught}, {"student": True}, None),
    (
      "agreement",
      {"method": "agreement", "base": "kd", **taught},
      {"witness": False, "student": True},
      "kd",
    ),
    ("none/1", {**alone, "labels": 1.0}, {"student": False}, None),
  )
  keys = "label", "fields", "networks", "undefended"
  return [recount.Comparison(seed=seed, **dict(zip(keys, one, strict=True))) for one in found]


def manifest(directory: pathlib.Path) -> dict:
  names = [recount.saved(seed) for seed in CONFIG["seeds"]]
  choice = {"method": "agreement", "teacher": "poisoned", "strength": "base.amplitude"}
  selection = []
  for seed in CONFIG["seeds"]:
    hits = {v: predictions(seed)[f"agreement/poisoned/base.amplitude={v}:holdout"] for v in GRID}
    accuracy = {value: float(np.mean(right)) for value, right in hits.items()}
    selection.append({"seed": seed, **choice, "chosen": 0.25, "holdout": 200, "accuracy": accuracy})
  return {
    "config": {**CONFIG, "methods": ["none", "kd", "agreement"], "method": {}},
    "data": {"name": "digits", "sizes": {"train": 6, "holdout": 200, "test": 8}},
    "seeds": CONFIG["seeds"],
    "phases": [{"seconds": 12.25}],
    "selection": selection,
    "comparisons": [one for seed in CONFIG["seeds"] for one in comparisons(seed)],
    "predictions": {name: sha256(directory / name) for name in names},
  }


GRID = ("0", "0.25", "0.5")


def make(directory: pathlib.Path) -> pathlib.Path:
  """A finished run's files, as far as `verify` reads them."""
  (directory / "predictions").mkdir(parents=True)
  cells, run = [], None
  for seed in CONFIG["seeds"]:
    np.savez_compressed(directory / recount.saved(seed), **predictions(seed))
  run = manifest(directory)
  for seed in CONFIG["seeds"]:
    cells += recount.cells(predictions(seed), run, seed, comparisons(seed))
  results.write(directory / "results.json", run, cells)
  return directory


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  return make(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture
def run(whole, tmp_path):
  shutil.copytree(whole, tmp_path / "run")
  return tmp_path / "run"


def edit(run: pathlib.Path, change, sealed: bool = True) -> list[str]:
  """What is told after a change of results.json, by someone who makes the digest anew, or not."""
  document = json.loads((run / "results.json").read_text())
  change(document)
  if sealed:
    document["sha256"] = results.seal(document)
  write_json(run / "results.json", document)
  return evidence.check(run).differences


def find(document, **fields):
  (cell,) = [c for c in document["cells"] if all(c[k] == v for k, v in fields.items())]
  return cell


STUDENT = {"network": "student", "teacher": "poisoned", "seed": 3}


def test_a_run_that_holds(run):
  found = evidence.check(run)
  assert found.differences == found.unverified == []
  assert (found.files, found.strengths) == (2, 2) and found.cells == 116
  metrics = {c["metric"] for c in json.loads((run / "results.json").read_text())["cells"]}
  assert metrics == {
    *(
      "acc",
      "asr",
      "ra",
      "target_acc",
      "fidelity",
      "transfer_ratio",
      "natural_rate",
      "carried_asr",
    ),
    *("der", "rir", "kept", "kept_triggered", "adv_acc", "local_linearity"),
  }


def test_a_metric_that_an_older_run_has_nowhere_is_not_missed(run):
  new = lambda cell: cell["metric"] == "target_acc"  # noqa: E731

  def drop(document, keep):
    document["cells"] = [c for c in document["cells"] if not new(c) or keep(c)]

  one = edit(run, lambda document: drop(document, keep=lambda c: c["seed"] == 3))
  assert one and all("target_acc: the cell is missing" in text for text in one)
  assert edit(run, lambda document: drop(document, keep=lambda c: False)) == []


def test_counts_by_hand():
  arrays = {
    "labels": np.array([0, 1, 2, 1]), "goals": np.array([0, 0, 0, 0]),
    "kd/student/poisoned:clean": np.array([0, 1, 1, 1]),
    "kd/student/poisoned:triggered": np.array([0, 0, 2, 2]),
    "attacked:rows": np.array([1, 2]),
    "kd/student/poisoned:attacked/pgd-20/linf/0.1": np.array([1, 1]),
  }  # fmt: skip
  fields = {"network": "student", "method": "kd", "teacher": "poisoned", "seed": 0}
  expected = {"acc": (3, 4), "asr": (1, 3), "ra": (1, 3), "target_acc": (1, 1), "fidelity": None}
  for metric, counted in expected.items():
    assert recount.counted(arrays, results.Cell(metric=metric, **fields)) == counted
  attack = {"metric": "adv_acc", "attack": "pgd-20", "norm": "linf", "eps": 0.1}
  assert recount.counted(arrays, results.Cell(**attack, **fields)) == (1, 2)


def test_the_shared_code_is_not_trusted(run, monkeypatch):
  """Were `metrics` wrong when the run was made and still, the hits are counted without it."""
  monkeypatch.setattr("rkd_jax.evaluation.metrics._among", lambda *_: evidence_of_nothing())
  told = [text for text in evidence.check(run).differences if "counted" in text]
  assert told == []  # the file is right, so counting agrees with it ...
  document = json.loads((run / "results.json").read_text())
  for cell in document["cells"]:
    if cell["metric"] in ("acc", "asr", "ra", "adv_acc"):
      cell.update({"count": 0, "n": 8})
  document["sha256"] = results.seal(document)
  write_json(run / "results.json", document)
  told = [text for text in evidence.check(run).differences if "counted" in text]
  assert len(told) > 20  # ... and where file and code agree on nonsense, it does not


def evidence_of_nothing():
  from rkd_jax.evaluation.metrics import Proportion

  return Proportion(0, 8)


def test_a_changed_accuracy_under_attack_is_named(run):
  how = {"method": "kd", "metric": "adv_acc", "eps": 0.2, **STUDENT}
  told = edit(run, lambda document: find(document, **how).update(count=0))
  assert told and all("adv_acc" in one and "count" in one for one in told)


@pytest.mark.parametrize("metric", ["acc", "der", "carried_asr", "kept", "natural_rate"])
def test_a_changed_number_is_named(run, metric):
  def change(document):
    cell = find(document, method="agreement", metric=metric, **STUDENT)
    cell["value"] = np.nextafter(cell["value"], 2).item()

  (told,) = edit(run, change)
  assert told.startswith(f"agreement student poisoned teacher, labels 0.5, seed 3, {metric}: value")


def test_any_digit_of_any_number_counts(run):
  """Forty digits of the text at random: none may change unseen, not even a time's."""
  path, draw = run / "results.json", random.Random(0)
  text = path.read_text()
  digits = [m.start() for m in re.finditer(r"(?<![\w./-])-?\d[\d.e-]*", text)]
  for _ in range(40):
    at = draw.choice(digits)
    while not text[at].isdigit():
      at += 1
    other = draw.choice([d for d in "123456789" if d != text[at]])
    path.write_text(text[:at] + other + text[at + 1 :])
    with contextlib.suppress(UserError):  # no longer a results.json at all
      assert evidence.check(run).differences


def another_digit_of_the_same_number(text: str) -> str:
  """0.1234 -> 0.12340000000000000001: the same float, not the same text."""
  return re.sub(r'("value": 0\.\d+)', r"\g<1>00000000000000000001", text, count=1)


@pytest.mark.parametrize(
  "change", [another_digit_of_the_same_number, lambda text: text.replace("  ", " ")]
)
def test_a_file_that_no_run_has_written_so(run, change):
  path = run / "results.json"
  path.write_text(change(path.read_text()))
  assert any("not written as a run writes it" in text for text in evidence.check(run).differences)


def deleted(document):
  document["cells"].remove(find(document, method="kd", metric="asr", **STUDENT))


def added(document):
  document["cells"].append({**find(document, method="kd", metric="asr", **STUDENT), "seed": 4})


def duplicated(document):
  document["cells"].append(find(document, method="kd", metric="asr", **STUDENT))


def swapped(document):
  kd, ours = (find(document, method=m, metric="asr", **STUDENT) for m in ("kd", "agreement"))
  for key in ("count", "value", "ci95"):
    kd[key], ours[key] = ours[key], kd[key]


def a_seed(document):
  find(document, method="kd", metric="asr", **STUDENT)["seed"] = 1


def a_method(document):
  find(document, method="kd", metric="asr", **STUDENT)["method"] = "rkd"


def a_network(document):
  find(document, method="kd", metric="asr", **STUDENT)["network"] = "round1"


def an_oracle(document):
  find(document, method="kd", metric="asr", **STUDENT)["oracle"] = True


def a_type(document):
  find(document, method="kd", metric="asr", **STUDENT)["oracle"] = 0


def no_cell(document):
  document["cells"][0] = "acc"


def no_metric(document):
  find(document, method="kd", metric="asr", **STUDENT)["metric"] = "asrr"


def a_choice(document):
  document["run"]["selection"][1]["chosen"] = 0.5


def an_accuracy(document):
  document["run"]["selection"][0]["accuracy"]["0.5"] += 0.005


def no_choice(document):
  del document["run"]["selection"][1]


def one_choice_more(document):
  document["run"]["selection"].append({**document["run"]["selection"][0], "strength": "weight"})


def a_reference(document):
  (one,) = [c for c in comparisons_of(document) if (c["label"], c["seed"]) == ("agreement", 3)]
  one["undefended"] = "none"


def no_comparison(document):
  document["run"]["comparisons"] = [c for c in comparisons_of(document) if c["label"] != "kd"]
  for one in comparisons_of(document):
    one["undefended"] = None


def comparisons_of(document):
  return document["run"]["comparisons"]


def of_every_cell(document, field, old, new):
  """By someone who changes what the manifest says of the methods along with the cells."""
  for fields in [*document["cells"], *(one["fields"] for one in comparisons_of(document))]:
    fields[field] = new if fields[field] == old else fields[field]


def fewer_labels(document):
  of_every_cell(document, "labels", 0.5, 0.01)


def more_contamination(document):
  of_every_cell(document, "contamination", 0.02, 0.2)


def another_threat(document):
  of_every_cell(document, "threat", "contaminated", "clean")


def other_methods(document):
  document["run"]["config"]["methods"] = ["none", "kd", "rkd"]


def compared_with_nothing(document):
  document["cells"] = [c for c in document["cells"] if c["metric"] not in ("der", "rir")]
  for one in comparisons_of(document):
    one["undefended"] = None


def fewer_seeds(document):
  document["run"]["seeds"] = [0]


def another_test_set(document):
  document["run"]["data"]["sizes"]["test"] = 500


def another_digest(document):
  document["run"]["predictions"]["predictions/seed3.npz"] = "0" * 64


CHANGES = {
  deleted: "the cell is missing",
  added: "seed 4, asr: no predictions make this cell",
  duplicated: "stands there 2 times",
  swapped: "count is",
  a_seed: "the cell is missing",
  a_method: "rkd student.*no predictions make this cell",
  a_network: "kd round1.*no predictions make this cell",
  an_oracle: "oracle True",
  a_type: "oracle 0|the cell is missing",
  no_cell: "cell 1 is none",
  no_metric: "asrr",
  a_choice: "agreement poisoned base.amplitude: chosen is 0.5 there, 0.25 by the rule",
  an_accuracy: "accuracy is",
  no_choice: "the choice of .*base.amplitude.* is missing",
  one_choice_more: "no predictions chose .*weight",
  a_reference: "der: value is",
  no_comparison: "no predictions make this cell",
  fewer_labels: "kd has 0.01 labels there, 0.5 by the config",
  more_contamination: "kd has a contamination of 0.2 there, 0.02 by the config",
  another_threat: "kd is clean there; the config's contamination is 0.02",
  other_methods: "compares .*'agreement'.*, the config .*'rkd'",
  compared_with_nothing: "agreement is compared with nothing, though the run has its base kd",
  fewer_seeds: "belongs to no seed",
  another_test_set: "8 test images, the manifest 500",
  another_digest: "not the file that the run left",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_an_edited_results_file_is_told(run, change):
  told = edit(run, change)
  assert any(re.search(CHANGES[change], text) for text in told), told
  assert all(len(text) < 400 for text in told)


def test_what_no_prediction_says_is_told_by_the_digest(run):
  def seconds(document):
    document["run"]["phases"][0]["seconds"] = 2.25

  assert edit(run, seconds, sealed=False) == [
    "results.json was edited after it was written: its digest is another"
  ]


# The predictions.


def rewrite(run: pathlib.Path, change) -> None:
  arrays = predictions(3)
  change(arrays)
  np.savez_compressed(run / recount.saved(3), **arrays)


def test_altered_labels_swapped_networks_and_another_runs_files_are_told(run, tmp_path):
  def relabelled(arrays):
    arrays["labels"][1] = 2

  def exchanged(arrays):
    a, b = "kd/student/poisoned:triggered", "agreement/student/poisoned:triggered"
    arrays[a], arrays[b] = arrays[b], arrays[a]

  for change in (relabelled, exchanged):
    rewrite(run, change)
    told = evidence.check(run).differences
    assert told[0].startswith("predictions/seed3.npz is not the file that the run left")
    assert any("by the predictions" in text for text in told[1:])
  rewrite(run, lambda arrays: arrays.update(predictions(0)))
  assert any("asr: count is" in text for text in evidence.check(run).differences)
  make(tmp_path / "other")
  shutil.copy(tmp_path / "other" / recount.saved(3), run / recount.saved(3))
  assert not evidence.check(run).differences  # the same bytes are the same file


def test_a_file_too_many_is_told(run):
  shutil.copy(run / recount.saved(3), run / recount.saved(4))
  assert evidence.check(run).differences == ["predictions/seed4.npz belongs to no seed of the run"]


class Harm:
  """What runs code when it is unpickled."""

  def __reduce__(self):
    return pytest.fail, ("it was unpickled",)


def objects(arrays):
  arrays["kd/student/poisoned:clean"] = np.array([Harm()] * 8, object)


def floats(arrays):
  arrays["kd/student/poisoned:clean"] = np.full(8, np.nan)


def shorter(arrays):
  arrays["kd/student/poisoned:clean"] = np.zeros(7, np.int32)


def no_flags(arrays):
  arrays["agreement/student:kept"] = np.zeros(6, np.int32)


def nothing(arrays):
  arrays.clear()


@pytest.mark.parametrize("change", [objects, floats, shorter, no_flags, nothing])
def test_arrays_that_no_run_leaves_are_refused(run, change):
  rewrite(run, change)
  assert "seed3.npz" in refused(run)


def test_an_array_that_is_missing_is_named_after_what_is_known_already(run):
  rewrite(run, lambda arrays: arrays.pop("kd/student/poisoned:clean"))
  text = refused(run)
  assert "seed3.npz is not the file that the run left" in text
  assert "they lack 'kd/student/poisoned:clean'" in text and "no cell was made again" in text


def refused(run: pathlib.Path) -> str:
  """What is said of predictions that no cell can be made of."""
  try:
    return "\n".join(evidence.check(run).differences)
  except UserError as error:
    return str(error)


def bomb() -> bytes:
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
      header, {"descr": "<i4", "fortran_order": False, "shape": (1 << 50,)}
    )
    file.writestr("labels.npy", header.getvalue() + b"\0" * 1000)
  return buffer.getvalue()


def twice() -> bytes:
  buffer = io.BytesIO()
  np.savez(buffer, labels=np.zeros(3, np.int32))
  with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(buffer, "a") as file:
    file.writestr("labels.npy", b"x")
  return buffer.getvalue()


def one_array() -> bytes:
  buffer = io.BytesIO()
  np.save(buffer, np.zeros(3))
  return buffer.getvalue()


@pytest.mark.parametrize("data", [bomb, twice, one_array, lambda: b"", lambda: b"not a zip"])
def test_files_that_are_no_predictions_are_refused(tmp_path, data):
  (tmp_path / "seed0.npz").write_bytes(data())
  with pytest.raises(UserError, match=r"seed0\.npz"):
    evidence.read_arrays(tmp_path / "seed0.npz")


def test_a_truncated_file_is_refused_wherever_it_ends(whole, tmp_path):
  data, path = (whole / recount.saved(3)).read_bytes(), tmp_path / "cut.npz"
  for size in [*range(0, len(data), 97), len(data) - 1]:
    path.write_bytes(data[:size])
    with pytest.raises(UserError, match=r"cut\.npz"):
      evidence.read_arrays(path)


@pytest.mark.parametrize("key", ["config", "data", "seeds"])
def test_a_manifest_that_says_too_little_is_no_traceback(run, key):
  def change(document):
    document["run"][key] = [None]

  with pytest.raises(UserError, match="do not fit"):
    edit(run, change)


def test_no_run_at_all(tmp_path):
  with pytest.raises(UserError, match="There is no file"):
    evidence.check(tmp_path)


# Runs of older versions.


def aged(document):
  del document["sha256"]
  for key in ("comparisons", "predictions"):
    del document["run"][key]


def test_of_an_older_run_it_is_said_what_could_not_be_verified(run):
  assert edit(run, aged, sealed=False) == []
  unverified = evidence.check(run).unverified
  words = "no digest of itself", "digests of the predictions", "what the methods are compared with"
  assert len(unverified) == 3
  assert all(word in text for word, text in zip(words, unverified, strict=True))


@pytest.mark.parametrize(
  "change", [deleted, added, duplicated, swapped, a_seed, a_method, a_choice]
)
def test_an_older_run_that_was_edited_is_told_as_well(run, change):
  assert edit(run, lambda document: (aged(document), change(document)), sealed=False)


@pytest.mark.parametrize("name", [p.parent.name for p in ROOT.glob("results/*/results.json")])
def test_the_projects_own_results_hold(name):
  assert not evidence.check(ROOT / "results" / name).differences


def test_the_facts_are_plain_values():
  assert json.loads(json.dumps(copy.deepcopy(comparisons(0)))) == comparisons(0)
