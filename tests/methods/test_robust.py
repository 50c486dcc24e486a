"""Methods that attack while they train: each loss by hand, and an inner maximum that is one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import NETWORKS, Small, close, rows
from toys import tiny

from rkd_jax import losses
from rkd_jax.errors import UserError
from rkd_jax.methods import adaad, ard, base, iad, igdm, kd, pgd_at, rslad, trades

KEY = jax.random.key(0)
STUDENT, TEACHER = (
  base.Bound(tiny.network(), tiny.network().init(jax.random.key(k))) for k in (1, 2)
)
BATCH = {
  "image": jax.random.uniform(jax.random.key(3), (6, 8, 8, 1)),
  "label": jnp.array([0, 1, 2, -1, 1, -1]),
  "index": jnp.arange(6),
}
BALL = {"eps": 0.1, "steps": 3}
ALONE = [pgd_at.Method(**BALL), trades.Method(**BALL)]
TAUGHT = [m.Method(**BALL) for m in (ard, rslad, iad, adaad)]
ALL = [*ALONE, *TAUGHT, igdm.Method(base=rslad.Method(**BALL))]
names = [method.name for method in ALL]


@functools.partial(jax.jit, static_argnames=("method", "step"))
def played(method, batch=BATCH, step=0):
  """(terms, Aux, the batch with its adversaries, targets)."""
  variables = {"student": STUDENT}
  variables |= {"teacher": TEACHER} if "teacher" in method.roles(NETWORKS) else {}
  state = method.init_state(KEY, variables, None)
  batch, state = method.batch(KEY, variables, state, batch, jnp.int32(step))
  frozen = {name: v for name, v in variables.items() if name == "teacher"}
  targets = method.targets(frozen, batch, KEY)
  terms, aux = method.loss("student", variables, state, batch, targets, KEY, jnp.int32(step))
  return terms, aux, batch, targets


def logits(network, images, train=False):
  return network(images, train=train, key=KEY)[0].logits


def answered(batch=BATCH):
  answer = logits(TEACHER, batch["image"])
  return answer, jnp.where(batch["label"] < 0, answer.argmax(-1), batch["label"])


@pytest.mark.parametrize("method", ALL, ids=names)
def test_the_adversary_stays_in_its_ball(method):
  moved = played(method)[2]["adversarial"]
  assert 0.09 < jnp.abs(moved - BATCH["image"]).max() <= 0.1 + 1e-6
  assert moved.min() >= 0 and moved.max() <= 1


@pytest.mark.parametrize("method", [*ALONE, *TAUGHT], ids=names[:-1])
def test_the_adversary_raises_what_it_is_to_raise(method):
  _, _, batch, _ = played(method)
  inner = method.inner({"student": STUDENT, "teacher": TEACHER}, batch)
  before, after = inner(BATCH["image"]), inner(batch["adversarial"])
  assert after.sum() > before.sum() and (after >= before - 1e-6).mean() > 0.8


@pytest.mark.parametrize("method", ALL, ids=names)
def test_an_adversary_does_not_depend_on_its_batch(method):
  whole = played(method)[2]["adversarial"][:2]
  few = played(method, batch=jax.tree.map(lambda x: x[:2], BATCH))[2]["adversarial"]
  close(whole, few, atol=1e-5)


def test_pgd_at_is_cross_entropy_on_the_adversary():
  terms, aux, batch, _ = played(ALONE[0])
  value, weight = terms["ce"]
  moved = logits(STUDENT, batch["adversarial"], train=True)
  close(value, losses.cross_entropy(moved, BATCH["label"]), rtol=1e-5)
  assert weight.tolist() == [1, 1, 1, 0, 1, 0]
  close(aux.batch_stats["student"], STUDENT(batch["adversarial"], train=True)[1], rtol=1e-5)


def test_trades_by_hand():
  terms, aux, batch, _ = played(ALONE[1])
  clean = logits(STUDENT, BATCH["image"], train=True)
  moved = logits(STUDENT, batch["adversarial"], train=True)
  close(terms["kl"][0], 6 * losses.kl_divergence(clean, moved), rtol=1e-5)
  assert terms["kl"][1].all() and terms["ce"][1].tolist() == [1, 1, 1, 0, 1, 0]
  close(aux.batch_stats["student"], STUDENT(BATCH["image"], train=True)[1], rtol=1e-5)


def test_ard_by_hand():
  terms, _, batch, _ = played(TAUGHT[0])
  answer, labels = answered()
  moved = logits(STUDENT, batch["adversarial"], train=True)
  clean = logits(STUDENT, BATCH["image"], train=True)
  close(terms["kl"][0], 0.9 * losses.kl_divergence(answer, moved, 4.0), rtol=1e-4, atol=1e-6)
  close(terms["ce"][0], 0.1 * losses.cross_entropy(clean, labels), rtol=1e-5)


def test_rslad_by_hand_and_without_labels():
  terms, _, batch, _ = played(TAUGHT[1])
  answer, _ = answered()
  moved = logits(STUDENT, batch["adversarial"], train=True)
  clean = logits(STUDENT, BATCH["image"], train=True)
  close(terms["adversarial"][0], 5 / 6 * losses.kl_divergence(answer, moved), rtol=1e-4, atol=1e-6)
  close(terms["natural"][0], 1 / 6 * losses.kl_divergence(answer, clean), rtol=1e-4, atol=1e-6)
  unlabelled = {**BATCH, "label": jnp.full(6, -1)}
  for name, (value, _) in played(TAUGHT[1], batch=unlabelled)[0].items():
    close(value, terms[name][0])


def test_iad_trusts_the_teacher_as_far_as_it_withstands():
  terms, _, batch, targets = played(TAUGHT[2])
  answer, labels = answered()
  there = jax.nn.softmax(logits(TEACHER, batch["adversarial"]))
  trust = there[jnp.arange(6), labels] ** 0.1
  close(targets["trust"], trust, rtol=1e-5)
  moved = logits(STUDENT, batch["adversarial"], train=True)
  clean = logits(STUDENT, BATCH["image"], train=True)
  close(terms["teacher"][0], trust * losses.kl_divergence(answer, moved), rtol=1e-4, atol=1e-6)
  close(terms["self"][0], (1 - trust) * losses.kl_divergence(clean, moved), rtol=1e-3, atol=1e-6)
  asleep = iad.Method(warmup=5, **BALL)
  assert not played(asleep)[0]["self"][0].any() and played(asleep, step=5)[0]["self"][0].any()


def test_adaad_meets_the_teacher_at_the_adversary():
  terms, _, batch, _ = played(adaad.Method(share=0.75, **BALL))
  there, moved = logits(TEACHER, batch["adversarial"]), None
  moved = logits(STUDENT, batch["adversarial"], train=True)
  close(terms["adversarial"][0], 0.75 * losses.kl_divergence(there, moved), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("distance", ["kl", "l2"])
def test_igdm_matches_differences_of_logits(distance):
  method = igdm.Method(base=rslad.Method(**BALL), weight=2.0, distance=distance)
  terms, _, batch, _ = played(method)
  there = batch["adversarial"]
  back = jnp.clip(2 * BATCH["image"] - there, 0, 1)
  wanted = logits(TEACHER, there) - logits(TEACHER, back)
  own = logits(STUDENT, there, True) - logits(STUDENT, back, True)
  value = losses.kl_divergence(wanted, own) if distance == "kl" else ((own - wanted) ** 2).mean(-1)
  close(terms["slope"][0], 2 * value, rtol=1e-4, atol=1e-6)


def test_igdm_without_weight_is_its_base():
  plain, none = played(rslad.Method(**BALL))[0], igdm.Method(base=rslad.Method(**BALL), weight=0.0)
  found = played(none)[0]
  assert set(found) == set(plain)
  for name in plain:
    close(found[name], plain[name])


def test_igdm_needs_a_base_that_attacks_and_has_a_teacher():
  with pytest.raises(UserError, match="makes none"):
    igdm.Method(base=kd.Method())
  with pytest.raises(UserError, match="no teacher"):
    igdm.Method(base=pgd_at.Method()).roles(NETWORKS)


@pytest.mark.parametrize(
  ("make", "wrong"),
  [
    (pgd_at.Method, {"eps": -0.1}), (pgd_at.Method, {"eps": 2.0}), (trades.Method, {"beta": -1.0}),
    (ard.Method, {"alpha": 2.0}), (rslad.Method, {"share": 1.5}), (iad.Method, {"beta": -1.0}),
    (adaad.Method, {"attack_bn": "both"}), (rslad.Method, {"norm": "l1"}),
    (rslad.Method, {"steps": -1}), (rslad.Method, {"step_size": float("nan")}),
  ],
)  # fmt: skip
def test_wrong_fields_are_refused(make, wrong):
  with pytest.raises(UserError):
    make(**wrong)


@pytest.mark.parametrize("method", ALL, ids=names)
def test_each_trains(method):
  state, _ = Small(method, rows(16, unlabelled=4), rounds=3).play(2)
  leaves = jax.tree.leaves(jax.device_get(state.roles))
  assert all(np.isfinite(leaf).all() for leaf in leaves) and int(state.step) == 2


@pytest.mark.slow
def test_eight_devices_are_one():
  one, eight = (Small(TAUGHT[1], rows(16), devices=n).play(2)[0].roles for n in (1, 8))
  close(one, eight, rtol=1e-3, atol=1e-5)
