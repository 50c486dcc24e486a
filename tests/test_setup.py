"""A seed's story as phases: every kind of backdoor, repairs, groundwork, and what a key knows."""

import dataclasses
import importlib
import json

import numpy as np
import pytest
import test_recipes
from test_recipes import setup

from rkd_jax import recipes
from rkd_jax.errors import UserError
from rkd_jax.methods import adba, bcu, detox, inversion, nad, pgd_at, robustkd, supervised
from rkd_jax.methods.attack import Attack
from rkd_jax.runner import kind
from rkd_jax.setup import ATTACKERS

WIDE, THIN = "wideresnet-10-2", "wideresnet-10-1"
APART = {"teacher__network": WIDE, "student__network": THIN}


def phases(label, **changes):
  return test_recipes.phases(label, methods=(label,), **changes)


def given(phase):
  return dict(phase.given)


def train(phase):
  return phase.setting("train")


def student(**changes):
  return phases("kd", **changes)["student"]


def teacher(**changes):
  return given(student(**changes))["teacher"].phase


def poison(**changes):
  return student(**changes).setting("poison")


# Kinds of backdoors.


def test_a_fixed_trigger_is_planted_in_one_phase():
  made = setup(**APART, trigger__badnets__size=2)
  assert made.attack is made.trigger is None and not made.learned
  phase = made.planted.phase
  assert made.teacher == made.planted and made.planted.name == "student"
  assert (phase.name, phase.part, phase.given, phase.shared) == ("teacher", "poisoned", (), True)
  assert phase.method == supervised.Method() and phase.setting("networks") == {"student": WIDE}
  found = phase.setting("poison")
  assert found["name"] == "badnets" and found["rate"] == 0.1 and found["plan"] == "random"
  assert found["fields"]["size"] == 2 and found["source"]
  assert found["made_by"] is None and found["scored_by"] == []


def test_a_teacher_may_be_trained_in_its_own_way():
  robust = {**APART, "teacher__method": "pgd_at", "method__pgd_at__eps": 0.25}
  for made in (setup(**robust).planted.phase, setup(**robust).benign):
    assert made.method == pgd_at.Method(eps=0.25) and made.shared
  assert setup(**robust).alone().method == supervised.Method()  # whoever defends is left alone
  with pytest.raises(UserError, match="labels alone"):
    _ = setup(teacher__method="kd").teaching


def test_without_a_backdoor_the_teacher_is_the_benign_one():
  made = setup(**APART, backdoor="none", contamination=0.0)
  assert made.planted.phase == made.benign and made.teacher.phase.part == "clean"
  assert made.student("student", supervised.Method(), {}).setting("poison") is None
  assert kind(made.planted.phase) == "clean"


def test_a_method_without_a_teacher_is_given_none():
  assert "teacher" in given(student())
  alone = phases("pgd_at")["student"]
  assert given(alone) == {} and alone.teacher is None and alone.part == "pool"


def test_the_clean_control_is_the_same_without_poison():
  made = setup(clean=True)
  phase, poisoned = made.teacher.phase, setup().teacher.phase
  assert phase == made.benign and phase.part == "clean" and phase.setting("poison") is None
  same = ("name", "method", "given", "seed", "shared")
  assert [getattr(phase, f) for f in same] == [getattr(poisoned, f) for f in same]
  assert train(phase) == train(poisoned)


def test_an_attack_in_one_phase_delivers_teacher_and_trigger():
  made = setup(backdoor="adba", target=3, method__adba__cap=0.5)
  assert made.attack == adba.Method(target=3, cap=0.5)
  assert made.trigger.phase == made.planted.phase and made.trigger.name == "trigger"
  phase = made.planted.phase
  assert made.planted.name == "teacher" and phase.part == "clean" and phase.shared
  assert phase.setting("networks") == {"teacher": THIN, "shadow": "wideresnet-10-2"}
  assert phase.setting("poison") is None  # it poisons for itself
  found = poison(backdoor="adba", target=3, method__adba__cap=0.5)
  assert found["made_by"] == phase.key and found["target"] == 3 and found["source"] is None


SEARCH = """
import dataclasses

from rkd_jax.methods import attack, base, supervised


@dataclasses.dataclass(frozen=True)
class Plant(supervised.Method):
  reach: float = 0.0

  def roles(self, networks):
    return super().roles(networks) | {"goal": base.Role()}


@dataclasses.dataclass(frozen=True)
class Method(attack.Attack):
  reach: float = 0.5
  delivers = {"trigger": "trigger", "goal": "goal", "far": "far"}

  def plant(self):
    return Plant(reach=self.reach)
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
  """Writes a file of methods/."""
  package = importlib.import_module("rkd_jax.methods")
  monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
  return lambda name, text: (tmp_path / f"{name}.py").write_text(text)


@pytest.fixture
def search(write):
  """The name of an attack in two steps that delivers more than its trigger."""
  write("searched", SEARCH)
  return "searched"


def test_an_attack_in_two_steps(search):
  fields = {"search_steps": 7, "plant_epochs": 3, "plant_rate": 0.002, "reach": 0.25}
  fields = {f"method__searched__{name}": value for name, value in fields.items()}
  changes = {**APART, "backdoor": search, "target": 2, "teacher__optimizer__momentum": 0.8}
  made = setup(**changes, **fields)
  assert isinstance(made.attack, Attack) and made.attack.target == 2

  found = made.trigger.phase
  assert (found.name, found.part, found.shared) == ("trigger", "clean", True)
  assert made.trigger.name == "trigger" and found.method == made.attack
  assert given(found) == {"teacher": made.benign["student"]}
  assert found.setting("networks") == {"teacher": WIDE} and found.setting("poison") is None
  assert train(found)["steps"] == 7
  # What it starts from is the control's teacher, which is trained once for both.
  assert made.benign == setup(clean=True, **changes, **fields).teacher.phase

  phase = made.planted.phase
  assert made.teacher == made.planted and made.planted.name == "student"
  assert (phase.name, phase.part, phase.shared) == ("teacher", "poisoned", True)
  assert phase.method == made.attack.plant() and phase.method.reach == 0.25
  assert given(phase) == {
    "student": made.benign["student"], "goal": found["goal"], "far": found["far"]
  }  # fmt: skip
  assert phase.setting("networks") == {"student": WIDE}
  assert phase.setting("poison")["made_by"] == found.key
  assert (train(phase)["steps"], train(phase)["epochs"]) == (0, 3)
  rest = train(made.benign)["optimizer"] | {"learning_rate": 0.002, "momentum": 0.9}
  assert train(phase)["optimizer"] == rest  # as the attack says, whatever the teacher's has
  assert kind(phase) == "poisoned" and kind(made.benign) == "clean"


def test_cheatkd_is_such_an_attack():
  made = setup(backdoor="cheatkd", target=1)
  assert isinstance(made.attack, Attack) and made.attack.target == 1
  assert made.trigger.phase.method == made.attack
  assert given(made.planted.phase) == {"student": made.benign["student"]}
  assert poison(backdoor="cheatkd", target=1)["made_by"] == made.trigger.phase.key


AIMS = """
import dataclasses

from rkd_jax.methods import kd


@dataclasses.dataclass(frozen=True)
class Method(kd.Method):
  target: int = 0
"""


def test_what_delivers_no_trigger_is_no_backdoor(write):
  write("aiming", AIMS)
  with pytest.raises(UserError, match="'aiming' is no backdoor"):
    setup(backdoor="aiming").teacher  # noqa: B018


# What a key knows of the attack.


@pytest.mark.parametrize("field", ["search_steps", "learning_rate"])
def test_another_search_is_another_teacher_and_pool_but_the_same_clean_teacher(search, field):
  old, new = {"backdoor": search}, {"backdoor": search, f"method__searched__{field}": 3}
  assert teacher(**old).key != teacher(**new).key
  assert student(**old).key != student(**new).key
  assert teacher(clean=True, **old) == teacher(clean=True, **new)
  assert student(clean=True, **old).key != student(clean=True, **new).key  # its pool is triggered
  pure = {"clean": True, "contamination": 0.0}
  assert student(**pure, **old).key == student(**pure, **new).key


def test_a_clean_teacher_is_the_same_whatever_the_backdoor(search):
  found = {teacher(clean=True, backdoor=name).key for name in ("badnets", "adba", search)}
  assert len(found) == 1


def test_plans_are_part_of_the_key_of_whoever_sees_them():
  assert poison()["plan"] == "random" and poison(plan="ladder")["plan"] == "ladder"
  assert student(plan="ladder").key != student().key
  assert teacher(plan="ladder") == teacher()  # the pool's plan is not the teacher's
  assert teacher(teacher__plan="target_only").setting("poison")["plan"] == "target_only"
  assert teacher(teacher__plan="target_only").key != teacher().key
  labelled = {phases("none", plan=plan)["student"].key for plan in ("random", "ladder")}
  assert len(labelled) == 1
  pure = [student(contamination=0.0, plan=plan).key for plan in ("random", "ladder")]
  assert pure[0] == pure[1]  # nobody to plan for


def test_whom_the_attackers_witnesses_choose():
  changes = {"seed": 2, "plan": "boundary"}
  made = setup(**changes)
  assert len(made.attackers()) == ATTACKERS and not setup(seed=2).attackers()
  assert len({2, *(p.seed for p in made.attackers())}) == ATTACKERS + 1
  for phase in made.attackers():
    assert phase == setup(**changes | {"seed": phase.seed}).alone() and phase.part == "labelled"
    assert phase.setting("poison") is None
  assert poison(**changes)["scored_by"] == [phase.key for phase in made.attackers()]
  longer = poison(**changes, labelled__steps=9)["scored_by"]
  assert not {*longer} & {*poison(**changes)["scored_by"]}
  assert student(**changes, labelled__steps=9).key != student(**changes).key
  assert poison()["scored_by"] == []
  # Nor do they score the teacher's own data, or know of repairs.
  assert teacher(**changes).setting("poison")["scored_by"] == [] and teacher(**changes) == teacher(
    seed=2
  )
  repaired = phases("finetune", **changes)["student"]
  assert repaired.setting("poison") == poison(**changes)


# The defender's side.


def test_who_learns_alone_and_where():
  made = setup(labels=0.2, labelled__steps=9, student__epochs=4)
  labelled, more, everything = (
    made.alone(part) for part in ("labelled", "labelled+holdout", "clean")
  )
  assert [p.part for p in (labelled, more, everything)] == ["labelled", "labelled+holdout", "clean"]
  assert train(labelled)["steps"] == train(more)["steps"] == 9 and train(everything)["epochs"] == 4
  assert labelled.setting("labels") == more.setting("labels") == 0.2
  assert everything.setting("labels") is None
  assert not any(p.given or p.shared or p.setting("poison") for p in (labelled, more, everything))
  assert len({p.key for p in (labelled, more, everything)}) == 3


def test_changes_to_a_section_are_changes_alone():
  made = setup()
  changes = {"epochs": 3, "optimizer": {"learning_rate": 0.5}}
  phase = made.phase("p", supervised.Method(), "labelled", "labelled", train=changes)
  plain = made.phase("p", supervised.Method(), "labelled", "labelled")
  optimizer = {**train(plain)["optimizer"], "learning_rate": 0.5}
  assert train(phase) == {**train(plain), "epochs": 3, "optimizer": optimizer}
  assert changes == {"epochs": 3, "optimizer": {"learning_rate": 0.5}}  # still whole
  other = made.phase("p", supervised.Method(), "labelled", "student", networks={"student": WIDE})
  assert other.setting("networks") == {"student": WIDE}


FINETUNED = {"steps": 0, "batch_size": 64}


def repaired(label, **changes):
  """(phases, the repaired teacher) of a repair; the given teacher's network is its own."""
  made = phases(label, **{**APART, "labelled__optimizer__momentum": 0.7, **changes})
  return made, made["repaired"]


@pytest.mark.parametrize(
  ("label", "method"),
  [
    ("finetune", supervised.Method()),
    ("ft_sam", supervised.Method(smoothing=0.1, sam=1.5, sam_adaptive=True)),
  ],
)
def test_fine_tuning_goes_on_with_the_teacher_on_labels(label, method):
  changes = {f"method__{label}__epochs": 7}
  changes |= {"method__ft_sam__radius": 1.5} if label == "ft_sam" else {}
  made, found = repaired(label, **changes)
  assert list(made) == ["repaired", "student"]
  assert found.method == method and found.part == "labelled" and not found.shared
  assert given(found) == {"student": setup(**APART).planted}
  assert found.setting("networks") == {"student": WIDE}
  assert {key: train(found)[key] for key in FINETUNED} == FINETUNED and train(found)["epochs"] == 7
  rate = train(found)["optimizer"]
  assert (rate["learning_rate"], rate["momentum"]) == (0.01, 0.7)
  assert found.setting("poison") is None and found.setting("labels") == 0.05


def test_nad_has_a_tutor_that_was_fine_tuned():
  made, found = repaired("nad", method__nad__epochs=4, method__nad__shallow=0.25)
  assert list(made) == ["tutor", "repaired", "student"]
  tutor = made["tutor"]
  assert given(tutor) == {"student": setup(**APART).planted}
  assert tutor.method == supervised.Method() and tutor.part == "labelled"
  assert given(found) == {"student": setup(**APART).planted, "teacher": tutor["student"]}
  assert found.method == nad.Method(shallow=0.25) and found.part == "labelled"
  for phase in (tutor, found):
    assert train(phase)["epochs"] == 4 and train(phase)["optimizer"]["learning_rate"] == 0.01
    assert {key: train(phase)[key] for key in FINETUNED} == FINETUNED
  assert tutor.setting("networks") == {"student": WIDE}
  assert found.setting("networks") == {"student": WIDE, "teacher": WIDE}


def test_bcu_distils_the_teacher_into_its_own_kind_on_the_pool():
  changes = {"method__bcu__hottest": 2.0, "student__epochs": 6}
  made, found = repaired("bcu", **changes, method__bcu__ramp=7)
  assert list(made) == ["repaired", "student"]
  assert found.method == bcu.Method(hottest=2.0, ramp=7) and found.part == "pool"
  assert given(found) == {"teacher": setup(**APART).planted}
  assert found.setting("networks") == {"student": WIDE, "teacher": WIDE}
  assert train(found)["epochs"] == 6 and train(found)["optimizer"]["learning_rate"] == 0.01
  assert found.setting("poison") == made["student"].setting("poison") != None  # noqa: E711


def test_bcus_last_temperature_comes_at_the_pools_end_with_all_its_images():
  made = setup(**APART, methods=("bcu",), student__batch_size=8, student__epochs=3)
  more = np.zeros((len(made.dataset.train) + 1, *made.dataset.image_shape), np.uint8)
  larger = dataclasses.replace(made, dataset=dataclasses.replace(made.dataset, unlabelled=more))
  spec = recipes.specs(made.config)["bcu"]
  assert recipes.fields("bcu")["ramp"] == 0 and recipes.fields("bcu")["head"] == 0.1
  ramps = [recipes.phases(one, spec)["repaired"].method.ramp for one in (made, larger)]
  assert len(made.dataset.train) == 20 and ramps == [3 * (20 // 8), 3 * (41 // 8)]


def test_a_given_network_is_no_method():
  with pytest.raises(UserError, match="No method is called 'given'"):
    recipes.specs(setup(methods=("given",)).config)
  with pytest.raises(UserError, match="Did you mean 'rkd'"):
    recipes.specs(setup(methods=("rkdd",)).config)


@pytest.mark.parametrize("label", ["finetune", "ft_sam", "nad", "bcu"])
@pytest.mark.parametrize("backdoor", ["badnets", "adba", "cheatkd"])
def test_students_of_repaired_teachers(label, backdoor):
  for clean in (False, True):
    made, found = repaired(label, clean=clean, backdoor=backdoor)
    last, plain = made["student"], student(**APART, clean=clean, backdoor=backdoor)
    assert given(last) == {"teacher": found["student"]}
    assert kind(found) == kind(last.teacher) == ("clean" if clean else "poisoned")
    for phase in made.values():  # so a report says of each whose it is
      assert kind(phase.teacher) == kind(found)
    # But for their teacher they are undefended distillation, down to the draws.
    assert dataclasses.replace(last, given=plain.given) == plain
    assert last.key != plain.key


def test_a_repair_may_come_before_any_method():
  made = phases("finetune", method__finetune__base="agreement", method__agreement__rounds=1)
  assert list(made) == ["repaired", "witness", "student"]
  assert given(made["student"])["teacher"] == made["repaired"]["student"]
  assert made["witness"] == setup().alone()  # it never had a teacher


# Groundwork.


def wrapped(label="robustkd", **changes):
  return phases(label, method__robustkd__base="attention", **changes)


def test_robustkds_groundwork():
  made = wrapped(method__detox__steps=13, method__detox__cap=0.3, **APART)
  assert list(made) == ["detox", "student"]
  first, last = made.values()
  assert first.method == detox.Method(cap=0.3, steps=13) == last.method.detox
  assert first.part == "labelled" and train(first)["steps"] == 13
  assert given(first) == {"teacher": setup(**APART).planted}
  assert first.setting("networks") == {"teacher": WIDE}
  assert given(last) == {"teacher": setup(**APART).planted, "mask": first["mask"]}
  assert isinstance(last.method, robustkd.Method) and last.part == "pool"


def test_a_suspected_trigger_is_looked_for_first():
  changes = {"method__detox__inverted": True, **APART}
  made = wrapped(method__inversion__steps=11, method__inversion__batch_size=5, **changes)
  assert list(made) == ["inversion", "detox", "student"]
  search, first, last = made.values()
  assert search.method == inversion.Method(steps=11, batch_size=5) and search.part == "labelled"
  assert (train(search)["steps"], train(search)["batch_size"]) == (11, 5)
  planted = setup(**APART).planted
  assert given(search) == {"teacher": planted} and search.setting("networks") == {"teacher": WIDE}
  assert given(first) == {"teacher": planted, "suspect": search["suspect"]}
  assert given(last) == {"teacher": planted, "mask": first["mask"]}
  for phase, plain in zip(made.values(), wrapped(**changes).values(), strict=True):
    assert phase.key != plain.key


def test_groundwork_under_agreement():
  made = wrapped("agreement", method__agreement__base="robustkd")
  assert list(made) == ["detox", "witness", "round1", "student"]
  for name in ("round1", "student"):
    assert given(made[name])["mask"] == made["detox"]["mask"]
    assert isinstance(made[name].method.base, robustkd.Method)
  assert made["detox"] == wrapped()["detox"]  # made once for both


def test_groundwork_under_a_repair_is_of_the_repaired_teacher():
  made = wrapped("finetune", method__finetune__base="robustkd")
  assert list(made) == ["repaired", "detox", "student"]
  own = made["repaired"]["student"]
  assert given(made["detox"]) == {"teacher": own}
  assert given(made["student"]) == {"teacher": own, "mask": made["detox"]["mask"]}
  assert made["detox"].key != wrapped()["detox"].key


def test_whatever_a_name_means_its_phases_have_keys_that_can_be_told_again(search):
  attacks = {"adba", "backweak", "cheatkd", "latent", "second_choice", search}
  stages = {"detox", "inversion", "retrospection", "unlearning"}  # nothing that stands alone
  for label in sorted({*recipes.names()} - attacks - stages):
    found, again = ({n: p.key for n, p in phases(label).items()} for _ in range(2))
    assert found == again and len({*found.values()}) == len(found), label
    json.dumps([phase.describe() for phase in phases(label).values()])
