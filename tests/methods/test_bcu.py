"""BCU: which weights are drawn anew and how many, how hot the teacher is asked, what is learned."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import traverse_util

from rkd_jax.errors import UserError
from rkd_jax.methods import base, bcu
from rkd_jax.models import wideresnet
from rkd_jax.models.network import Network
from rkd_jax.training import start

STAGES = ("stage1", "stage2", "stage3", "stage4")
WIDE = Network(wideresnet.Model(10, 1), (8, 8, 1), (0.5,), (0.25,))


@pytest.mark.parametrize(
  ("path", "share"),
  [
    (("conv", "kernel"), 0.01),
    (("stage1_block0", "conv1", "kernel"), 0.01),
    (("stage2_block1", "conv2", "kernel"), 0.03),
    (("stage3_block0", "shortcut", "kernel"), 0.09),
    (("stage4_block5", "conv1", "kernel"), 0.27),
    (("head", "kernel"), 0.1),
    (("head", "bias"), 0),
    (("norm", "scale"), 0),
    (("stage3_block0", "norm1", "bias"), 0),
  ],
)
def test_the_official_fractions(path, share):
  assert bcu.Method().fraction(path, STAGES) == pytest.approx(share)


def test_fractions_of_its_own_and_none_above_one():
  method = bcu.Method(stem=0.2, first=0.25, factor=2.5, head=0.3)
  paths = [("conv", "kernel"), *((s, "conv1", "kernel") for s in STAGES), ("head", "kernel")]
  found = [method.fraction(path, STAGES) for path in paths]
  assert found == [0.2, 0.25, 0.625, 1, 1, 0.3]


@functools.lru_cache
def world(method):
  """(the teacher's variables, what draws a student): statistics moved, parameters ten times."""
  fresh = start.fresh(WIDE, jax.random.key(1))
  teacher = {
    "params": jax.tree.map(lambda leaf: 10 * leaf, fresh["params"]),
    "batch_stats": jax.tree.map(lambda leaf: leaf + 0.5, fresh["batch_stats"]),
  }
  role = method.roles({"teacher": WIDE, "student": WIDE})["student"]
  example = base.Example({}, 0, 10)
  made = {"teacher": base.Bound(WIDE, teacher)}
  return teacher, jax.jit(lambda key: role.init(key, made, example))


def redrawn(method, seed=2):
  """(the teacher's variables, the student's first)."""
  teacher, draw = world(method)
  return teacher, jax.device_get(draw(jax.random.key(seed)))


def test_as_many_weights_are_new_as_it_says_and_the_rest_is_the_teachers_to_the_bit():
  method = bcu.Method(stem=0.4, first=0.1, factor=3.0, head=0.3)
  teacher, student = redrawn(method)
  small.close(teacher["batch_stats"], student["batch_stats"], 0, 0)
  old, new = (traverse_util.flatten_dict(tree["params"]) for tree in (teacher, student))
  assert set(old) == set(new)
  counts = {}
  for path in old:
    share, changed = method.fraction(path, WIDE.stages), np.asarray(old[path]) != new[path]
    if not share:
      assert not changed.any(), path
      continue
    size, stage = changed.size, path[0].split("_")[0]
    assert abs(changed.sum() - size * share) < 5 * np.sqrt(size * share * (1 - share)) + 1, path
    hits, total = counts.get(stage, (0, 0))
    counts[stage] = hits + changed.sum(), total + size
    # New ones are as a network's first values are: a tenth of this teacher's.
    ratio = np.std(new[path][changed]) / np.std(np.asarray(old[path])[~changed])
    assert 0.05 < ratio < 0.2, path
  assert set(counts) == {"conv", "stage1", "stage2", "stage3", "head"}
  hits, total = counts["stage3"]
  assert hits / total == pytest.approx(0.9, abs=0.01)


def test_two_keys_draw_two_copies_and_nothing_drawn_is_the_teacher():
  _, a = redrawn(bcu.Method(), 2)
  _, b = redrawn(bcu.Method(), 3)
  kernel = lambda tree: tree["params"]["stage3_block0"]["conv2"]["kernel"]  # noqa: E731
  assert (kernel(a) != kernel(b)).any()
  teacher, same = redrawn(bcu.Method(stem=0.0, first=0.0, head=0.0))
  small.close(teacher, same, 0, 0)


LOGITS = {
  "teacher": np.array([[2.0, 0, 0], [0, 0, 3], [1, 0, 0]]),
  "student": np.array([[1.0, 0, 0], [0, 2, 0], [1, 0, 0]]),
}


def says(name):
  logits = jnp.float32(LOGITS[name])
  return lambda images, train, key=None: (small.Outputs(logits), {"moved": train})


def ask(method, step, labels=(0, 1, 2)):
  variables = {name: says(name) for name in LOGITS}
  batch = {"image": jnp.zeros((3, 8, 8, 1)), "label": jnp.array(labels), "index": jnp.arange(3)}
  targets = method.targets(variables, batch, None)
  return method.loss("student", variables, (), batch, targets, None, jnp.int32(step))


def softmax(x):
  return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


@pytest.mark.parametrize(
  ("step", "temperature"), [(0, 1), (1, 1.03), (50, 2.5), (100, 4), (5000, 4)]
)
def test_its_loss_by_hand_as_the_temperature_rises(step, temperature):
  terms, aux = ask(bcu.Method(), step)
  p, q = (softmax(LOGITS[name] / temperature) for name in ("teacher", "student"))
  expected = (p * np.log(p / q)).sum(-1)  # without the square of the temperature
  assert set(terms) == {"kl"} and expected[0] > 0.005
  np.testing.assert_allclose(terms["kl"][0], expected, rtol=1e-4, atol=1e-6)
  np.testing.assert_array_equal(terms["kl"][1], [1, 1, 1])
  np.testing.assert_array_equal(aux.metrics["train_fidelity"], [1, 0, 1])
  assert aux.batch_stats == {"student": {"moved": True}}


def test_labels_say_nothing_to_it():
  with_labels, without = (ask(bcu.Method(), 30, labels)[0] for labels in ((0, 1, 2), (-1,) * 3))
  small.close(with_labels, without, 0, 0)


def test_only_the_student_is_trained_and_delivered():
  toy = small.Small(bcu.Method(head=1.0), small.rows(16, 16))
  (first, _), (state, frozen) = toy.begin(), toy.play(3)
  assert set(state.roles) == {"student"} and set(frozen) == {"teacher"}
  small.close(frozen["teacher"], small.network(3), 0, 0)
  head = first.roles["student"]["params"]["head"]["kernel"]
  assert (np.asarray(head) != frozen["teacher"]["params"]["head"]["kernel"]).all()
  found = toy.method.deliver(toy.program.bind({**frozen, **state.roles}), ())
  assert set(found) == {"student"} == set(toy.method.delivers)
  small.close(found["student"], state.roles["student"], 0, 0)


def test_its_targets_may_be_kept():
  kept, made = (small.Small(bcu.Method(head=1.0, ramp=2), cached=c) for c in (True, False))
  (a, _), (b, _) = kept.play(4), made.play(4)
  assert "targets" in kept.stream.source(0) and "targets" not in made.stream.source(0)
  small.close(a.roles, b.roles, 1e-4, 1e-6)


@pytest.mark.parametrize(
  "wrong", [{"stem": 1.5}, {"first": -0.1}, {"head": 2.0}, {"hottest": 0.5}, {"ramp": 0}]
)
def test_wrong_fields_are_named(wrong):
  with pytest.raises(UserError, match=f"bcu.{next(iter(wrong))}"):
    bcu.Method(**wrong)
