"""Perturbed views of a batch, for methods that ask a network to answer alike."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def random_blend(key: jax.Array, images: jax.Array, amplitude: float) -> jax.Array:
  """(1 - a) x + a u: a ~ U(0, amplitude) per example, u one uniform pattern for the whole batch.

  Soft-Randomization (Arani et al. 2019) with a shared pattern in place of Gaussian noise.

  Args:
    images: float[B, H, W, C] in [0, 1].
    amplitude: in [0, 1].
  """
  strength, pattern = jax.random.split(key)
  a = jax.random.uniform(strength, (images.shape[0], 1, 1, 1), maxval=amplitude)
  u = jax.random.uniform(pattern, (1, *images.shape[1:]))
  return (1 - a) * images + a * u


def shift(images: jax.Array, perturbation: jax.Array) -> jax.Array:
  """images + perturbation float[H, W, C], clipped to [0, 1]."""
  return jnp.clip(images + perturbation[None], 0, 1)


def ascend(
  loss: Callable[[jax.Array], jax.Array], perturbation: jax.Array, step: float, radius: float
) -> jax.Array:
  """One sign-gradient ascent step on a universal perturbation, kept in its l_inf ball."""
  moved = perturbation + step * jnp.sign(jax.grad(loss)(perturbation))
  return jnp.clip(moved, -radius, radius)
