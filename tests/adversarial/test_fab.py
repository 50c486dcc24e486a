"""FAB's projection against linear programs and Lagrange's condition; its points are nearest."""

import jax
import jax.numpy as jnp
import linear
import numpy as np
import pytest
from scipy import optimize

from rkd_jax.adversarial import fab


def drawn(seed, count=40, pixels=9):
  draw = np.random.default_rng(seed)
  points = draw.random((count, 3, 3, 1)).astype(np.float32)
  slope = draw.normal(size=(count, 3, 3, 1)).astype(np.float32)
  slope[:5, 0] = 0  # some pixels do not matter
  return jnp.asarray(points), jnp.asarray(slope), draw


def reachable(points, slope, sign):
  room = np.where(sign[:, None, None, None] * slope > 0, 1 - points, points)
  return (np.abs(slope) * room).sum((1, 2, 3))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_lands_on_the_hyperplane_inside_the_box(norm):
  points, slope, draw = drawn(0)
  sign = np.where(draw.random(40) < 0.5, -1.0, 1.0)
  needed = sign * reachable(points, slope, sign) * draw.uniform(0.01, 0.95, 40)
  move = np.asarray(fab.to_hyperplane(points, slope, jnp.float32(needed), norm))
  np.testing.assert_allclose((slope * move).sum((1, 2, 3)), needed, rtol=1e-4, atol=1e-5)
  assert (points + move).min() >= -1e-6 and (points + move).max() <= 1 + 1e-6


def test_no_move_is_smaller_in_l_inf():
  """Against a linear program: least r with <slope, move> = needed, |move_i| <= r, in the box."""
  points, slope, draw = drawn(1, 12)
  sign = np.where(draw.random(12) < 0.5, -1.0, 1.0)
  needed = sign * reachable(points, slope, sign) * draw.uniform(0.05, 0.9, 12)
  found = np.abs(fab.to_hyperplane(points, slope, jnp.float32(needed), "linf")).max((1, 2, 3))
  for p, w, n, r in zip(points, slope, needed, found, strict=True):
    p, w = np.asarray(p).ravel(), np.asarray(w).ravel()
    bounds = [(-a, 1 - a) for a in p] + [(0, None)]
    eye = np.eye(9)
    above = np.concatenate(
      [np.hstack([eye, -np.ones((9, 1))]), np.hstack([-eye, -np.ones((9, 1))])]
    )
    program = optimize.linprog(
      np.r_[np.zeros(9), 1], above, np.zeros(18), np.r_[w, 0][None], [n], bounds=bounds
    )
    np.testing.assert_allclose(r, program.fun, rtol=1e-4, atol=1e-6)


def test_no_move_is_smaller_in_l_2():
  points, slope, draw = drawn(2, 8)
  sign = np.where(draw.random(8) < 0.5, -1.0, 1.0)
  needed = sign * reachable(points, slope, sign) * draw.uniform(0.05, 0.8, 8)
  found = np.linalg.norm(
    np.asarray(fab.to_hyperplane(points, slope, jnp.float32(needed), "l2")).reshape(8, -1), axis=1
  )
  for p, w, n, r in zip(points, slope, needed, found, strict=True):
    p, w = np.asarray(p, float).ravel(), np.asarray(w, float).ravel()
    program = optimize.minimize(
      lambda m: m @ m, np.zeros(9), jac=lambda m: 2 * m, bounds=[(-a, 1 - a) for a in p],
      constraints={"type": "eq", "fun": lambda m, w=w, n=n: w @ m - n, "jac": lambda m, w=w: w},
      options={"ftol": 1e-12, "maxiter": 500},
    )  # fmt: skip
    np.testing.assert_allclose(r, np.sqrt(program.fun), rtol=1e-3)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_where_the_box_is_too_small_everything_goes_to_its_end(norm):
  points, slope, _ = drawn(3, 6)
  slope = jnp.where(slope == 0, 0.1, slope)
  move = fab.to_hyperplane(points, slope, jnp.full(6, 1e3), norm)
  np.testing.assert_allclose(points + move, slope > 0, atol=1e-6)
  still = fab.to_hyperplane(points, slope, jnp.zeros(6), norm)
  assert not still.any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_on_a_linear_network_it_finds_the_nearest_point(norm):
  apply = linear.network(2)
  images, labels, keys = linear.examples(apply, 12)
  far = linear.distances(apply, images, labels, norm)
  changed = fab.FAB(eps=0.5, norm=norm, steps=40)(apply, images, labels, keys)
  assert (apply(changed).argmax(-1) != labels).all()
  away = linear.sizes(changed, images, norm)
  assert (away >= far * 0.999).all()
  np.testing.assert_allclose(away, far, rtol=0.02)


def test_the_radius_only_says_who_counts():
  apply = linear.network(2)
  images, labels, keys = linear.examples(apply, 12)
  far = linear.distances(apply, images, labels, "linf")
  eps = float(np.median(far) * 1.05)
  changed = fab.FAB(eps=eps, steps=40)(apply, images, labels, keys)
  moved = linear.sizes(changed, images, "linf")
  assert (moved[far > eps] == 0).all() and (moved[far < eps * 0.95] > 0).all()
  assert jax.tree.all(jax.tree.map(jnp.isfinite, changed).all())
