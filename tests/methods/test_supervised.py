"""Training on labels: smoothing by hand, who counts, and that its SAM reaches the step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from rkd_jax.errors import UserError
from rkd_jax.methods import supervised
from rkd_jax.training import update
from rkd_jax.training.optimizer import Optimizer

LOGITS = np.array([[1.0, 2.0, 0.0], [0.5, -1.0, 3.0], [0.0, 0.0, 0.0]])


def ask(method, **batch):
  network = lambda images, train, key=None: (small.Outputs(jnp.float32(LOGITS)), {"moved": train})  # noqa: E731
  batch = {"image": jnp.zeros((3, 8, 8, 1)), "index": jnp.arange(3)} | batch
  return method.loss("student", {"student": network}, (), batch, (), None, 0)


def log_softmax(x):
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.75])
def test_its_term_by_hand(smoothing):
  terms, aux = ask(supervised.Method(smoothing=smoothing), label=jnp.array([0, 2, -1]))
  value, weight = terms["ce"]
  goals = np.full((2, 3), smoothing / 3)
  goals[0, 0] += 1 - smoothing
  goals[1, 2] += 1 - smoothing
  np.testing.assert_allclose(value[:2], -(goals * log_softmax(LOGITS[:2])).sum(-1), rtol=1e-5)
  assert weight.tolist() == [1, 1, 0] and set(terms) == {"ce"}
  hits, seen = aux.metrics["train_acc"]
  assert hits.tolist()[:2] == [0, 1] and seen.tolist() == [1, 1, 0]
  assert aux.batch_stats == {"student": {"moved": True}}


def test_smoothing_under_mixup():
  batch = {"label": jnp.array([0, 2, 1]), "mix_label": jnp.array([1, -1, 1])}
  batch["mix_weight"] = jnp.array([0.7, 0.7, 0.6])
  value, weight = ask(supervised.Method(smoothing=0.3), **batch)[0]["ce"]
  log = log_softmax(LOGITS)
  expected = -0.7 * (0.7 * log[0, 0] + 0.3 * log[0, 1]) - 0.3 * log[0].mean()
  assert float(value[0]) == pytest.approx(expected, rel=1e-5)
  assert float(value[2]) == pytest.approx(np.log(3), rel=1e-5)
  assert weight.tolist() == [1, 0, 1]  # whoever has half a label has none


def stepped(method):
  """(the student before a step, after it, the gradient's function): plain SGD at .1."""
  plain = Optimizer(learning_rate=0.1, momentum=0, nesterov=False, weight_decay=0)
  toy = small.Small(method, optimizer=plain, rounds=1)
  state, frozen = toy.begin()
  source, first = toy.stream.source(0), jax.device_get(state.roles["student"])
  _, batch, _ = update.prepare(toy.program, state, frozen, source)

  def loss(params):
    student = small.Bound(small.tiny.network(), {**first, "params": params})
    terms, _ = supervised.Method(smoothing=method.smoothing).loss(
      "student", {"student": student}, (), batch, (), None, 0
    )
    return update.reduce_terms(terms)[0]

  after = toy.round(state, frozen).roles["student"]
  return first["params"], jax.device_get(after["params"]), jax.jit(jax.grad(loss))


def gap(a, b):
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return max(float(np.abs(np.asarray(x) - np.asarray(y)).max()) for x, y in pairs)


@pytest.mark.parametrize(
  ("radius", "adaptive"), [(0.0, False), (0.0, True), (0.5, False), (2.0, True)]
)
def test_a_step_takes_its_gradient_where_sam_says(radius, adaptive):
  method = supervised.Method(smoothing=0.1, sam=radius, sam_adaptive=adaptive)
  before, after, gradient = stepped(method)
  grads = gradient(before)
  squared = lambda tree: sum(float((np.asarray(x) ** 2).sum()) for x in jax.tree.leaves(tree))  # noqa: E731
  scale = jax.tree.map(lambda p: np.abs(p) if adaptive else np.ones_like(p), before)
  norm = np.sqrt(squared(jax.tree.map(lambda s, g: s * g, scale, grads)))
  up = jax.tree.map(lambda p, s, g: p + radius * s**2 * g / norm, before, scale, grads)
  there = jax.tree.map(lambda p, g: p - 0.1 * g, before, gradient(up))
  here = jax.tree.map(lambda p, g: p - 0.1 * g, before, grads)
  assert gap(after, there) < 1e-5
  assert (gap(after, here) > 1e-3) == (radius > 0)


def test_adaptive_steps_are_others():
  found = [stepped(supervised.Method(sam=1.0, sam_adaptive=a))[1] for a in (False, True)]
  assert gap(*found) > 1e-3


@pytest.mark.parametrize("wrong", [{"smoothing": 1.5}, {"smoothing": -0.1}, {"sam": -1.0}])
def test_wrong_fields_are_named(wrong):
  with pytest.raises(UserError, match=f"supervised.{next(iter(wrong))}"):
    supervised.Method(**wrong)
