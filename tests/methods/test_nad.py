"""NAD: attention transfer whose first tap counts half, from a tutor of one's own kind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from jax import test_util

from rkd_jax import losses
from rkd_jax.errors import UserError
from rkd_jax.methods import nad

TAPS = {"stage1": (4, 4, 3), "stage2": (2, 2, 5), "stage3": (1, 3, 2)}


def maps(seed):
  keys = jax.random.split(jax.random.key(seed), len(TAPS))
  return {
    tap: jax.random.normal(key, (2, *shape))
    for key, (tap, shape) in zip(keys, TAPS.items(), strict=True)
  }


def attention(feature):
  energy = (np.asarray(feature, np.float64) ** 2).sum(-1).reshape(len(feature), -1)
  return energy / np.linalg.norm(energy, axis=-1, keepdims=True)


def gap(a, b):
  return ((attention(a) - attention(b)) ** 2).mean(-1)


def test_three_taps_weigh_500_1000_1000():
  method, student, taught = nad.Method(), maps(0), maps(1)
  found = method.weight * method.distance(student, taught, {}, ())
  weights = {"stage1": 500, "stage2": 1000, "stage3": 1000}
  own = sum(weights[tap] * losses.attention_transfer(student[tap], taught[tap]) for tap in TAPS)
  np.testing.assert_allclose(found, own, rtol=1e-6)
  by_hand = sum(weights[tap] * gap(student[tap], taught[tap]) for tap in TAPS)
  np.testing.assert_allclose(found, by_hand, rtol=1e-4)


@pytest.mark.parametrize("shallow", [0.0, 0.25, 1.0])
def test_one_tap_alone_is_the_shallow_one(shallow):
  student, taught = ({"stage2": found["stage2"]} for found in (maps(0), maps(1)))
  found = nad.Method(shallow=shallow).distance(student, taught, {}, ())
  np.testing.assert_allclose(found, shallow * gap(student["stage2"], taught["stage2"]), rtol=1e-4)


def test_attention_knows_no_scale_and_no_order_of_channels():
  method, student, taught = nad.Method(), maps(0), maps(1)
  other = {tap: 3 * found[..., ::-1] for tap, found in student.items()}
  same = {tap: -0.5 * found for tap, found in taught.items()}
  a, b = method.distance(student, taught, {}, ()), method.distance(other, same, {}, ())
  np.testing.assert_allclose(a, b, rtol=1e-5)


def test_the_gradient_by_differences():
  taught = maps(1)
  distance = lambda student: nad.Method().distance(student, taught, {}, ()).sum()  # noqa: E731
  test_util.check_grads(distance, (maps(0),), 1, modes=["rev"], atol=1e-2, rtol=1e-2)


def toy(method=None, tutor=4, **changes):
  given = {"teacher": small.network(tutor), "student": small.network(3)}
  return small.Small(method or nad.Method(), small.rows(12, 4), given=given, **changes)


def test_its_terms_by_hand():
  made = toy()
  state, frozen = made.begin()
  variables = made.program.bind({**frozen, **state.roles})
  images, label = jnp.float32(made.rows.image) / 255, jnp.asarray(made.rows.label)
  batch = {"image": images, "label": label, "index": jnp.arange(12)}
  targets = made.method.targets(variables, batch, None)
  terms, aux = made.method.loss("student", variables, state.memory, batch, targets, None, 0)
  mine, stats = variables["student"](images, train=True)
  tutor, _ = variables["teacher"](images, train=False)
  weights = {"stage1": 500, "stage2": 1000}
  expected = sum(w * gap(mine.features[tap], tutor.features[tap]) for tap, w in weights.items())
  np.testing.assert_allclose(terms["feature"][0], expected, rtol=1e-3)
  log = np.asarray(jax.nn.log_softmax(mine.logits))
  value, weight = terms["ce"]
  known = np.asarray(label) >= 0
  np.testing.assert_allclose(value[known], -log[known, label[known]], rtol=1e-5)
  assert (np.asarray(weight) > 0)[known].all()
  small.close(aux.batch_stats["student"], stats)


def test_it_starts_from_the_network_that_it_repairs_and_moves_only_that():
  made = toy()
  (first, _), (state, frozen) = made.begin(), made.play(2)
  small.close(first.roles["student"], small.network(3), 0, 0)
  small.close(frozen["teacher"], small.network(4), 0, 0)
  assert set(state.roles) == {"student"} == set(made.method.delivers)
  kernels = (
    tree["params"]["conv1"]["kernel"] for tree in (small.network(3), state.roles["student"])
  )
  assert (np.asarray(next(kernels)) != np.asarray(next(kernels))).any()
  assert made.method.part == "labelled"


def test_a_tutor_of_other_eyes_pulls():
  loss = lambda state: float(state.metrics["feature"][0] / state.metrics["feature"][1])  # noqa: E731
  made = toy(nad.Method(weight=30.0), rounds=40, batch=12)
  state, frozen = made.begin()
  state = made.round(state, frozen)
  before = loss(state)
  for _ in range(39):
    state = made.round(state, frozen)
  assert loss(state) < 0.8 * before  # its mean over all rounds


@pytest.mark.parametrize("shallow", [-0.1, 1.1])
def test_wrong_fields_are_named(shallow):
  with pytest.raises(UserError, match=r"nad\.shallow"):
    nad.Method(shallow=shallow)
