"""Square attack (Andriushchenko et al. 2020, arXiv 1912.00049): random search, no gradient.

A query proposes to change a square; it is kept where the margin falls, or the image fools. Whoever
is fooled is left alone, and leaves the batch when half of it may. Forward passes only, so it also
sees through gradients that hide. Unlike the authors', our squares reach the last row and column.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rkd_jax.adversarial import ball, base
from rkd_jax.errors import check_range

LOOK = 250  # queries between two looks at who is fooled
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000: where the area is halved


@dataclasses.dataclass(frozen=True)
class Square(base.Attack):
  """5000 queries.

  Attributes:
    queries: at most, per image.
    share: of the image that the first squares cover (p in the paper).
    rescaled: the squares shrink as they would in 10,000 queries, at the same shares of them; else
      at the same queries, as inside the authors' AutoAttack.
  """

  queries: int = 5000
  share: float = 0.8
  rescaled: bool = True

  def __post_init__(self):
    super().__post_init__()
    check_range("Square's queries", self.queries, 1, 10**9)
    check_range("Square's share", self.share, 1e-6, 1)

  @property
  def forward(self):
    return 2 + self.queries

  @property
  def backward(self):
    return 0

  def __call__(self, apply, images, labels, keys):
    return self.counted(apply, images, labels, keys)[0]

  def counted(self, apply, images, labels, keys):
    base.checked(self, apply, images, labels)
    given = {"images": images, "labels": labels, "keys": keys}
    eps, sides = jnp.float32(self.eps), jnp.asarray(self.side(images.shape[1] * images.shape[2]))
    state = _begin(self.norm, apply, eps, given)
    answer, who = np.array(jax.device_get(state["x"])), np.arange(len(images))
    passes = 2 * len(who)
    for first in range(0, self.queries, LOOK):
      often = min(LOOK, self.queries - first)
      state = base.advance(_query, self.norm, (apply, eps, sides), state, often, first)
      base.check_sound(state["spoilt"])
      passes += often * len(who)
      answer[who] = jax.device_get(state["x"])
      open_ = np.flatnonzero(np.asarray(jax.device_get(state["margin"])) > 0)
      if not len(open_):
        break
      if 2 * len(open_) <= len(who):
        size = len(who) // 2
        kept = np.resize(open_, size)  # filled up with some of them again
        state, who = jax.tree.map(lambda a, kept=kept: a[kept], state), who[kept]
    return jnp.asarray(answer), passes, 0

  def side(self, pixels: int) -> np.ndarray:
    """int32[queries]: the squares' sides in an image of so many pixels."""
    at = np.arange(self.queries)
    at = at * 10_000 // self.queries if self.rescaled else at
    share = self.share / 2.0 ** np.searchsorted(HALVINGS, at, side="left")
    return np.maximum(np.round(np.sqrt(share * pixels)), 1).astype(np.int32)


@functools.partial(jax.jit, static_argnames="norm")
def _begin(
  norm: str, apply: Any, eps: jax.Array, given: dict[str, jax.Array]
) -> dict[str, jax.Array]:
  """Vertical stripes of one column each (l_inf), or a tiling of bumps (l_2), as far as eps goes."""
  images, labels = given["images"], given["labels"]
  _, height, width, channels = images.shape

  def stripes(key):
    signs = jax.random.rademacher(key, (1, width, channels), images.dtype)
    return jnp.broadcast_to(signs, (height, width, channels))

  def hills(key):
    side = max(min(height, width) // 5, 1)
    signs = jax.random.rademacher(key, (5, 5, channels), images.dtype)
    signs = jnp.repeat(jnp.repeat(signs, side, 0), side, 1)
    tiled = jnp.tile(bump(jnp.int32(side), side, side), (5, 5))[..., None] * signs
    rest = height - 5 * side, width - 5 * side
    around = [(max(r, 0) // 2, max(r, 0) - max(r, 0) // 2) for r in rest]
    return jnp.pad(tiled, (*around, (0, 0)))[:height, :width]

  pattern = stripes if norm == "linf" else hills
  drawn = jax.vmap(lambda key: pattern(jax.random.fold_in(key, 0)))(given["keys"])
  drawn = drawn / jnp.maximum(ball.norms(drawn, norm), ball.SMALL)
  x = jnp.clip(images + eps * drawn, 0, 1)
  margin = base.margin(apply(x), labels)
  return {**given, "x": x, "margin": margin, "spoilt": 0 * margin}  # NaN where one was not finite


def _query(norm: str, given: Any, i: jax.Array, state: dict[str, jax.Array]):
  apply, eps, sides = given
  images, x, labels = state["images"], state["x"], state["labels"]
  keys = jax.vmap(jax.random.fold_in, (0, None))(state["keys"], i + 1)
  propose = functools.partial(_square if norm == "linf" else _window, eps)
  new = jax.vmap(propose, (0, 0, 0, None))(keys, images, x, sides[i])
  margin = base.margin(apply(new), labels)
  take = (state["margin"] > 0) & ((margin < state["margin"]) | (margin <= 0))
  return {
    **state,
    "x": jnp.where(take[:, None, None, None], new, x),
    "margin": jnp.where(take, margin, state["margin"]),
    "spoilt": state["spoilt"] + 0 * margin,
  }


def _inside(key: jax.Array, shape: tuple[int, ...], side: jax.Array) -> tuple[jax.Array, ...]:
  """(bool[H, W] of a square somewhere inside the image, its first row, its first column)."""
  height, width = shape[:2]
  corner = jax.random.uniform(key, (2,))
  row, column = (
    jnp.floor(at * jnp.maximum(size - side + 1, 1)).astype(jnp.int32)
    for at, size in zip(corner, (height, width), strict=True)
  )
  rows, columns = jnp.arange(height), jnp.arange(width)
  tall = (rows >= row) & (rows < row + side)
  wide = (columns >= column) & (columns < column + side)
  return tall[:, None] & wide[None, :], row, column


def _square(eps: ball.Radius, key: jax.Array, image: jax.Array, x: jax.Array, side: jax.Array):
  """x with +-2 eps on a square, one sign a channel, back in the ball: one of its corners there."""
  place, sign = jax.random.split(key)
  inside, _, _ = _inside(place, image.shape, side)
  signs = jax.random.rademacher(sign, (image.shape[-1],), image.dtype)
  new = x + 2 * eps * jnp.where(inside[..., None], signs[None, None], 0)
  return jnp.clip(jnp.clip(new, image - eps, image + eps), 0, 1)


def _window(eps: ball.Radius, key: jax.Array, image: jax.Array, x: jax.Array, side: jax.Array):
  """x with what one window changes taken over into another, as a bump of random signs there; then
  the whole budget is spent again (algorithm 3)."""
  keys = jax.random.split(key, 4)
  height, width, channels = image.shape
  widest = min(height, width) - 1 + min(height, width) % 2
  side = jnp.minimum(jnp.maximum(side, 3) // 2 * 2 + 1, widest)  # odd
  (one, row, column), (two, _, _) = (_inside(k, image.shape, side) for k in keys[:2])
  one, both = one[..., None], (one | two)[..., None]
  moved = x - image

  def channelwise(a):
    return jnp.sqrt(jnp.square(a).sum((0, 1), keepdims=True))

  left = jnp.maximum(eps**2 - jnp.square(moved).sum(), 0) / channels
  budget = jnp.sqrt(left + jnp.square(jnp.where(both, moved, 0)).sum())
  upright = bump(side, height, width)
  lying = bump(side, width, height).T
  shape = jnp.where(jax.random.bernoulli(keys[2]), upright, lying)[..., None]
  signs = jax.random.rademacher(keys[3], (1, 1, channels), image.dtype)
  old = jnp.where(one, moved, 0)
  own = signs * jnp.roll(shape, jnp.stack([row, column]), (0, 1)) + old / (
    channelwise(old) + ball.SMALL
  )
  own = own / (channelwise(own) + ball.SMALL) * budget
  new = jnp.where(one, own, jnp.where(both, 0, moved))
  new = new / (jnp.sqrt(jnp.square(new).sum()) + ball.SMALL) * eps
  return jnp.clip(image + new, 0, 1)


def bump(side: jax.Array, height: int, width: int) -> jax.Array:
  """float[height, width] of norm 1: in the first `side` rows and columns two pseudo-Gaussian hills,
  the lower one upside down; 0 elsewhere (eq. 3 and figure 3 of the paper).

  A hill's height at a distance d (in the maximum norm) from its middle is sum_{k > d} 1 / k^2.
  """
  rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None]
  half, most = side // 2, side // 2 + 1
  steps = jnp.arange(1, max(height, width) + 2)
  sums = jnp.concatenate([jnp.zeros(1), jnp.cumsum(1.0 / jnp.square(steps))])
  inside = (rows < side) & (columns < side)
  total = jnp.zeros((height, width))
  for first, length, sign in ((0, half, 1.0), (half, side - half, -1.0)):
    there = inside & (rows >= first) & (rows < first + length)
    away = jnp.maximum(jnp.abs(rows - first - length // 2), jnp.abs(columns - half))
    hill = jnp.where(there, jnp.maximum(sums[most] - sums[jnp.minimum(away, most)], 0), 0)
    norm = jnp.sqrt(jnp.square(hill).sum())
    total = total + sign * hill / jnp.maximum(norm, ball.SMALL)
  return total / jnp.maximum(jnp.sqrt(jnp.square(total).sum()), ball.SMALL)
