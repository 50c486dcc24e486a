"""MM-BD: the largest margin that any image can have for each class, without data.

A backdoor's target class is over-confident somewhere, whatever the trigger looks like: its largest
margin stands out among the classes (MM-BD, Wang et al., S&P 2024).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from scipy import stats

from rkd_jax.adversarial import base
from rkd_jax.audit.inversion import Apply, at_once, drawn, grouped
from rkd_jax.errors import check_range
from rkd_jax.training import sharding

FEWEST = 4  # classes for a gamma distribution of all but one


@dataclasses.dataclass(frozen=True)
class Settings:
  """Attributes:
  steps: of the ascent.
  starts: random images per class.
  rate: of Adam (the paper: plain ascent at .01, 300 steps, 30 starts).
  """

  steps: int = 60
  starts: int = 4
  rate: float = 0.05

  def __post_init__(self):
    check_range("the audit's mmbd steps", self.steps, 1, 10**6)
    check_range("the audit's mmbd starts", self.starts, 1, 10**6)


def margins(
  apply: Apply, variables: Any, shape: tuple[int, int, int], classes: int, seed: int = 0,
  settings: Settings = Settings(), mesh: Mesh | None = None,
) -> np.ndarray:  # fmt: skip
  """float[K]: max over x in [0, 1]^(H, W, C) of z_k(x) - max_{j != k} z_j(x), from random starts.

  Args:
    apply: (variables, float[B, H, W, C]) -> float[B, K], hashable.
    variables: of the network.
    shape: (H, W, C).
    classes: K.
    seed: draws the starts.
    settings: how long.
    mesh: over whose devices the classes are laid; None: all.
  """
  mesh = mesh or sharding.make_mesh()
  key = jax.random.key_data(jax.random.key(seed))
  variables, key = sharding.replicate(mesh, (variables, key))
  most = at_once(0, shape) // settings.starts
  found, group = [], grouped(classes, most, mesh.size)
  for start in range(0, classes, group):
    own = np.arange(start, start + group)
    goals = sharding.spread(mesh, np.where(own < classes, own, 0).astype(np.int32))
    found.append(np.asarray(_group(apply, variables, shape, goals, key, settings)))
  return np.concatenate(found)[:classes]


def _group(
  apply: Apply, variables: Any, shape: Any, goals: Any, key: Any, settings: Settings
) -> jax.Array:
  images = _begin(goals, key, settings.starts, shape)
  zeros = jnp.zeros_like(images)
  state = images, zeros, zeros, jnp.full(goals.shape, -jnp.inf)
  how, seen = (apply, settings.rate), (goals, variables)
  *_, best = base.advance(_step, how, seen, state, settings.steps)
  return best


@functools.partial(jax.jit, static_argnums=(2, 3))
def _begin(goals: jax.Array, key: jax.Array, starts: int, shape: tuple[int, ...]) -> jax.Array:
  def one(goal):
    return jax.random.uniform(jax.random.fold_in(drawn(key, 2), goal), (starts, *shape))

  return jax.vmap(one)(goals)


def _step(how: tuple[Apply, float], given: Any, i: jax.Array, state: Any) -> Any:
  """One step of Adam up the margins; keeps the largest margin that was seen."""
  apply, rate = how
  goals, variables = given
  images, first, second, best = state

  def margin(images: jax.Array, goal: jax.Array) -> tuple[jax.Array, jax.Array]:
    logits = apply(variables, images).astype(jnp.float32)
    others = jnp.where(jnp.arange(logits.shape[1])[None] == goal, -jnp.inf, logits)
    found = logits[:, goal] - others.max(-1)
    return found.sum(), found.max()

  gradient, seen = jax.vmap(jax.grad(margin, has_aux=True))(images, goals)
  t = i + 1.0
  first = 0.9 * first + 0.1 * gradient
  second = 0.999 * second + 0.001 * gradient**2
  up = (first / (1 - 0.9**t)) / (jnp.sqrt(second / (1 - 0.999**t)) + 1e-12)
  return jnp.clip(images + rate * up, 0, 1), first, second, jnp.maximum(best, seen)


def nominal(margins: np.ndarray) -> float | None:
  """The paper's p-value, 1 - F(r_max)^K with a gamma distribution F of all margins but the largest.

  F comes from K - 1 points, so this is not calibrated. None below four classes, or where a margin
  is not positive.
  """
  rest = np.sort(margins)[:-1]
  if len(margins) < FEWEST or not (rest > 0).all() or np.ptp(rest) == 0:
    return None
  shape, _, scale = stats.gamma.fit(rest, floc=0)
  return float(-np.expm1(len(margins) * stats.gamma.logcdf(margins.max(), shape, scale=scale)))
