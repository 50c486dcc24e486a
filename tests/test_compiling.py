"""Options for XLA reach what is compiled on CPU, if XLA knows them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from rkd_jax import compiling
from rkd_jax.compiling import QUICK, TRAINING, Jitted
from rkd_jax.training import update


def convolve(images, kernel):
  return lax.conv_general_dilated(
    images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


def test_the_options_are_known_here():
  assert all(
    compiling.known(*option) for options in (QUICK, TRAINING) for option in options.items()
  )
  assert not compiling.known("xla_cpu_no_such_option", 1)


def test_they_reach_the_compiler_and_unknown_ones_do_not(monkeypatch):
  asked, jit = [], jax.jit
  monkeypatch.setattr(
    jax, "jit", lambda f, **how: asked.append(how["compiler_options"]) or jit(f, **how)
  )
  options = {**QUICK, "xla_cpu_no_such_option": 1}
  assert Jitted(jnp.sin, options)(0.0) == 0
  assert asked[-1] == QUICK
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  assert Jitted(jnp.sin, options)(0.0) == 0
  assert asked[-1] is None


def test_whatever_trains_is_compiled_for_it():
  assert update._round.options is update._turn.options is TRAINING


def test_a_weights_gradient_is_that_of_xlas_defaults():
  keys = jax.random.split(jax.random.key(0), 2)
  images, kernel = (
    jax.random.normal(keys[0], (4, 16, 16, 8)),
    jax.random.normal(keys[1], (3, 3, 8, 8)),
  )
  gradient = jax.grad(lambda k, x: jnp.sin(convolve(x, k)).sum())
  ours, xlas = Jitted(gradient, TRAINING)(kernel, images), jax.jit(gradient)(kernel, images)
  np.testing.assert_allclose(ours, xlas, rtol=1e-4, atol=1e-3)


def test_it_is_what_jit_is():
  first = Jitted(lambda x, n: x * n, QUICK, static_argnames="n")
  assert first(2.0, n=3) == 6 and first._cache_size() == 1
  assert "multiply" in first.lower(2.0, n=3).as_text()
  with pytest.raises(AttributeError, match="nothing_of_it"):
    first.nothing_of_it  # noqa: B018
