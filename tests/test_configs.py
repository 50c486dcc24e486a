"""Every setting of every config is one that can run, and is what its docstring calls it."""

import dataclasses

import jax
import numpy as np
import pytest

from configs import (
  ablation_robustkd,
  cifar10_abd,
  cifar10_kdiga,
  cifar10_robustkd,
  confirm_robustkd,
  digits_abd,
  digits_kdiga,
)
from rkd_jax import config as configs
from rkd_jax import recipes, selection
from rkd_jax.data.sources import load
from rkd_jax.errors import UserError
from rkd_jax.methods import zskt
from rkd_jax.setup import Setup

SETTINGS = [
  *((ablation_robustkd, name) for name in ablation_robustkd.SETTINGS),
  *((confirm_robustkd, name) for name in confirm_robustkd.SETTINGS),
  *((cifar10_robustkd, f"{pair}-badnets") for pair in cifar10_robustkd.PAIRS),
  (cifar10_robustkd, "s-adba"),
  *((digits_abd, name) for name in (*digits_abd.TRIGGERS, "cmi-badnets")),
  *((cifar10_abd, name) for name in cifar10_abd.TRIGGERS),
  *(
    (cifar10_abd, f"{kinds}-badnets_grid")
    for kinds in ("short", "cmi", "short-cmi", "gtsrb", "short-gtsrb")
  ),
  *((digits_kdiga, name) for name in digits_kdiga.ARGUMENTS),
  *((cifar10_kdiga, name) for name in cifar10_kdiga.PAIRS),
]


@pytest.fixture(scope="module")
def digits():
  return load("digits", None, 0, 197.0, 500.0)


@pytest.mark.parametrize(
  ("module", "name"), SETTINGS, ids=[f"{m.__name__.split('.')[-1]}:{n}" for m, n in SETTINGS]
)
def test_a_setting_is_checked_and_its_methods_have_phases(module, name, digits):
  config = module.get_config(name)
  configs.normalise(config)
  configs.check(config)
  said = name.rpartition("-")[-1] in module.__doc__
  assert "dose" in name or said or module is cifar10_robustkd
  for label, spec in recipes.specs(config).items():
    selection.check(label, spec, 197)
    largest = {path: grid[-1] for path, grid in selection.strengths(spec).items()}
    setup = Setup(config, digits, int(config.seeds[0]))
    made = recipes.phases(setup, selection.with_values(spec, largest))
    assert list(made)[-1] == "student"


@pytest.mark.parametrize("pair", cifar10_robustkd.PAIRS)
def test_every_pair_has_every_form_of_robustkd(pair, digits):
  config = cifar10_robustkd.get_config(f"{pair}-badnets")
  config.method.tuned = {"name": "robustkd", "variant": "tuned"}
  config.method.by_attention = {"name": "robustkd", "base": "attention"}
  config.methods = ("attention", "fitnet", "tuned", "by_attention")
  setup = Setup(config, digits, 0)
  for spec in recipes.specs(config).values():
    chosen = selection.with_values(spec, dict.fromkeys(selection.strengths(spec), 0.0))
    assert "student" in recipes.phases(setup, chosen)


def test_the_settings_differ_as_they_say():
  get = ablation_robustkd.get_config
  assert get("adba15").method.adba.cap == 0.15 and get("adba15").contamination == 0
  assert get("blended5").contamination == 0.05 and get("blended5").backdoor == "blended"
  patch = confirm_robustkd.get_config("patch5")
  assert patch.trigger.badnets.size == 5 and patch.clean_teacher_seeds == 1
  assert confirm_robustkd.get_config("latent0").clean_teacher_seeds == -1
  assert round(confirm_robustkd.get_config("dose16").contamination * 1100) == 16
  assert cifar10_robustkd.get_config("s-adba").contamination == 0
  short, whole = (cifar10_abd.get_config(a) for a in ("short-blended", "blended"))
  assert short.student.steps < whole.student.steps == 80_000 and short.backdoor == "blended"
  assert cifar10_robustkd.get_config("d-latent").student.network == "resnet-56"


@pytest.mark.parametrize("argument", ["badnets", "short-trojan_wm", "short-gtsrb-trojan_wm"])
def test_what_stands_beside_a_divergence_in_nats_has_its_published_share(argument):
  """Nats are T^2 K times a mean over classes: the penalty is .1 of them, as published, and a step
  of the inner problem moves a perturbation as far as the published one does."""
  module = cifar10_abd if argument.startswith("short") else digits_abd
  classes, method = 43 if "gtsrb" in argument else 10, module.get_config(argument).method
  spec, literal = method.zskt.to_dict(), method.retrospection
  nats = zskt.Method(**spec)
  means = dataclasses.replace(nats, reduction="mean")
  one, other = (jax.random.normal(k, (4, classes)) for k in jax.random.split(jax.random.key(0)))
  more = nats.divergence(one, other) / means.divergence(one, other)
  assert method.vaccine.reduction == "mean"
  assert np.allclose(method.vaccine.penalty, 0.1 * more)
  # inner_rate grad (decay |d|^2 - more KL) = .1 grad (.001 |d|^2 - KL)
  assert np.allclose(literal.inner_rate * more, 0.1)
  assert np.allclose(literal.inner_rate * literal.decay, 0.1 * 1e-3)
  assert np.allclose(literal.search_decay, 1e-3 * more) and literal.rate == 0.1


def test_abd_as_published_around_cmi_lets_the_plain_answer_have_its_gradient():
  specs = recipes.specs(digits_abd.get_config("cmi-badnets"))
  literal, ours = (specs[label]["retrospection"] for label in ("abd_published", "abd"))
  assert specs["abd_published"]["base"]["name"] == "cmi" and not literal["detach"]
  assert literal["search_decay"] == 0 and literal["decay"] == 0.001
  assert (literal["name"], ours["name"]) == ("retrospection", "unlearning")
  assert digits_abd.get_config("cmi-badnets").method.vaccine.penalty == 0.1


def test_traffic_signs_have_what_the_published_code_has_there():
  config = cifar10_abd.get_config("gtsrb-sig")
  assert config.target == 1 and config.method.vaccine.trials == 8
  assert config.method.zskt.temperature == 0.5 and config.method.zskt.attention == 0
  assert config.teacher.poison == 0.025 and config.student.steps == 10_000
  assert cifar10_abd.get_config("cmi-badnets").method.cmi.statistics == 13


@pytest.mark.parametrize(
  "module", [ablation_robustkd, confirm_robustkd, cifar10_robustkd, digits_abd, cifar10_abd]
)
def test_a_wrong_setting_is_answered_by_what_there_is(module):
  with pytest.raises(UserError, match="There are: "):
    module.get_config("nothing")
