"""The implicit gradient of an inner optimum, against differentiating through all of its steps."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from rkd_jax.implicit import fixed_point

STEPS = 80


def contraction(outer, data, d):
  """Pulls d to where it minimises a smooth strongly convex function of outer and data."""

  def inner(d):
    return (
      0.5 * ((d - outer["goal"]) ** 2).sum() + outer["bend"] * jnp.log(jnp.cosh(data @ d)).sum()
    )

  return d - 0.3 * jax.grad(inner)(d)


@pytest.fixture
def double():
  with jax.enable_x64(True):
    draw = np.random.default_rng(0)
    outer = {"goal": jnp.asarray(draw.normal(size=3)), "bend": jnp.asarray(0.4)}
    yield outer, jnp.asarray(0.5 * draw.normal(size=(4, 3))), jnp.zeros(3)


def loss(solve, outer, data, start):
  return jnp.sum(jnp.sin(solve(contraction, STEPS, outer, data, start)) * jnp.arange(1.0, 4.0))


def unrolled(phi, steps, outer, data, d):
  for _ in range(steps):
    d = phi(outer, data, d)
  return d


def test_its_value_is_that_of_the_iteration(double):
  outer, data, start = double
  for steps in (0, 1, 7):
    np.testing.assert_allclose(
      fixed_point(contraction, steps, outer, data, start),
      unrolled(contraction, steps, outer, data, start),
      rtol=1e-12,
    )


def test_its_gradient_is_the_hyper_gradient(double):
  outer, data, start = double
  found = jax.grad(loss, argnums=1)(fixed_point, outer, data, start)
  brute = jax.grad(loss, argnums=1)(unrolled, outer, data, start)
  assert found["goal"].dtype == jnp.float64
  for name in outer:
    np.testing.assert_allclose(found[name], brute[name], rtol=1e-8)
    assert np.abs(brute[name]).max() > 1e-2
  check_grads(
    lambda o: loss(fixed_point, o, data, start), (outer,), order=1, modes=("rev",), rtol=1e-5
  )


def test_few_steps_give_a_truncated_series(double):
  outer, data, start = double
  exact = jax.grad(loss, argnums=1)(unrolled, outer, data, start)["goal"]
  optimum = unrolled(contraction, STEPS, outer, data, start)
  errors = []
  for steps in (1, 2, 4, 8, 16):
    pull = jax.vjp(lambda o, steps=steps: fixed_point(contraction, steps, o, data, optimum), outer)[
      1
    ]
    g = jnp.cos(optimum) * jnp.arange(1.0, 4.0)
    errors.append(float(jnp.abs(pull(g)[0]["goal"] - exact).max()))
  assert all(b < 0.8 * a for a, b in itertools.pairwise(errors)), errors


def test_data_and_start_get_none(double):
  outer, data, start = double
  for argument in (2, 3):
    gradient = jax.grad(loss, argnums=argument)(fixed_point, outer, data, start)
    assert not np.asarray(gradient).any()


def test_compiles(double):
  outer, data, start = double
  both = [f(outer, data, start) for f in (
    lambda *a: jax.grad(loss, argnums=1)(fixed_point, *a),
    jax.jit(lambda *a: jax.grad(loss, argnums=1)(fixed_point, *a)),
  )]  # fmt: skip
  for name in outer:
    np.testing.assert_allclose(both[0][name], both[1][name], rtol=1e-12)
