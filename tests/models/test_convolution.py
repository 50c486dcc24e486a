"""`convolve` against XLA's own convolution: values, gradients, and gradients of gradients."""

import chex
import jax
import jax.numpy as jnp
import pytest

from rkd_jax.models import convolution

CASES = [  # image side, kernel, strides, padding
  (8, (3, 3), (1, 1), ((1, 1), (1, 1))),
  (8, (3, 3), (2, 2), ((1, 1), (1, 1))),
  (7, (3, 3), (2, 2), ((1, 1), (1, 1))),
  (9, (5, 3), (1, 2), ((0, 2), (1, 0))),
  (8, (7, 7), (2, 2), ((3, 3), (3, 3))),
  (6, (2, 2), (1, 1), ((0, 0), (0, 0))),
]


@pytest.mark.parametrize(("side", "window", "strides", "pads"), CASES)
def test_equals_xla(monkeypatch, side, window, strides, pads):
  monkeypatch.setattr(convolution, "LARGE", 0)
  keys = jax.random.split(jax.random.key(0), 3)
  images = jax.random.normal(keys[0], (2, side, side, 3))
  kernel = jax.random.normal(keys[1], (*window, 3, 4))

  def found(conv):
    def value(images, kernel):
      return jnp.sin(conv(images, kernel, strides, pads)).sum()

    def slope(images, kernel):  # of a loss on both gradients; KDIGA's is on that of the images
      return sum(jnp.cos(found).sum() for found in jax.grad(value, (0, 1))(images, kernel))

    both = jax.grad(value, (0, 1))(images, kernel), jax.grad(slope, (0, 1))(images, kernel)
    return conv(images, kernel, strides, pads), both

  ours, xla = found(convolution.convolve), found(convolution.plain)
  chex.assert_trees_all_close(ours, xla, rtol=1e-4, atol=1e-4)


def test_leaves_to_xla_what_it_does_not_cover(monkeypatch):
  monkeypatch.setattr(convolution, "LARGE", 0)
  monkeypatch.setattr(convolution, "_convolve", None)
  images, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 1, 2))
  more = {"dimension_numbers": convolution.NHWC}
  grouped = convolution.convolve(
    images, kernel, (1, 1), ((1, 1), (1, 1)), feature_group_count=2, **more
  )
  one = convolution.convolve(images, jnp.ones((1, 1, 2, 2)), (1, 1), ((0, 0), (0, 0)), **more)
  wide = convolution.convolve(
    images, jnp.ones((3, 3, 2, 2)), (1, 1), ((2, 2), (2, 2)), rhs_dilation=(2, 2), **more
  )
  named = convolution.convolve(images, jnp.ones((3, 3, 2, 2)), (1, 1), "SAME", **more)
  exact = convolution.convolve(
    images, jnp.ones((3, 3, 2, 2)), (1, 1), ((1, 1), (1, 1)), precision="highest", **more
  )
  for made in (grouped, one, wide, named, exact):
    assert made.shape == (1, 4, 4, 2)


def test_small_maps_are_left_to_xla_too(monkeypatch):
  seen = []
  monkeypatch.setattr(convolution, "_convolve", lambda *found: seen.append(found))
  for side, strides in ((32, (1, 1)), (32, (2, 2)), (31, (1, 1))):
    made = convolution.convolve(
      jnp.ones((1, side, side, 3)), jnp.ones((3, 3, 3, 16)), strides, ((1, 1), (1, 1)),
      dimension_numbers=convolution.NHWC,
    )  # fmt: skip
    assert (made is None) == (side == 32 and strides == (1, 1))
  assert len(seen) == 1
