"""The l_inf and l_2 balls around images, inside the box of pixels [0, 1]."""

import jax
import jax.numpy as jnp

from rkd_jax.errors import UserError, check_range

NORMS = ("linf", "l2")
Radius = float | jax.Array
SMALL = 1e-12  # keeps a direction finite where a gradient is 0


def check(norm: str, eps: float, images: jax.Array | None = None) -> None:
  """Raises a `UserError` for a norm, radius or images that no attack can work with.

  Args:
    eps: radius, in pixels of [0, 1]: at most 1 in l_inf.
    images: float[B, H, W, C] on the host or a device, not traced.
  """
  if norm not in NORMS:
    raise UserError(f"The norm is {norm!r}; choose one of {', '.join(NORMS)}.")
  check_range(f"eps ({norm})", eps, 0, 1 if norm == "linf" else 1e4)
  if images is None or not images.size:
    return
  low, high = float(jnp.min(images)), float(jnp.max(images))
  if not (low >= 0 and high <= 1):  # NaN too
    raise UserError(
      f"Images must be finite and in [0, 1], these reach from {low} to {high}. Radii are in such "
      "pixels; a network of this package normalises by itself."
    )


def norms(x: jax.Array, norm: str) -> jax.Array:
  """float[B, 1, 1, 1]: the norm of each example of float[B, H, W, C]."""
  axes = (1, 2, 3)
  if norm == "linf":
    return jnp.abs(x).max(axes, keepdims=True)
  return jnp.sqrt(jnp.square(x).sum(axes, keepdims=True))


def project(images: jax.Array, origin: jax.Array, eps: Radius, norm: str) -> jax.Array:
  """Images float[B, H, W, C] moved into the ball around `origin`, then into [0, 1].

  The box's projection never leaves an l_2 ball whose centre lies in the box.
  """
  moved = images - origin
  if norm == "linf":
    moved = jnp.clip(moved, -eps, eps)
  else:
    moved = moved * jnp.minimum(1, eps / jnp.maximum(norms(moved, norm), SMALL))
  return jnp.clip(origin + moved, 0, 1)


def steepest(gradient: jax.Array, norm: str) -> jax.Array:
  """The direction of norm 1 in which a loss with this gradient float[B, H, W, C] grows fastest."""
  if norm == "linf":
    return jnp.sign(gradient)
  return gradient / jnp.maximum(norms(gradient, norm), SMALL)


def random_start(keys: jax.Array, images: jax.Array, eps: Radius, norm: str) -> jax.Array:
  """A random point of each image's ball, inside the box.

  l_inf: uniform. l_2: a uniform direction, a uniform radius.

  Args:
    keys: key[B], one an example: its draws do not depend on who else is in the batch.
  """
  shape = images.shape[1:]
  if norm == "linf":
    moved = jax.vmap(lambda key: jax.random.uniform(key, shape, minval=-1.0))(keys)
  else:
    way, far = jax.vmap(jax.random.split, out_axes=1)(keys)
    moved = steepest(jax.vmap(lambda key: jax.random.normal(key, shape))(way), norm)
    moved = moved * jax.vmap(jax.random.uniform)(far)[:, None, None, None]
  return project(images + eps * moved, images, eps, norm)
