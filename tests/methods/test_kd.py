"""Distillation: its terms by hand, the teacher's labels, and targets that may be kept."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from toys import kdiga, reaugkd

from rkd_jax.backdoors import badnets
from rkd_jax.data.augment import Augment
from rkd_jax.errors import UserError
from rkd_jax.methods import agreement, base, consistency, kd
from rkd_jax.training import update

LOGITS = {"teacher": [[2.0, 0.0, 0.0], [0.0, 0.0, 3.0]], "student": [[1.0, 0, 0], [0, 2, 0]]}


class Says:
  """A network that gives fixed logits."""

  def __init__(self, name):
    self.logits = jnp.array(LOGITS[name], jnp.float32)

  def __call__(self, images, train, key=None):
    return small.Outputs(self.logits), {"moved": train}


def terms(method, **batch):
  variables = {name: Says(name) for name in LOGITS}
  batch = {"image": jnp.zeros((2, 8, 8, 1)), "index": jnp.arange(2)} | batch
  targets = method.targets(variables, batch, None)
  return method.loss("student", variables, (), batch, targets, None, 0)


def softmax(x, temperature=1.0):
  e = np.exp(np.asarray(x) / temperature)
  return e / e.sum(-1, keepdims=True)


def test_its_terms_by_hand():
  found, aux = terms(kd.Method(temperature=2.0, alpha=0.75), label=jnp.array([1, -1]))
  student, teacher = LOGITS["student"], LOGITS["teacher"]
  # the second has no label: the teacher says 2
  ce = [-np.log(softmax(student[0])[1]), -np.log(softmax(student[1])[2])]
  p, q = softmax(teacher, 2), softmax(student, 2)
  kl = 4 * (p * np.log(p / q)).sum(-1)
  np.testing.assert_allclose(found["ce"][0], 0.25 * np.array(ce), rtol=1e-5)
  np.testing.assert_allclose(found["kl"][0], 0.75 * kl, rtol=1e-5)
  assert [t[1].tolist() for t in found.values()] == [[1, 1], [1, 1]]
  assert aux.metrics["train_fidelity"].tolist() == [1, 0]
  assert aux.batch_stats == {"student": {"moved": True}}


def test_under_mixup_the_teacher_answers_for_whoever_has_half_a_label():
  batch = {
    "label": jnp.array([1, 0]), "mix_label": jnp.array([-1, 2]), "mix_weight": jnp.array([0.9, 0.7])
  }  # fmt: skip
  found, _ = terms(kd.Method(alpha=0.0), **batch)
  p = softmax(LOGITS["student"])
  expected = [-np.log(p[0, 0]), -0.7 * np.log(p[1, 0]) - 0.3 * np.log(p[1, 2])]
  np.testing.assert_allclose(found["ce"][0], expected, rtol=1e-5)
  assert found["ce"][1].tolist() == [1, 1]


@pytest.mark.parametrize("wrong", [{"alpha": 1.1}, {"temperature": 0.0}, {"alpha": float("nan")}])
def test_wrong_fields_are_named(wrong):
  with pytest.raises(UserError, match=f"kd.{next(iter(wrong))}"):
    kd.Method(**wrong)


# Targets that are computed once.


def cached(method, **changes):
  toy = small.Small(method, small.rows(20, unlabelled=8), cached=True, **changes)
  state, frozen = toy.begin()
  return toy, state, frozen


METHODS = {
  "kd": kd.Method(),
  "consistency": consistency.Method(base=kd.Method()),
  "weigh": agreement.Method(base=kd.Method()),
  "replace": agreement.Method(base=kd.Method(), dropped="replace"),
}


@pytest.mark.parametrize("name", METHODS)
def test_targets_kept_train_as_targets_made(name):
  changes = {}
  if name == "kd":  # with triggered images among them
    kinds = (np.arange(20) % 5 == 0).astype(np.int8)
    changes = {"rows": small.rows(20, 8, kinds), "backdoor": badnets.Backdoor(size=2)}
  kept = small.Small(METHODS[name], cached=True, **{"rows": small.rows(20, 8)} | changes)
  made = small.Small(METHODS[name], cached=False, **{"rows": small.rows(20, 8)} | changes)
  (a, _), (b, _) = kept.play(5), made.play(5)
  assert "targets" in kept.stream.source(0) and "targets" not in made.stream.source(0)
  small.close(a, b, rtol=1e-5, atol=1e-5)


def test_the_kept_targets_are_the_teachers_answers():
  toy, _, frozen = cached(kd.Method())
  pixels = jnp.float32(toy.rows.image) / 255
  answers = small.tiny.network().apply(frozen["teacher"], pixels, train=False)[0].logits
  np.testing.assert_allclose(toy.stream.source(0)["targets"], answers, rtol=1e-5, atol=1e-5)


class Invents(kd.Method):
  def batch(self, key, variables, state, batch, step):
    return {**batch, "image": jax.random.uniform(key, batch["image"].shape)}, state


@pytest.mark.parametrize(
  ("method", "changes"),
  [
    (kd.Method(), {"augment": Augment(flip=True)}),
    (kd.Method(), {"augment": Augment(mixup=1.0)}),
    (kdiga.Method(), {}),
    (Invents(), {}),
    (consistency.Method(base=Invents()), {}),
    (agreement.Method(base=Invents()), {}),
    (reaugkd.Method(), {}),  # has none
  ],
)
def test_targets_that_may_change_are_not_kept(method, changes):
  toy, state, frozen = cached(method, **changes)
  assert "targets" not in toy.stream.source(0)
  update.play_round(toy.program, state, frozen, toy.stream.source(0))


def test_targets_may_use_what_the_survey_made():
  @dataclasses.dataclass(frozen=True)
  class Centred(kd.Method):
    cacheable = True

    def roles(self, networks):
      return {**super().roles(networks), "mean": base.Role(from_state=lambda state: state)}

    def init_state(self, key, variables, example):
      return jnp.zeros(())

    def survey(self, key, variables, state, batch):
      return state + (batch["image"].mean((1, 2, 3)) * batch["mask"]).sum()

    def targets(self, frozen, batch, key):
      return super().targets(frozen, batch, key) * frozen["mean"]

  kept, made = (small.Small(Centred(), small.rows(20, 8), cached=c) for c in (True, False))
  (a, _), (b, _) = kept.play(2), made.play(2)
  assert "targets" in kept.stream.source(0)
  small.close(a, b, rtol=1e-5, atol=1e-5)


def test_who_is_cacheable():
  assert kd.Method().cacheable and METHODS["replace"].cacheable
  assert not Invents().cacheable and not kdiga.Method().cacheable
  assert not agreement.Method(base=Invents()).cacheable
