"""An inner optimum that is differentiated through: a few steps of phi, and implicit gradients."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rkd_jax.repeat import repeat

Tree = Any
Step = Callable[[Tree, Tree, jax.Array], jax.Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 5))
def fixed_point(
  phi: Step, steps: int, outer: Tree, data: Tree, start: jax.Array, terms: int | None = None
) -> jax.Array:
  """d after `steps` times d <- phi(outer, data, d), differentiable in `outer`.

  The gradient is that of a fixed point (implicit function theorem), by terms of the Neumann series:
  v <- J_d^T v + g from v = 0 (Grazzi et al. 2020); it costs no memory of the way there.

  Args:
    phi: a contraction in d; closes over no traced array.
    steps: of the iteration; 0 where `start` is taken for the fixed point.
    outer: what the gradient is taken in.
    data: what phi needs besides; gets no gradient.
    start: where d begins; gets no gradient.
    terms: of the series (0: no gradient passes); None: as many as steps.
  """
  return repeat(lambda i, d: phi(outer, data, d), start, steps)


def _forward(phi, steps, outer, data, start, terms):
  found = fixed_point(phi, steps, outer, data, start, terms)
  return found, (outer, data, found)


def _backward(phi, steps, terms, saved, g):
  outer, data, found = saved
  _, pull = jax.vjp(lambda o, d: phi(o, data, d), outer, found)
  none = jnp.zeros_like(g)
  v = repeat(lambda i, v: pull(v)[1] + g, none, steps if terms is None else terms)
  return pull(v)[0], jax.tree.map(jnp.zeros_like, data), jnp.zeros_like(found)


fixed_point.defvjp(_forward, _backward)
