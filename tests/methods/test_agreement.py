"""Agreement: who is kept, and that whoever is not teaches nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from rkd_jax.data.augment import Augment
from rkd_jax.errors import UserError
from rkd_jax.methods import agreement, consistency, kd, pgd_at, views
from rkd_jax.methods.base import Aux
from rkd_jax.training import update
from rkd_jax.training.checkpoint import digest


def plugin(**fields):
  return agreement.Method(base=kd.Method(), **fields)


def images(first_pixels):
  """Images that `small.fixed()` answers with their number."""
  shown = np.zeros((len(first_pixels), 8, 8, 1), np.float32)
  shown[:, 0, 0, 0] = np.asarray(first_pixels) / 255
  return jnp.asarray(shown)


@dataclasses.dataclass(frozen=True)
class Table:
  """A network whose class for the image that starts with pixel k is answers[k].

  `shaky` images are answered so only while their other pixels are black.
  """

  answers: tuple[int, ...]
  shaky: tuple[int, ...] = ()

  def apply(self, variables, images, train, key=None, edit=None, capture=False):
    number = jnp.clip(jnp.round(images[:, 1, 1, 0] * 255), 0, len(self.answers) - 1).astype(int)
    blended = images[:, 4:].mean((1, 2, 3)) > 0
    answer = jnp.asarray(self.answers)[number]
    answer = jnp.where(blended & jnp.isin(number, jnp.asarray(self.shaky or (-1,))), 2, answer)
    return small.Outputs(jax.nn.one_hot(answer, 3)), {}


@pytest.fixture
def asked(monkeypatch):
  """The amplitudes of all blends, which leave the pixel by which our stub knows an image, and light
  the others."""
  amplitudes = []

  def blend(key, images, amplitude):
    amplitudes.append(amplitude)
    return images.at[:, 4:].set(0.5 * amplitude)

  monkeypatch.setattr(views, "random_blend", blend)
  return amplitudes


def surveyed(method, witness, teacher, labels, before, shaky=(), others=None):
  """keep[N] after a survey of N images in two batches, the second padded."""
  size = len(labels)
  bound = lambda answers, shaky=(): small.Bound(Table(tuple(answers), shaky), {})  # noqa: E731
  variables = {
    "witness": bound(witness, shaky), "teacher": bound(teacher), "kept": jnp.asarray(before),
    **{role: bound(answers) for role, answers in (others or {}).items()},
  }  # fmt: skip
  pictures = np.zeros((size, 8, 8, 1), np.float32)
  pictures[:, 1, 1, 0] = np.arange(size) / 255
  state = {"base": {"base": {"base": {}}}, "keep": jnp.zeros(size, bool)}
  for rows in np.array([[0, 1, 2, 3], [4, 5, size, size]]):
    inside = np.minimum(rows, size - 1)
    batch = {
      "image": jnp.asarray(pictures[inside]), "label": jnp.asarray(np.array(labels)[inside]),
      "index": jnp.asarray(rows), "mask": jnp.float32(rows < size),
    }  # fmt: skip
    state = method.survey(jax.random.key(0), variables, state, batch)
  return np.asarray(state["keep"]).tolist()


T, F = True, False
WITNESS = [0, 1, 2, 0, 1, 0]
TEACHER = [0, 1, 1, 1, 1, 0]  # they agree on 0, 1, 4 and 5
LABELS = [-1, -1, -1, 2, -1, -1]  # 3 is labelled (and the teacher is wrong about it)
BEFORE = [T, F, T, T, F, T]  # an earlier round kept 0, 2, 3, 5
SHAKY = (0, 4)  # under a blend the witness answers 2 to these


@pytest.mark.parametrize(
  ("readmit", "expected"),
  [
    ("always", [T, T, F, T, T, T]),
    ("never", [T, F, F, T, F, T]),
    ("robust", [T, T, F, T, F, T]),  # 1 comes back, 4 is shaky, 0 was never dropped
  ],
)
def test_who_is_kept(asked, readmit, expected):
  method = plugin(readmit=readmit)
  assert surveyed(method, WITNESS, TEACHER, LABELS, BEFORE, SHAKY) == expected


@pytest.mark.parametrize(("within", "expected"), [(0.0, F), (0.1, F), (0.5, F), (0.7, T), (1.0, T)])
def test_the_teachers_answer_is_among_the_witnesss_first(within, expected):
  """Of three classes one is asked for, two from within = 2/3 on: 2's witness says 2, then 0."""
  found = surveyed(plugin(within=within), WITNESS, [0, 1, 0, 1, 1, 0], LABELS, BEFORE)
  assert found == [T, T, expected, T, T, T]


@pytest.mark.parametrize(
  ("fields", "expected"),
  [
    ({}, [T, T, F, T, T, T]),
    ({"seconds": 1}, [T, F, F, T, T, T]),  # of two both
    ({"seconds": 2}, [T, F, F, T, F, T]),  # of three all
    ({"sure": 0.5}, [T, T, F, T, T, T]),  # a logit of 1 beside two of 0: .58
    ({"sure": 0.6}, [F, F, F, T, F, F]),  # whose label is known stays
  ],
)
def test_who_must_agree(fields, expected):
  others = {"witness2": [0, 0, 2, 0, 1, 0], "witness3": [0, 0, 2, 0, 2, 0]}
  method = plugin(**fields)
  assert surveyed(method, WITNESS, TEACHER, LABELS, [T] * 6, others=others) == expected
  named = set(method.roles(small.NETWORKS)) - {"teacher", "student", "kept"}
  assert named == set(method.witnesses) <= {"witness", *others}


@pytest.mark.parametrize(("sure", "second"), [(0.0, T), (0.2, T), (0.22, F)])
def test_a_second_class_must_be_as_likely_as_is_asked(sure, second):
  """Of three classes the teacher's may be the first or the second; the second has .21."""
  method = plugin(within=0.7, sure=sure)
  found = surveyed(method, WITNESS, [0, 1, 0, 1, 1, 0], LABELS, BEFORE)
  assert found == [T, T, second, T, T, T]


def test_who_was_dropped_is_asked_under_blends_of_the_methods_own_strength(asked):
  method = plugin(readmit="robust", amplitude=0.125, robust_views=3)
  found = surveyed(method, WITNESS, TEACHER, LABELS, BEFORE, SHAKY)
  assert found == [T, T, F, T, F, T] and asked == [0.125] * 6  # in two batches


@pytest.mark.parametrize(
  ("dropped", "view"), [("weigh", "occlusion"), ("replace", "universal"), ("replace", "warp")]
)
def test_eight_devices_are_one(dropped, view):
  base = consistency.Method(base=kd.Method(), view=view)
  method = agreement.Method(base=base, dropped=dropped)
  rows = small.rows(16, unlabelled=14)
  (one, _), (eight, _) = (small.Small(method, rows, devices=n).play(3) for n in (1, 8))
  assert 0 < np.asarray(one.memory["keep"]).mean() < 1
  small.close(one.roles, eight.roles, 2e-3, 1e-4)


def test_in_the_first_round_nobody_was_dropped_before():
  toy = small.Small(plugin(readmit="never"), small.rows(16, unlabelled=12))
  state, frozen = toy.begin()
  assert frozen["kept"]["params"].all() and frozen["kept"]["params"].shape == (16,)
  keep = np.asarray(state.memory["keep"])
  assert keep[12:].all()  # labelled
  pixels = toy.rows.image.astype(np.float32) / 255
  answers = [
    small.Bound(small.tiny.network(), frozen[name])(pixels, train=False)[0].logits.argmax(-1)
    for name in ("witness", "teacher")
  ]
  np.testing.assert_array_equal(keep[:12], (answers[0] == answers[1])[:12])


def test_an_earlier_rounds_keep_is_used():
  given = {"teacher": small.network(3), "witness": small.network(3)}  # they agree on everything
  given["kept"] = jnp.arange(16) < 5
  toy = small.Small(plugin(readmit="never"), small.rows(16, unlabelled=14), given=given)
  state, _ = toy.begin()
  assert np.asarray(state.memory["keep"]).tolist() == [i < 5 or i >= 14 for i in range(16)]


def loss_and_gradient(method, variables, state, batch, images):
  def total(images):
    seen = {**batch, "image": images}
    seen, new = method.batch(jax.random.key(1), variables, state, seen, jnp.int32(0))
    targets = method.targets(variables, seen, jax.random.key(2))
    terms, aux = method.loss(
      "student", variables, new, seen, targets, jax.random.key(3), jnp.int32(0)
    )
    return update.reduce_terms(terms)[0], aux

  return jax.value_and_grad(total, has_aux=True)(images)


@dataclasses.dataclass(frozen=True)
class Evaluating(kd.Method):
  """kd whose student normalises by its running statistics: examples do not meet."""

  def loss(self, player, variables, state, batch, targets, key, step):
    network = variables["student"]
    calm = lambda images, train, key=None: network(images, train=False, key=key)  # noqa: E731
    terms, _ = super().loss(player, {"student": calm}, state, batch, targets, key, step)
    return terms, Aux()


def world(keep):
  names = {"teacher": 3, "student": 4, "witness": 5}
  variables = {n: small.Bound(small.tiny.network(), small.network(s)) for n, s in names.items()}
  rows = small.rows(8, unlabelled=4)
  batch = {
    "image": jnp.float32(rows.image) / 255, "label": jnp.asarray(rows.label), "index": jnp.arange(8)
  }  # fmt: skip
  return variables, {"base": (), "keep": jnp.asarray(keep)}, batch


KEEP = np.array([T, F, F, T, T, T, F, T])


@pytest.mark.parametrize("dropped", ["weigh", "replace"])
@pytest.mark.parametrize("base", [kd.Method(), Evaluating()], ids=["train", "eval"])
def test_the_dropped_give_no_gradient_through_their_loss(dropped, base):
  variables, state, batch = world(KEEP)
  method = agreement.Method(base=base, dropped=dropped)
  (_, aux), gradient = loss_and_gradient(method, variables, state, batch, batch["image"])
  size = np.abs(np.asarray(gradient)).sum((1, 2, 3))
  assert (size[KEEP] > 0).all()
  if dropped == "replace" or isinstance(base, Evaluating):
    np.testing.assert_array_equal(size[~KEEP], 0)  # else they are seen by BatchNorm alone
  else:
    assert (size[~KEEP] > 0).all()
  kept = aux.metrics["train_kept"]
  assert kept.sum() == (8 if dropped == "replace" else 5)


def test_weighing_equals_training_on_the_kept_alone():
  variables, state, batch = world(KEEP)
  method = agreement.Method(base=Evaluating())
  (value, _), gradient = loss_and_gradient(method, variables, state, batch, batch["image"])
  subset = {name: leaf[KEEP] for name, leaf in batch.items()}
  (expected, _), part = loss_and_gradient(Evaluating(), variables, (), subset, subset["image"])
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  np.testing.assert_allclose(gradient[KEEP], part, rtol=1e-4, atol=1e-7)


def test_replacing_fills_up_with_the_kept_in_turn():
  variables, state, batch = world(KEEP)
  method = plugin(dropped="replace")
  key, step = jax.random.key(0), jnp.int32(0)
  new, _ = method.batch(key, variables, state, batch, step)
  assert np.asarray(new["index"]).tolist() == [0, 3, 4, 5, 7, 0, 3, 4]
  np.testing.assert_array_equal(new["image"], batch["image"][new["index"]])
  np.testing.assert_array_equal(new["label"], batch["label"][new["index"]])


@pytest.mark.parametrize("dropped", ["weigh", "replace"])
def test_a_batch_of_which_nothing_is_kept_teaches_nothing(dropped):
  variables, state, batch = world(np.zeros(8, bool))
  method = plugin(dropped=dropped)
  (value, _), gradient = loss_and_gradient(method, variables, state, batch, batch["image"])
  assert value == 0 and not np.asarray(gradient).any()


@pytest.mark.parametrize("dropped", ["weigh", "replace"])
def test_under_mixup_a_dropped_partner_teaches_nothing_either(dropped):
  variables, state, batch = world(KEEP)
  batch |= {
    "mix_label": jnp.roll(batch["label"], 1), "mix_index": jnp.roll(batch["index"], 1),
    "mix_weight": jnp.full(8, 0.6),
    "image": 0.6 * batch["image"] + 0.4 * jnp.roll(batch["image"], 1, 0),
  }  # fmt: skip
  method = agreement.Method(base=Evaluating(), dropped=dropped)
  _, gradient = loss_and_gradient(method, variables, state, batch, batch["image"])
  size = np.abs(np.asarray(gradient)).sum((1, 2, 3))
  assert ((size > 0) == (KEEP & np.roll(KEEP, 1))).all()


def test_an_inner_plugins_terms_are_weighed_too_and_whole_batch_terms_are_not():
  variables, state, batch = world(KEEP)

  @dataclasses.dataclass(frozen=True)
  class Base(kd.Method):
    def loss(self, *args):
      terms, aux = super().loss(*args)
      return {**terms, "whole": jnp.float32(3)}, aux

  method = agreement.Method(base=consistency.Method(base=Base()))
  state = {**state, "base": {"base": ()}}
  key, step = jax.random.key(0), jnp.int32(0)
  batch, state = method.batch(key, variables, state, batch, step)
  targets = method.targets(variables, batch, key)
  terms, _ = method.loss("student", variables, state, batch, targets, key, step)
  assert terms["whole"] == 3
  for name in ("ce", "kl", "consistency"):
    assert ((np.asarray(terms[name][1]) > 0) == KEEP).all(), name


def test_the_whole_phase_delivers_student_and_keep():
  toy = small.Small(plugin(dropped="replace"), small.rows(16, 12), augment=Augment(flip=True))
  state, frozen = toy.play(3)
  variables = toy.program.bind({**frozen, **state.roles})
  found = toy.method.deliver(variables, state.memory)
  assert set(found) == {"student", "keep"} and found["keep"].dtype == bool
  assert digest(found["student"]) == digest(state.roles["student"])


@pytest.mark.parametrize(
  "wrong",
  [
    {"readmit": "sometimes"},
    {"dropped": "x"},
    {"amplitude": 2},
    {"robust_views": 0},
    {"within": 2},
    {"seconds": -1},
    {"seconds": 1.5},
    {"sure": 1.1},
  ],
)
def test_wrong_fields_are_named(wrong):
  with pytest.raises(UserError, match=f"agreement.{next(iter(wrong))}"):
    plugin(**wrong)


def test_a_base_without_a_teacher_is_refused():
  with pytest.raises(UserError, match="'pgd_at' has no teacher"):
    agreement.Method(base=pgd_at.Method()).roles(small.NETWORKS)
