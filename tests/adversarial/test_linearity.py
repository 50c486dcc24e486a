"""What robust accuracy rests on: linearity, gradient gaps, bounds, certified radii, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rkd_jax.adversarial import analysis
from rkd_jax.errors import UserError


def linear(weights, images):
  """Logits [w . x, 0] of images [B, 2, 2, 1]."""
  score = (images * weights.reshape(1, 2, 2, 1)).sum((1, 2, 3))
  return jnp.stack([score, jnp.zeros_like(score)], -1)


def network(*weights):
  return jax.tree_util.Partial(linear, jnp.array(weights, jnp.float32))


IMAGES = jax.random.uniform(jax.random.key(1), (3, 2, 2, 1), minval=0.4, maxval=0.6)
LABELS = jnp.array([0, 1, 0])
KEYS = jax.random.split(jax.random.key(2), 3)


def softplus_gap(weights, images, labels, eps):
  """The largest distance to the tangent over a linear score: it lies at an end of its range."""
  sign = np.where(np.asarray(labels) == 0, -1.0, 1.0)
  score = np.asarray((images * np.reshape(weights, (1, 2, 2, 1))).sum((1, 2, 3)))
  reach = eps * np.abs(weights).sum()
  gaps = []
  for s, z in zip(sign, score, strict=True):
    value, slope = np.logaddexp(0, s * z), s / (1 + np.exp(-s * z))
    gaps.append(max(abs(np.logaddexp(0, s * (z + d)) - value - d * slope) for d in (-reach, reach)))
  return np.array(gaps)


def test_the_distance_to_the_tangent_is_found():
  weights = (3.0, -2.0, 1.0, 4.0)
  found = analysis.local_linearity(network(*weights), IMAGES, LABELS, KEYS, eps=0.1, norm="linf")
  np.testing.assert_allclose(found, softplus_gap(weights, IMAGES, LABELS, 0.1), rtol=0.03)


def test_in_a_ball_of_no_size_every_loss_is_linear():
  found = analysis.local_linearity(network(3, -2, 1, 4), IMAGES, LABELS, KEYS, eps=0.0, norm="l2")
  np.testing.assert_allclose(found, 0, atol=1e-6)


def test_each_example_has_its_own_slope():
  apply = network(3, -2, 1, 4)
  whole = analysis.slope(apply, IMAGES, LABELS)
  alone = analysis.slope(apply, IMAGES[1:2], LABELS[1:2])
  np.testing.assert_allclose(whole[1:2], alone, rtol=1e-6)
  probability = jax.nn.softmax(apply(IMAGES))[0, 1]
  expected = -probability * jnp.array([3.0, -2, 1, 4]).reshape(2, 2, 1)
  np.testing.assert_allclose(whole[0], expected, rtol=1e-5)


@pytest.mark.parametrize(("norm", "size"), [("linf", 10.0), ("l2", 30**0.5)])
def test_the_dual_norms(norm, size):
  gradient = jnp.array([3.0, -2, 1, 4]).reshape(1, 2, 2, 1)
  np.testing.assert_allclose(analysis.dual(gradient, norm), [size], rtol=1e-6)


def test_a_network_has_no_gap_to_itself():
  apply = network(3, -2, 1, 4)
  assert not analysis.residual(apply, apply, IMAGES, LABELS, "l2").any()
  assert analysis.residual(apply, network(3, -2, 1, 5), IMAGES, LABELS, "l2").all()


def test_no_loss_in_the_ball_exceeds_the_bound():
  student, teacher = network(3, -2, 1, 4), network(1, 1, -2, 0)
  found = analysis.bound(student, teacher, IMAGES, LABELS, KEYS, eps=0.1, norm="linf")
  for key in jax.random.split(jax.random.key(3), 50):
    corner = jnp.sign(jax.random.normal(key, IMAGES.shape))
    worst = analysis.loss(student, IMAGES + 0.1 * corner, LABELS)
    assert (worst <= found.total * 1.03).all()
  np.testing.assert_allclose(found.clean, analysis.loss(student, IMAGES, LABELS))


def test_a_network_that_never_wavers_is_certain_as_far_as_the_draws_go():
  apply = jax.tree_util.Partial(lambda images: jnp.tile(jnp.array([[1.0, 0.0]]), (len(images), 1)))
  found = analysis.certified_radius(apply, IMAGES, LABELS, KEYS, sigma=0.5, select=4, samples=20)
  certain = 0.5 * stats.norm.ppf(0.001 ** (1 / 20))  # Clopper-Pearson of 20 of 20
  np.testing.assert_allclose(found, [certain, 0, certain], rtol=1e-5)  # the second is wrong


def test_no_radius_is_larger_than_the_true_one():
  weights = np.array([3.0, -2, 1, 4])
  found = analysis.certified_radius(network(*weights), IMAGES, LABELS, KEYS, sigma=0.2)
  score = np.asarray((IMAGES * weights.reshape(1, 2, 2, 1)).sum((1, 2, 3)))
  true = np.where(np.asarray(LABELS) == 0, score, -score) / np.linalg.norm(weights)
  assert (found <= np.maximum(true, 0) + 1e-6).all()
  assert found[0] > 0.5 * true[0]


@pytest.mark.parametrize("wrong", [{"norm": "l3"}, {"eps": -0.1}, {"eps": 2.0}])
def test_what_cannot_be_measured_is_refused(wrong):
  how = {"eps": 0.1, "norm": "linf", **wrong}
  with pytest.raises(UserError):
    analysis.local_linearity(network(1, 1, 1, 1), IMAGES, LABELS, KEYS, **how)
