"""A run that chooses a strength: by the rule, on the clean hold-out alone, and once."""

import json

import numpy as np
import pytest

from configs import quickstart
from rkd_jax import evidence, experiment, selection
from rkd_jax.data import sources
from rkd_jax.errors import UserError
from rkd_jax.evaluation.predictions import Questions
from rkd_jax.methods import consistency, detox, robustkd
from rkd_jax.runner import Finished

pytestmark = pytest.mark.slow
HOLDOUT, TEST, TRAIN = 197, 500, 300
METHODS = {
  "blend": {"name": "consistency", "amplitude": (0.25, 0.5)},
  "ours": {"name": "robustkd", "base": "attention", "detox": {"name": "detox", "steps": 3}},
}


def config(holdout=HOLDOUT):
  found = quickstart.get_config("smoke")
  found.data.update({"train": float(TRAIN), "holdout": float(holdout)})
  found.update({"devices": 1, "clean_teacher_seeds": 0, "all_labels_control": False})
  for label, spec in METHODS.items():
    found.method[label] = spec
  found.methods = ("none", *METHODS)
  return found.lock()


def run(workdir, **changes):
  experiment.run(config(**changes), workdir, "quickstart", quiet=True)
  return workdir


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """(workdir, what happened in order: choices begun and ended, who was asked what)."""
  happened = []
  choose, answer, ask = selection.choose, Finished.answer, Questions._ask

  def chosen(*args):
    happened.append(("begin", None, None))
    found = choose(*args)
    happened.append(("end", found[1], None))
    return found

  def answered(self, questions):
    happened.append(("answer", self.phase, questions))
    return answer(self, questions)

  def asked(self, *args, **kwargs):
    happened.append(("ask", None, self))
    return ask(self, *args, **kwargs)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(selection, "choose", chosen)
    patch.setattr(Finished, "answer", answered)
    patch.setattr(Questions, "_ask", asked)
    workdir = run(tmp_path_factory.mktemp("whole") / "run")
  return workdir, happened


def read(workdir):
  document = json.loads((workdir / "results.json").read_text())
  return document, dict(np.load(workdir / "predictions" / "seed0.npz"))


def hits(arrays):
  """{value: bool[M]} of the one strength that was chosen, in the order in which they are tried."""
  names = {value: f"blend/poisoned/amplitude={value:g}:holdout" for value in (0.0, 0.5, 0.25)}
  return {value: arrays[name] for value, name in names.items() if name in arrays}


def test_what_is_chosen_follows_from_what_lies_on_disk(whole):
  document, arrays = read(whole[0])
  found = hits(arrays)
  assert len([name for name in arrays if name.endswith(":holdout")]) == len(found)
  passes = found[0.5].mean() >= found[0.0].mean() - 0.01
  assert list(found) == ([0.0, 0.5] if passes else [0.0, 0.5, 0.25])
  assert all(right.shape == (HOLDOUT,) and right.dtype == bool for right in found.values())
  (choice,) = document["run"]["selection"]
  assert choice == {
    "seed": 0, "method": "blend", "teacher": "poisoned", "strength": "amplitude",
    "chosen": selection.largest(found), "holdout": HOLDOUT,
    "accuracy": {f"{value:g}": right.mean() for value, right in found.items()},
  }  # fmt: skip
  assert not evidence.check(whole[0]).differences
  assert len({right.tobytes() for right in found.values()}) > 1  # strengths are different students


def test_the_rule_is_shown_neither_triggers_nor_test_images(whole):
  held = sources.load("digits", None, 0, float(HOLDOUT), float(TEST), float(TRAIN)).holdout
  tried = list(hits(read(whole[0])[1]))
  open_, before, after, candidates = False, [], [], []
  for what, phase, questions in whole[1]:
    open_ = what == "begin" or (open_ and what != "end")
    if what == "ask":
      (before if open_ else after).append(questions)
    if what == "answer" and open_:
      candidates.append((phase.name, phase.method.amplitude))
      np.testing.assert_array_equal(questions.images, held.images)
  assert candidates == [("student", value) for value in tried]
  assert len(before) > len(tried)  # curves of training, too
  for questions in before:
    assert questions.backdoor is None
    np.testing.assert_array_equal(questions.images, held.images[: len(questions.images)])
  # Only then, and not before any other choice, is anyone asked about the test set.
  assert {len(questions.images) for questions in after} == {HOLDOUT, TEST}
  assert any(questions.backdoor is not None for questions in after)
  last = max(i for i, (what, *_) in enumerate(whole[1]) if what == "end")
  assert all(q is None or len(q.images) == HOLDOUT for _, _, q in whole[1][:last])


def test_what_is_reported_is_the_student_that_was_chosen(whole):
  document, _ = read(whole[0])
  asked = [
    phase.method.amplitude
    for what, phase, questions in whole[1]
    if what == "answer" and len(questions.images) == TEST
    if isinstance(phase.method, consistency.Method)
  ]
  assert asked == [document["run"]["selection"][0]["chosen"]] * 2  # as it is, and triggered


def test_the_labels_of_the_holdout_are_also_given_to_a_student_alone(whole):
  document, arrays = read(whole[0])
  labels = (round(0.05 * TRAIN) + HOLDOUT) / TRAIN
  rows = [c for c in document["cells"] if c["method"] == "none"]
  assert {c["labels"] for c in rows} == {0.05, labels}
  own = {c["metric"]: c for c in rows if c["labels"] == labels}
  assert {"acc", "asr", "ra"} <= set(own)
  assert all(
    c["network"] == "student" and c["teacher"] is c["threat"] is None for c in own.values()
  )
  clean = arrays[f"none/{labels:g}:clean"]
  assert own["acc"]["count"] == (clean == arrays["labels"]).sum() and own["acc"]["n"] == TEST
  names = [phase["name"] for phase in document["run"]["phases"]]
  assert names.count("alone-labelled+holdout") == names.count("alone-labelled") == 1


def test_robustkd_has_its_detoxified_teacher_in_the_report(whole):
  document, arrays = read(whole[0])
  made = {p.name: p for what, p, _ in whole[1] if what == "answer" and p.name == "detox"}
  assert isinstance(made["detox"].method, detox.Method)
  (student,) = {
    p for what, p, _ in whole[1] if what == "answer" and isinstance(p.method, robustkd.Method)
  }
  assert dict(student.given)["mask"] == made["detox"]["mask"]
  (phase,) = (p for p in document["run"]["phases"] if p["name"] == "detox")
  assert phase["steps"] == 3 and phase["teacher"] == "poisoned"
  for network in ("detox", "student"):
    clean = arrays[f"ours/{network}/poisoned:clean"]
    (cell,) = (
      c for c in document["cells"]
      if (c["method"], c["network"], c["metric"]) == ("ours", network, "acc")
    )  # fmt: skip
    assert cell["value"] == pytest.approx((clean == arrays["labels"]).mean())
    assert cell["base"] == "attention"


def test_a_second_start_makes_nothing_anew(whole):
  workdir = whole[0]
  done = lambda: {p: p.stat().st_mtime_ns for p in workdir.parent.rglob("done.json")}  # noqa: E731
  before, (old, arrays) = done(), read(workdir)
  # teacher, robustkd's two, two that learn alone, and one for each strength that was tried
  assert len(before) == 5 + len(hits(arrays))
  run(workdir)
  new, again = read(workdir)
  assert done() == before and new["cells"] == old["cells"]
  assert new["run"]["selection"] == old["run"]["selection"]
  assert set(again) == set(arrays)
  for name, array in arrays.items():
    np.testing.assert_array_equal(again[name], array)


def test_a_holdout_too_small_for_the_rule_is_said_before_any_training(tmp_path):
  with pytest.raises(UserError, match=r"blend chooses strengths \(amplitude\) .* has 90 images"):
    run(tmp_path / "run", holdout=90)
  assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("chosen", [(1, 0), (0, 1)])
def test_a_clean_teachers_student_may_choose_other_networks(tmp_path, monkeypatch, chosen):
  """One has a second witness, the other has none: what both have is compared."""
  found = quickstart.get_config("smoke")
  found.data.update({"train": float(TRAIN), "holdout": float(HOLDOUT)})
  found.update({"devices": 1, "clean_teacher_seeds": 1, "all_labels_control": False})
  found.method.two = {"name": "agreement", "seconds": (0, 1)}
  found.methods = ("two",)
  turns = iter(chosen)  # the poisoned teacher's student first
  choose = selection.choose

  def takes(spec, ask):
    value = next(turns)
    with monkeypatch.context() as patch:
      patch.setattr(selection, "largest", lambda hits: value)
      return choose(spec, ask)

  monkeypatch.setattr(selection, "choose", takes)
  experiment.run(found.lock(), tmp_path / "run", "two", quiet=True)
  wrong = evidence.check(tmp_path / "run").differences
  assert all("by the rule" in line for line in wrong), wrong  # it is not the rule that chose
  document, arrays = read(tmp_path / "run")
  poisoned, clean = (f"two/witness2/{kind}:clean" in arrays for kind in ("poisoned", "clean"))
  assert poisoned == (chosen == (1, 0)) and not clean
  (carried,) = (cell for cell in document["cells"] if cell["metric"] == "carried_asr")
  assert carried["value"] is not None
