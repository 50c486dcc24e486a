"""Per-example losses: by hand, as PyTorch has them, differentiable, and finite where unlabelled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from rkd_jax import losses

LOGITS = jnp.array([[2.0, 0.0, -1.0], [0.5, 0.5, 0.5], [-3.0, 4.0, 1.0], [80.0, -80.0, 0.0]])
OTHER = jnp.array([[0.0, 1.0, 0.5], [1.0, -2.0, 0.0], [2.0, 2.0, 2.0], [-5.0, 5.0, 0.0]])
LABELS = jnp.array([0, 2, 1, 1])


def softmax(x, temperature=1.0):
  e = np.exp((x - np.max(x, -1, keepdims=True)) / temperature)
  return e / e.sum(-1, keepdims=True)


def test_cross_entropy_by_hand():
  found = losses.cross_entropy(LOGITS, LABELS)
  expected = [np.log(1 + np.exp(-2) + np.exp(-3)), np.log(3), np.log(1 + np.exp(-7) + np.exp(-3))]
  np.testing.assert_allclose(found[:3], expected, rtol=1e-6)
  assert found[3] == pytest.approx(160)  # far out, and finite


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kl_by_hand(temperature):
  found = losses.kl_divergence(OTHER, LOGITS, temperature)
  p, q = (softmax(np.float64(x), temperature) for x in (OTHER, LOGITS))
  np.testing.assert_allclose(found, temperature**2 * (p * np.log(p / q)).sum(-1), rtol=2e-5)
  np.testing.assert_allclose(losses.kl_divergence(OTHER, OTHER, temperature), 0, atol=1e-5)


def test_as_torch_has_them():
  torch = pytest.importorskip("torch")
  functional = torch.nn.functional
  a, b, y = (torch.tensor(np.asarray(x)) for x in (OTHER, LOGITS, LABELS))
  expected = functional.cross_entropy(b, y.long(), reduction="none")
  np.testing.assert_allclose(losses.cross_entropy(LOGITS, LABELS), expected, rtol=1e-5)
  for temperature in (1.0, 3.0):
    expected = temperature**2 * functional.kl_div(
      (b / temperature).log_softmax(1), (a / temperature).log_softmax(1),
      reduction="none", log_target=True,
    ).sum(1)  # fmt: skip
    found = losses.kl_divergence(OTHER, LOGITS, temperature)
    np.testing.assert_allclose(found, expected, rtol=2e-5)


BATCH = {
  "label": jnp.array([0, -1, 1, 2]), "mix_label": jnp.array([1, 0, -1, 0]),
  "mix_weight": jnp.array([0.7, 0.5, 0.2, 1.0]),
}  # fmt: skip


def test_mixed_cross_entropy_by_hand():
  value, weight = losses.mixed_cross_entropy(LOGITS, {"label": BATCH["label"]})
  assert weight.tolist() == [1, 0, 1, 1] and weight.dtype == value.dtype
  np.testing.assert_array_equal(
    value[jnp.array([0, 2])], losses.cross_entropy(LOGITS, LABELS)[jnp.array([0, 2])]
  )
  value, weight = losses.mixed_cross_entropy(LOGITS, BATCH)
  assert weight.tolist() == [1, 0, 0, 1]  # both halves are labelled
  p = softmax(np.float64(LOGITS))
  assert value[0] == pytest.approx(-0.7 * np.log(p[0, 0]) - 0.3 * np.log(p[0, 1]), rel=1e-5)
  assert value[3] == pytest.approx(80)  # the partner has no share


FUNCTIONS = {
  "cross_entropy": lambda x: losses.cross_entropy(x, LABELS),
  "kl_divergence": lambda x: losses.kl_divergence(OTHER, x, 2.0),
  "kl_divergence's target": lambda x: losses.kl_divergence(x, OTHER, 2.0),
  "mixed_cross_entropy": lambda x: losses.mixed_cross_entropy(x, BATCH)[0],
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiled_as_it_is_and_one_number_an_example(name):
  function = FUNCTIONS[name]
  found = function(LOGITS)
  assert found.shape == (4,) and found.dtype == jnp.float32
  np.testing.assert_allclose(jax.jit(function)(LOGITS), found, rtol=1e-5, atol=1e-6)
  # no example looks at its neighbours
  assert function(LOGITS.at[0].set(9.0))[1:].tolist() == found[1:].tolist()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients(name):
  function = FUNCTIONS[name]
  calm = jnp.where(jnp.abs(LOGITS) > 10, 1.0, LOGITS)  # differences of float32 need small values
  check_grads(function, (calm,), order=2, modes=("rev", "fwd"), atol=3e-2, rtol=3e-2, eps=1e-2)


def test_unlabelled_rows_are_finite_and_so_are_their_gradients():
  labels = jnp.full(4, -1)

  def weighted(x):
    value, weight = losses.mixed_cross_entropy(x, {"label": labels})
    return (value * weight).sum()

  found = losses.cross_entropy(LOGITS, labels)
  assert np.isfinite(found).all()
  np.testing.assert_array_equal(found, losses.cross_entropy(LOGITS, jnp.zeros(4, int)))
  np.testing.assert_array_equal(jax.grad(weighted)(LOGITS), np.zeros_like(LOGITS))


@pytest.mark.parametrize(
  "wrong",
  [
    lambda: losses.cross_entropy(LOGITS[0], LABELS),
    lambda: losses.cross_entropy(LOGITS, jax.nn.one_hot(LABELS, 3)),
    lambda: losses.kl_divergence(LOGITS, LOGITS[:2]),
  ],
)
def test_shapes_are_checked(wrong):
  with pytest.raises(AssertionError):
    wrong()
