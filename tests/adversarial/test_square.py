"""Square: queries that only ever help, squares of the planned size, bumps of norm 1."""

import jax
import jax.numpy as jnp
import linear
import numpy as np
import pytest

from rkd_jax.adversarial import autoattack, ball, base, square
from rkd_jax.errors import UserError


@pytest.mark.parametrize("norm", ball.NORMS)
def test_no_query_makes_it_worse(norm):
  apply = linear.network(3)
  images, labels, keys = linear.examples(apply, 8)
  attack, eps = square.Square(eps=0.01, norm=norm, queries=40), jnp.float32(0.01)
  query = jax.jit(square._query, static_argnums=0)
  given, sides = {"images": images, "labels": labels, "keys": keys}, jnp.asarray(attack.side(9))
  state = square._begin(norm, apply, eps, given)
  for i in range(40):
    after = query(norm, (apply, eps, sides), jnp.int32(i), state)
    fooled = state["margin"] <= 0
    assert (after["margin"] <= state["margin"]).all()
    np.testing.assert_array_equal(after["x"][fooled], state["x"][fooled])  # left alone
    assert linear.sizes(after["x"], images, norm).max() <= 0.01 + 1e-6
    np.testing.assert_allclose(base.margin(apply(after["x"]), labels), after["margin"], atol=1e-5)
    state = after


def test_the_sides_of_the_squares():
  """.8 of 1024 pixels, halved nine times: 28.6, 20.2, ... down to 1.26."""
  sides = square.Square(eps=0.1, queries=10_000).side(32 * 32)
  starts = [0, *(k + 1 for k in square.HALVINGS)]
  wanted = [round((0.8 / 2**k * 1024) ** 0.5) for k in range(10)]
  assert sides[starts].tolist() == wanted and sides[-1] == wanted[-1]
  assert len(square.Square(eps=0.1, queries=7).side(9)) == 7


def test_a_square_has_one_sign_a_channel_and_reaches_every_pixel():
  image = jnp.full((5, 6, 3), 0.5)
  seen, put = np.zeros((5, 6)), jax.jit(square._square)
  for k in range(200):
    new = put(0.1, jax.random.key(k), image, image, jnp.int32(2))
    moved = np.asarray(new - image)
    rows, columns = np.nonzero(np.abs(moved[..., 0]) > 1e-6)
    assert len(rows) == 4 and rows.max() - rows.min() == columns.max() - columns.min() == 1
    assert np.allclose(np.abs(moved[rows, columns]), 0.1)
    assert (moved[rows, columns] == moved[rows[0], columns[0]]).all()
    seen[rows, columns] += 1
  assert (seen > 0).all()


def test_a_bump_has_two_hills_and_norm_one():
  found = np.asarray(square.bump(jnp.int32(5), 8, 7))
  np.testing.assert_allclose((found**2).sum(), 1, rtol=1e-5)
  assert (found[:2, :5] >= 0).all() and (found[2:5, :5] <= 0).all()
  assert not found[5:].any() and not found[:, 5:].any()
  assert np.unravel_index(found.argmax(), found.shape) == (1, 2)  # of two rows, the second
  np.testing.assert_allclose((found[:2] ** 2).sum(), 0.5, rtol=1e-5)


def test_a_window_spends_the_whole_budget():
  image, key = jnp.full((8, 8, 3), 0.5), jax.random.key(0)
  x = image
  for k in range(5):
    x = jax.jit(square._window)(0.2, jax.random.fold_in(key, k), image, x, jnp.int32(4))
    np.testing.assert_allclose(jnp.linalg.norm(x - image), 0.2, rtol=1e-4)


def test_it_finds_what_there_is_without_a_gradient():
  apply = linear.network(2)
  images, labels, keys = linear.examples(apply)
  far = linear.distances(apply, images, labels, "linf")
  eps = float(np.median(far) * 1.1)
  changed = square.Square(eps=eps, queries=600)(apply, images, labels, keys)
  right = apply(changed).argmax(-1) == labels
  np.testing.assert_array_equal(right, far > eps)


def test_inside_autoattack_the_schedule_is_that_of_the_queries():
  """As the authors' AutoAttack has it: after 4000 of 5000 queries the area was halved 7 times."""
  plain = square.Square(eps=0.1, rescaled=False).side(32 * 32)
  wanted = [round((0.8 / 2**k * 1024) ** 0.5) for k in range(8)]
  starts = [0, *(k + 1 for k in square.HALVINGS[:7])]
  assert plain[starts].tolist() == wanted and plain[-1] == wanted[-1]
  stage = dict(autoattack.AutoAttack(0.1).stages(10))["square"]
  assert stage.side(32 * 32).tolist() == plain.tolist()


def test_the_queries_that_are_counted_are_those_that_were_made():
  """At a radius where all fall at once: the first 250, of everybody."""
  apply = linear.network()
  images, labels, keys = linear.examples(apply, 8)
  _, forward, backward = square.Square(eps=0.5).counted(apply, images, labels, keys)
  assert (forward, backward) == (8 * (2 + square.LOOK), 0)


def test_logits_that_are_not_finite_on_the_way_are_refused():
  def broken(weights, images):  # fine where nothing was changed
    return linear.score(weights, images) / (images[:, 0, 0, 0] > 0)[:, None]

  apply = jax.tree_util.Partial(broken, linear.network().args[0])
  images, labels, keys = linear.examples(linear.network(), 8)
  with pytest.raises(UserError, match="not finite near these images"):
    square.Square(eps=0.9, queries=20)(apply, images, labels, keys)
