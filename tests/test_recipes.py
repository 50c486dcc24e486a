"""Recipes: which phases a method's name means, which of them are one, and what a key depends on."""

import dataclasses
import importlib

import numpy as np
import pytest

from configs import ablation_robustkd, quickstart
from rkd_jax import config as configs
from rkd_jax import recipes, selection
from rkd_jax.data.sources import Dataset, Split
from rkd_jax.errors import UserError
from rkd_jax.methods import (
  agreement,
  attention,
  consistency,
  detox,
  fitnet,
  kd,
  ofd,
  robustkd,
)
from rkd_jax.setup import Setup, make_method


def dataset(fingerprint="f"):
  part = Split(np.zeros((20, 16, 16, 1), np.uint8), np.arange(20, dtype=np.int32) % 10)
  return Dataset(
    "made up", part, part, part, tuple("0123456789"), (0.5,), (0.2,), fingerprint
  )  # fmt: skip


def setup(seed=0, clean=False, fingerprint="f", **changes):
  config = quickstart.get_config("smoke")
  with config.unlocked():
    config.methods = ("none", "kd", "agreement")
    for key, value in changes.items():
      section, _, name = key.replace("__", ".").rpartition(".")
      target = config
      for part in section.split(".") if section else ():
        target = target[part]
      target[name] = value
  configs.normalise(config)
  return Setup(config, dataset(fingerprint), seed, clean)


def phases(label="agreement", **changes):
  made = setup(**changes)
  return recipes.phases(made, recipes.specs(made.config)[label])


def test_none_is_one_phase_on_the_labelled_part():
  (student,) = phases("none").values()
  assert student.part == "labelled" and not student.given
  assert "supervised" in type(student.method).__module__


def test_a_method_without_a_recipe_is_one_phase_on_the_pool():
  made = phases("kd")
  student = made["student"]
  assert list(made) == ["student"] and student.part == "pool"
  assert student.method == kd.Method()
  ((role, delivery),) = student.given
  assert (role, delivery.name, delivery.phase.part) == ("teacher", "student", "poisoned")
  assert delivery.phase.shared and not student.shared
  clean = dict(phases("kd", clean=True)["student"].given)["teacher"].phase
  assert clean.part == "clean" and clean.key != delivery.phase.key


def test_agreements_rounds():
  made = phases(method__agreement__rounds=3, method__agreement__sure=0.6)
  assert list(made) == ["witness", "round1", "round2", "student"]
  assert made["witness"] == phases("none")["student"]  # trained once for both
  given = {name: dict(made[name].given) for name in made}
  assert set(given["round1"]) == {"teacher", "witness"}
  assert given["round1"]["witness"] == made["witness"]["student"]
  for name, before in (("round2", "round1"), ("student", "round2")):
    assert set(given[name]) == {"teacher", "witness", "kept"}
    assert given[name]["witness"] == made[before]["student"]
    assert given[name]["kept"] == made[before]["keep"]
  methods = [made[name].method for name in ("round1", "round2", "student")]
  # a student of the teacher may say the trigger's class second, and what it says by a hair
  assert [(m.within, m.sure) for m in methods] == [(0.1, 0.0), (0.0, 0.6), (0.0, 0.6)]
  assert len({given[name]["teacher"] for name in given if name != "witness"}) == 1
  # the last round draws as every other method's student does: a paired comparison
  assert made["student"].name == phases("kd")["student"].name != made["round2"].name
  assert isinstance(made["student"].method, agreement.Method)
  assert list(phases(method__agreement__rounds=1)) == ["witness", "student"]


def test_further_witnesses_learn_from_the_same_labels_and_are_asked_in_the_first_round():
  made = phases(method__agreement__seconds=2, method__agreement__sure=0.7)
  witnesses = ["witness", "witness2", "witness3"]
  assert list(made) == [*witnesses, "round1", "student"]
  assert made["witness"] == phases("none")["student"]
  alone = [made[name] for name in witnesses]
  assert {phase.part for phase in alone} == {"labelled"} and not any(p.given for p in alone)
  assert len({phase.seed for phase in alone}) == 1 and len({phase.key for phase in alone}) == 3
  assert len({phase.name for phase in alone}) == 3  # what a phase draws depends on its name
  given = dict(made["round1"].given)
  assert [given[who] for who in witnesses] == [phase["student"] for phase in alone]
  assert set(given) == {"teacher", *witnesses}
  assert set(dict(made["student"].given)) == {"teacher", "witness", "kept"}
  asked = [(m.seconds, m.sure) for m in (made[name].method for name in ("round1", "student"))]
  assert asked == [(2, 0.0), (0, 0.7)]


def test_its_fields_reach_the_method_and_its_base():
  changes = {"method__agreement__readmit": "never", "method__kd__alpha": 0.3}
  method = phases(**changes)["student"].method
  assert method.readmit == "never" and method.base == kd.Method(alpha=0.3)


def test_plugins_around_plugins():
  changes = {"method__agreement__base": "consistency", "method__consistency__weight": 3.0}
  made = setup(**changes)
  spec = recipes.specs(made.config)["agreement"]
  method = recipes.phases(made, spec)["student"].method
  assert isinstance(method.base, consistency.Method) and method.base.weight == 3
  assert method.base.base == kd.Method()
  assert recipes.innermost(spec)["name"] == "kd"
  assert recipes.innermost({"name": "kd"}) is None
  nested = {"name": "a", "base": {"name": "b", "base": {"name": "c"}}}
  assert recipes.innermost(nested) == {"name": "c"}


def test_a_method_given_whole():
  spec = {"name": "consistency", "weight": 2.0, "base": {"name": "kd", "alpha": 0.2}}
  assert make_method(spec) == consistency.Method(weight=2.0, base=kd.Method(alpha=0.2))
  assert make_method({"name": "consistency"}).base == kd.Method()


def resolved(label, **changes):
  return recipes.specs(setup(methods=(label,), **changes).config)[label]


def test_nested_names_stand_for_the_configs_own_fields():
  changes = {"method__robustkd__base": "attention", "method__attention__weight": 7.0}
  spec = resolved("robustkd", **changes, method__detox__cap=0.4, method__detox__mask="learned")
  assert (spec["base"]["name"], spec["base"]["weight"]) == ("attention", 7)
  found = spec["detox"]
  assert (found["name"], found["cap"], found["mask"]) == ("detox", 0.4, "learned")
  method = make_method(spec)
  assert method.base == attention.Method(weight=7.0)
  assert method.detox == detox.Method(cap=0.4, mask="learned")
  # One that is described, not named, is taken as it is said.
  whole = {"name": "robustkd", "base": {"name": "ofd", "alpha": 0.5}, "detox": {"name": "detox"}}
  method = make_method(resolved("mine", method__mine=whole, method__detox__cap=0.4))
  assert method.base == ofd.Method(alpha=0.5) and method.detox == detox.Method()


def test_a_label_of_ones_own_may_be_a_base():
  mine = {"name": "consistency", "amplitude": 0.25}
  spec = resolved("agreement", method__agreement__base="mine", method__mine=mine)
  assert make_method(spec["base"]) == consistency.Method(amplitude=0.25, base=kd.Method())
  with pytest.raises(UserError, match="'robustkd' wraps itself"):
    resolved("robustkd", method__robustkd__base="robustkd")


def test_a_variant_says_what_is_left_open(monkeypatch):
  base = {"name": "fitnet", "variance": "views"}
  tuned = {"base": base, "detox": {"name": "detox", "combine": "convex"}}
  monkeypatch.setitem(robustkd.VARIANTS, "tuned", tuned)
  own = {"method__fitnet__weight": 2.0, "method__fitnet__variance": "moments"}
  spec = resolved("robustkd", method__robustkd__variant="tuned", **own)
  assert make_method(spec) == robustkd.Method(
    base=fitnet.Method(weight=2.0, variance="views"), detox=detox.Method(combine="convex"),
    variant="tuned",
  )  # fmt: skip
  changes = {"method__robustkd__variant": "tuned", "method__robustkd__base": "ofd"}
  assert resolved("robustkd", **changes)["base"]["name"] == "ofd"  # what is said goes first
  with pytest.raises(UserError, match=r"robustkd\.variant is 'litteral'"):
    resolved("robustkd", method__robustkd__variant="litteral")


@pytest.mark.parametrize("variant", ["paper", "tuned"])
def test_both_variants_can_be_made(variant):
  spec = resolved("robustkd", method__robustkd__variant=variant)
  made = recipes.phases(
    setup(), selection.with_values(spec, dict.fromkeys(selection.strengths(spec), 0.0))
  )
  assert made["student"].method.variant == variant and "detox" in made


def test_what_a_method_is_in_its_own_words():
  assert recipes.told(resolved("kd")).startswith("Knowledge distillation (Hinton,")
  said = recipes.told(resolved("rkd"))
  assert said.startswith("agreement around consistency around kd. Witnesses from the labelled")
  assert recipes.told({"name": "none"}) == "No teacher: supervised on the labelled part."


def test_rkd_is_agreement_around_consistency():
  spec = resolved("rkd", method__kd__alpha=0.3)
  grids = selection.strengths(spec)
  assert [spec["name"], spec["base"]["name"]] == ["agreement", "consistency"]
  assert spec["base"]["base"]["name"] == "kd" == recipes.innermost(spec)["name"]
  made = recipes.phases(setup(), selection.with_values(spec, dict.fromkeys(grids, 0)))
  assert list(made) == ["witness", "witness2", "witness3", "round1", "student"]
  method = made["student"].method
  assert isinstance(method, agreement.Method) and isinstance(method.base, consistency.Method)
  assert method.base.base == kd.Method(alpha=0.3)


def test_grids_of_a_module_of_ones_own(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(tmp_path)
  (tmp_path / "ours").mkdir()
  text = (
    "import dataclasses\nfrom rkd_jax.methods import kd\n\n"
    "@dataclasses.dataclass(frozen=True)\nclass Method(kd.Method):\n  twist: float = 0.5\n"
  )
  (tmp_path / "ours" / "twisted.py").write_text(text)
  spec = resolved("mine", method__mine={"name": "ours.twisted", "twist": (0.25, 0.5)})
  assert recipes.fields("ours.twisted")["twist"] == 0.5
  assert selection.strengths(spec) == {("twist",): (0.0, 0.25, 0.5)}


def test_groundwork_goes_first_whatever_wraps_it(monkeypatch):
  def ground(made, spec):
    phase = made.alone("clean")
    return {"prepared": phase}, {"student": phase["student"]}

  monkeypatch.setitem(recipes.GROUNDWORK, "kd", ground)
  for label, number in (("kd", 1), ("agreement", 2)):
    made = phases(label)
    assert next(iter(made)) == "prepared"
    students = [p for n, p in made.items() if n not in ("prepared", "witness")]
    assert len(students) == number
    for student in students:
      assert dict(student.given)["student"] == made["prepared"]["student"]


# Keys.


def keys(label="kd", **changes):
  return {name: phase.key for name, phase in phases(label, **changes).items()}


def test_equal_phases_have_equal_keys_and_are_equal():
  assert keys() == keys()
  a, b = phases("kd")["student"], phases("kd")["student"]
  assert a == b and hash(a) == hash(b) and a is not b


@pytest.mark.parametrize(
  "changes",
  [
    {"seed": 1}, {"clean": True}, {"fingerprint": "g"}, {"labels": 0.1}, {"contamination": 0.1},
    {"target": 1}, {"backdoor": "blended"}, {"trigger__badnets__size": 2}, {"teacher__poison": 0.2},
    {"teacher__epochs": 2}, {"student__epochs": 2}, {"student__augment__flip": True},
    {"student__optimizer__learning_rate": 0.2}, {"student__network": "wideresnet-10-2"},
    {"teacher__network": "wideresnet-10-2"}, {"method__kd__alpha": 0.5}, {"bn_group": 8},
    {"dtype": "bfloat16"}, {"student__batch_size": 8},
  ],
  ids=str,
)  # fmt: skip
def test_whatever_matters_changes_the_students_key(changes):
  assert keys(**changes)["student"] != keys()["student"]


@pytest.mark.parametrize(
  "changes",
  [
    {"devices": 1}, {"save_every": 7}, {"eval_batch": 16}, {"teachers_dir": "/x"},
    {"data__data_dir": "/y"}, {"seeds": (0, 1)}, {"methods": ("kd",)}, {"labelled__steps": 9},
    {"method__agreement__rounds": 5}, {"clean_teacher_seeds": 0}, {"trigger__blended__alpha": 0.5},
    {"networks__shadow": "wideresnet-10-1"},
  ],
  ids=str,
)  # fmt: skip
def test_whatever_does_not_leaves_it(changes):
  assert keys(**changes) == keys()


def test_a_teacher_depends_on_nothing_of_its_students():
  teacher = lambda **changes: dict(phases("kd", **changes)["student"].given)["teacher"].phase.key  # noqa: E731
  changes = {"student__epochs": 5, "labels": 0.2, "contamination": 0.0, "method__kd__alpha": 0.1}
  assert teacher(**changes) == teacher()
  assert teacher(teacher__poison=0.2) != teacher()
  clean = lambda **changes: teacher(clean=True, **changes)  # noqa: E731
  assert clean(teacher__poison=0.2) == clean() == clean(target=3)  # nor a clean one on the trigger


def test_a_learned_trigger_is_its_teachers():
  made = phases("kd", backdoor="adba")["student"]
  ((_, delivery),) = made.given
  assert delivery.name == "teacher" and delivery.phase.part == "clean"
  assert delivery.phase.method.target == 0 and "trigger" in delivery.phase.method.delivers
  assert phases("kd", backdoor="adba", method__adba__cap=0.5)["student"].key != made.key
  control = phases("kd", backdoor="adba", clean=True)["student"]
  assert dict(control.given)["teacher"].name == "student"


def test_a_method_added_at_run_time_needs_no_entry(tmp_path, monkeypatch):
  package = importlib.import_module("rkd_jax.methods")
  monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
  text = (
    "import dataclasses\nfrom rkd_jax.methods import kd\n\n"
    "@dataclasses.dataclass(frozen=True)\nclass Method(kd.Method):\n  twist: float = 0.5\n"
  )
  (tmp_path / "freshly.py").write_text(text)
  assert "freshly" in recipes.names()
  assert recipes.fields("freshly") == {"temperature": 4.0, "alpha": 0.9, "twist": 0.5}
  assert configs.default().method.freshly.twist == 0.5
  made = setup(methods=("freshly",), method__freshly__twist=0.25)
  method = recipes.phases(made, recipes.specs(made.config)["freshly"])["student"].method
  assert method.twist == 0.25


def test_fields_of_a_recipe_and_its_method():
  found = recipes.fields("agreement")
  assert found["rounds"] == 2 and found["base"] == "kd"
  own = {f.name for f in dataclasses.fields(agreement.Method)} - {"base"}
  assert set(found) == {*own, "rounds", "base"}
  assert recipes.fields("none") == {}


@pytest.mark.parametrize(
  ("wrong", "message"),
  [
    ({"methods": ("kdd",)}, "'kdd'. Did you mean 'kd'"),
    ({"method__agreement__base": "nothing"}, "No method is called 'nothing'"),
    ({"method__agreement__base": "agreement"}, "wraps itself"),
    ({"method__agreement__rounds": 0}, "rounds is 0"),
    ({"method__agreement__seconds": -1}, "seconds is -1"),
    ({"method__agreement__sure": 2.0}, "sure is 2"),
    ({"method__agreement__readmit": "perhaps"}, "readmit"),
  ],
)
def test_what_cannot_be(wrong, message):
  with pytest.raises(UserError, match=message):
    made = setup(**wrong)
    for spec in recipes.specs(made.config).values():
      recipes.phases(made, spec)


def test_all_ways_to_look_back_share_the_vaccinated_student():
  def made(vaccine=(), retrospection=()):
    fields = {"vaccine": vaccine, "retrospection": retrospection}
    changes = {f"method__{at}__{n}": v for at, some in fields.items() for n, v in some}
    return phases("abd", methods=("abd",), **changes)

  one, other = made(), made(retrospection=[("weight", 5.0), ("share", 0.5)])
  assert one["vaccinated"] == other["vaccinated"] and one["student"] != other["student"]
  assert made(vaccine=[("layers", 2)])["vaccinated"].key != one["vaccinated"].key


def test_the_stages_of_abd_are_around_its_base():
  made = phases("abd", methods=("abd",), method__abd__base="ood")
  assert all(phase.method.base.name == "ood" for phase in made.values())
  names = {"base": "zskt", "vaccine": "vaccine", "retrospection": "retrospection"}
  assert recipes.nested("abd") == names and recipes.fields("abd") == {**names, "rounds": 20}
  assert recipes.nested("finetune") == {"base": "kd"} and recipes.nested("agreement")


def test_fields_that_a_recipe_does_not_take():
  with pytest.raises(UserError, match="does not take these fields"):
    recipes.phases(setup(), {"name": "none", "rounds": 3})
  with pytest.raises(UserError, match="has no field 'alhpa'"):
    recipes.phases(setup(), {"name": "kd", "alhpa": 3})


def test_what_a_defence_is_compared_with():
  specs = recipes.specs(ablation_robustkd.get_config("badnets2"))
  against = {label: recipes.undefended(specs, spec) for label, spec in specs.items()}
  assert against["rkd"] == against["blend"] == against["finetune"] == "kd"
  assert against["kd"] is None and against["ofd"] == "kd"
  # A term on variance is a defence, on a base as well: what is left without it is plain OFD.
  for label in ("variance_views", "robustkd", "robustkd_views", "robustkd_tuned", "blend_ofd"):
    assert against[label] == "ofd", label
  assert against["robustkd_attention"] == "attention"
  assert recipes.undefended({"rkd": specs["rkd"]}, specs["rkd"]) is None


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    ({"name": "robustkd", "base": "supervised"}, "'supervised' has no teacher.*as ofd"),
    ({"name": "consistency", "base": "supervised"}, "'supervised' has no teacher.*as kd"),
    ({"name": "robustkd", "detox": "kd"}, "'kd', which detoxifies no features"),
    ({"name": "robustkd", "detox": {"name": "detox", "learning_rate": -1.0}}, "learning_rate"),
    ({"name": "consistency", "redraw": 0}, "consistency.redraw is 0"),
    ({"name": "retrospection"}, "earlier phase made .generator., and here none comes before it"),
    ({"name": "retrospection", "base": "vaccine"}, "cannot guard what 'vaccine' guards"),
  ],
)
def test_what_cannot_be_trained_is_said_before_anything_is(spec, message):
  with pytest.raises(UserError, match=message):
    made = setup(methods=("mine",), method__mine=spec)
    recipes.phases(made, recipes.specs(made.config)["mine"])


def test_several_phases_stand_outermost():
  for outer, inner in (("consistency", "agreement"), ("agreement", "nad")):
    with pytest.raises(UserError, match=f"'{outer}' cannot wrap '{inner}', which is several"):
      resolved(outer, **{f"method__{outer}__base": inner})
  assert resolved("finetune", method__finetune__base="agreement")["base"]["name"] == "agreement"


def test_what_trains_no_student_is_no_method_to_compare():
  for name in ("detox", "cheatkd", "inversion"):
    with pytest.raises(UserError, match=f"'{name}' trains no student"):
      recipes.specs(setup(methods=(name,)).config)


def test_a_grid_of_one_is_that_value():
  made = setup()
  made.config.method.rkd.base.amplitude = (0.25,)
  spec = recipes.resolved(made.config, {"name": "rkd"} | recipes.configured(made.config, "rkd"))
  assert spec["base"]["amplitude"] == 0.25 and not selection.strengths(spec)
