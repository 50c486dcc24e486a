"""Trigger inversion: per class, the smallest change that sends nine in ten images there.

For all classes at once, with three kinds of change:

- `patch`: a mask and a pattern, x' = (1 - m) x + m p, the size |m|_1 (Neural Cleanse, Wang et al.,
  S&P 2019, eq. 3);
- `linf`, `l2`: one perturbation, x' = clip(x + d, 0, 1), the size its norm (universal adversarial
  perturbations, Moosavi-Dezfooli et al., CVPR 2017, here with a target).

A backdoor is a short way into its target class, so that class's change is smaller than other
classes'. How much smaller it is on networks without a backdoor is for `calibrate` to say.

Every kind has one dial per class that holds the rate of flipped images at the wanted one while the
change is improved: the price of the mask, the radius of the ball. It is an array, so no class waits
for another and nothing stops early: what Neural Cleanse's schedule of costs does, in one program.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rkd_jax.adversarial import base
from rkd_jax.errors import UserError, check_range
from rkd_jax.training import sharding

KINDS = ("patch", "linf", "l2")
Apply = Callable[[Any, jax.Array], jax.Array]  # (variables, images) -> logits; hashable
Tree = Any
START = {"linf": 0.02, "l2": 0.01}  # of the radius: l_inf, and l_2 as root mean square
PRICE = 0.01  # of a pixel of mask, at first
RATE = 0.2  # of Adam, for masks and patterns
TURN = 0.1  # how far the dial turns in a step at most, as a logarithm
FADE = 0.8  # what a step keeps of the earlier ones' hits
PIXELS = 2**20  # of images that are in memory at a time, so that their features are too
SMALLEST = 1e-6  # a size, so that it has a logarithm


@dataclasses.dataclass(frozen=True)
class Settings:
  """How triggers are searched for.

  Attributes:
    steps: of the search.
    batch: images that each class sees in a step.
    rate: of images, not of the class themselves, that must go there, in (0, 1).
    at_once: classes times images that are in memory at a time; 0: as many as have `PIXELS`.
  """

  steps: int = 100
  batch: int = 8
  rate: float = 0.9
  at_once: int = 0

  def __post_init__(self):
    check_range("the audit's steps", self.steps, 3, 10**6)
    check_range("the audit's batch", self.batch, 1, 10**6)
    check_range("the audit's rate", self.rate, 0.5, 0.99)
    check_range("the audit's at_once", self.at_once, 0, 10**9)


class Found(NamedTuple):
  """Of every class.

  Attributes:
    sizes: float[K] > 0: the mask's l_1 norm in pixels, or the perturbation's norm (pixels in
      [0, 1]), at which about `rate` of the images go there.
    rates: float[K]: how many of the images of other classes do, with the found change.
    mask: float[K, H, W, 1] in [0, 1]; all ones where the change is a perturbation.
    pattern: float[K, H, W, C]: in [0, 1], or the perturbation in [-1, 1].
  """

  sizes: np.ndarray
  rates: np.ndarray
  mask: np.ndarray
  pattern: np.ndarray


class State(NamedTuple):
  """The search for one class: what is learned, Adam's moments or the momentum, and the dial.

  Attributes:
    free: {"mask", "pattern"} before their sigmoid, or {"delta"}.
    first, second: moments of its gradient.
    dial: log of the price of a pixel of mask, or of the radius.
    hits: smoothed rate of flipped images.
    total: sum of the log sizes of the last third of the steps.
    late: how many they are.
  """

  free: Tree
  first: Tree
  second: Tree
  dial: jax.Array
  hits: jax.Array
  total: jax.Array
  late: jax.Array


def invert(
  apply: Apply, variables: Tree, images: np.ndarray, labels: np.ndarray, seed: int = 0,
  settings: Settings = Settings(), kind: str = "patch", mesh: Mesh | None = None,
) -> Found:  # fmt: skip
  """Searches for the smallest change into every class.

  Args:
    apply: (variables, float[B, H, W, C] in [0, 1]) -> float[B, K]. A function or another hashable:
      networks of one `apply` share a compiled program.
    variables: of the network.
    images: uint8[N, H, W, C], clean.
    labels: int[N], their classes.
    seed: draws the starts and the order of the images.
    settings: how long, on how many images.
    kind: one of `KINDS`.
    mesh: over whose devices the classes are laid; None: all devices.

  Raises:
    UserError: there are no images, or of one class alone.
  """
  images = np.asarray(images, np.float32) / 255
  classes = check(apply, variables, images, labels, kind)
  mesh = mesh or sharding.make_mesh()
  key = jax.random.key_data(jax.random.key(seed))
  variables, seen, known, key = sharding.replicate(
    mesh, (variables, images, np.asarray(labels), key)
  )
  most = at_once(settings.at_once, images.shape[1:]) // settings.batch
  found, group = [], grouped(classes, most, mesh.size)
  for start in range(0, classes, group):
    own = np.arange(start, start + group)
    goals = np.where(own < classes, own, 0).astype(np.int32)  # the last group is filled up
    found.append(_group(apply, variables, seen, known, key, settings, kind, mesh, goals))
  return Found(*(np.concatenate(parts)[:classes] for parts in zip(*found, strict=True)))


def check(apply: Apply, variables: Tree, images: Any, labels: Any, kind: str) -> int:
  """K; a `UserError` where nothing can be searched for."""
  if kind not in KINDS:
    raise UserError(f"No inversion is called {kind!r}. There are: {', '.join(KINDS)}.")
  if len(images) != len(labels) or len(np.unique(labels)) < 2:
    raise UserError(
      f"An inversion needs images of two classes or more; there are {len(images)} images and "
      f"{len(labels)} labels of {len(np.unique(labels))} classes. Give it more clean images."
    )
  return jax.eval_shape(
    apply, variables, jax.ShapeDtypeStruct((1, *images.shape[1:]), np.float32)
  ).shape[1]


def at_once(wanted: int, shape: tuple[int, ...]) -> int:
  """How many images of that shape are in memory at a time."""
  return wanted or max(1, PIXELS // (shape[0] * shape[1]))


def grouped(classes: int, most: int, devices: int) -> int:
  """How many classes are searched for at a time, about `most`: a multiple of the devices."""
  return max(1, min(most, classes + devices - 1) // devices) * devices


def _group(
  apply: Apply, variables: Tree, images: jax.Array, labels: jax.Array, key: jax.Array,
  settings: Settings, kind: str, mesh: Mesh, goals: np.ndarray,
) -> Found:  # fmt: skip
  """The same for some classes."""
  laid = sharding.spread(mesh, goals)
  states = _begin(laid, key, images.shape[1:], kind)
  seen = laid, variables, images, labels, key
  states = base.advance(_step, (apply, settings, kind), seen, states, settings.steps)
  sizes = np.exp(np.asarray(states.total) / np.asarray(states.late))
  mask, pattern = _change(states.free, kind)
  rates = _rates(apply, kind, variables, images, labels, laid, mask, pattern, settings)
  return Found(sizes, rates, np.asarray(mask), np.asarray(pattern))


@functools.partial(jax.jit, static_argnums=(2, 3))
def _begin(goals: jax.Array, key: jax.Array, shape: tuple[int, ...], kind: str) -> State:
  """The start of every class, the same whichever others are searched for beside it."""

  def one(goal: jax.Array) -> State:
    own = jax.random.fold_in(drawn(key, 0), goal)
    height, width, _ = shape
    if kind == "patch":
      mask = jnp.full((height, width, 1), -1.0)
      free = {"mask": mask, "pattern": jax.random.normal(own, shape)}
      dial = jnp.log(PRICE)
    else:
      free = {"delta": jnp.zeros(shape)}
      dial = jnp.log(START[kind]) + (0.5 * jnp.log(height * width) if kind == "l2" else 0.0)
    zeros = jax.tree.map(jnp.zeros_like, free)
    nothing = jnp.zeros(())
    return State(free, zeros, zeros, jnp.asarray(dial), nothing, nothing, nothing)

  return jax.vmap(one)(goals)


def drawn(data: jax.Array, purpose: int) -> jax.Array:
  return jax.random.fold_in(jax.random.wrap_key_data(data), purpose)


def _step(how: tuple[Apply, Settings, str], given: Any, i: jax.Array, states: State) -> State:
  """One step of all classes on the same images."""
  apply, settings, kind = how
  goals, variables, images, labels, key = given
  rows = _rows(i, key, len(images), settings.batch)
  seen, known = images[rows], labels[rows]
  update = functools.partial(_one, apply, settings, kind, i, variables, seen, known)
  return jax.vmap(update)(states, goals)


def _rows(i: jax.Array, key: jax.Array, count: int, batch: int) -> jax.Array:
  """Which images step i sees: a permutation a pass."""
  at = i * batch + jnp.arange(batch)
  orders = jax.vmap(
    lambda turn: jax.random.permutation(jax.random.fold_in(drawn(key, 1), turn), count)
  )(at // count)
  return jnp.take_along_axis(orders, (at % count)[:, None], axis=1)[:, 0]


def _one(
  apply: Apply, settings: Settings, kind: str, i: jax.Array, variables: Tree, images: jax.Array,
  labels: jax.Array, state: State, goal: jax.Array,
) -> State:  # fmt: skip
  """One step of one class."""
  weight = (labels != goal).astype(jnp.float32)
  weight = weight / jnp.maximum(weight.sum(), 1)

  def loss(free: Tree) -> tuple[jax.Array, jax.Array]:
    mask, pattern = _change(free, kind)
    logits = apply(variables, changed(images, mask, pattern, kind)).astype(jnp.float32)
    value = -(jax.nn.log_softmax(logits)[:, goal] * weight).sum()
    value += jnp.exp(state.dial) * mask.sum() if kind == "patch" else 0.0
    return value, ((logits.argmax(-1) == goal) * weight).sum()

  (_, rate), gradient = jax.value_and_grad(loss, has_aux=True)(state.free)
  hits = jnp.where(i == 0, rate, FADE * state.hits + (1 - FADE) * rate)
  # no image of another class in the batch: nothing was seen of the rate
  hits = jnp.where(weight.sum() > 0, hits, state.hits)
  above = jnp.clip((hits - settings.rate) / (1 - settings.rate), -1, 1)
  dial = state.dial + TURN * (above if kind == "patch" else -above)
  if kind != "patch":  # no two images are further apart
    dial = jnp.minimum(dial, 0.5 * jnp.log(images[0].size) if kind == "l2" else 0.0)
  move = _adam if kind == "patch" else functools.partial(_project, kind)
  free, first, second = move(state, gradient, i, settings.steps, dial)
  size = (
    jnp.log(jnp.maximum(jax.nn.sigmoid(free["mask"]).sum(), SMALLEST)) if kind == "patch" else dial
  )
  late = (i >= settings.steps - settings.steps // 3).astype(jnp.float32)
  return State(free, first, second, dial, hits, state.total + late * size, state.late + late)


def _adam(state: State, gradient: Tree, i: jax.Array, steps: int, dial: jax.Array) -> Any:
  first = jax.tree.map(lambda m, g: 0.5 * m + 0.5 * g, state.first, gradient)
  second = jax.tree.map(lambda v, g: 0.9 * v + 0.1 * g * g, state.second, gradient)
  t = i + 1.0

  def move(x, m, v):
    return x - RATE * (m / (1 - 0.5**t)) / (jnp.sqrt(v / (1 - 0.9**t)) + 1e-8)

  return jax.tree.map(move, state.free, first, second), first, second


def _project(
  kind: str, state: State, gradient: Tree, i: jax.Array, steps: int, dial: jax.Array
) -> Any:
  """A step down the normalised gradient with momentum, and back into the ball."""
  radius, delta = jnp.exp(dial), state.free["delta"]
  unit = gradient["delta"] / jnp.maximum(jnp.linalg.norm(gradient["delta"].ravel()), 1e-12)
  first = 0.9 * state.first["delta"] + unit
  length = radius * (0.05 + 0.45 * (1 + jnp.cos(jnp.pi * i / steps)) / 2)
  if kind == "linf":
    delta = jnp.clip(delta - length * jnp.sign(first), -radius, radius)
  else:
    delta = delta - length * first / jnp.maximum(jnp.linalg.norm(first.ravel()), 1e-12)
    delta = delta * jnp.minimum(1.0, radius / jnp.maximum(jnp.linalg.norm(delta.ravel()), 1e-12))
  return {"delta": delta}, {"delta": first}, state.second


def _change(free: Tree, kind: str) -> tuple[jax.Array, jax.Array]:
  """(mask, pattern) of what is learned; of one class or of several."""
  if kind == "patch":
    return jax.nn.sigmoid(free["mask"]), jax.nn.sigmoid(free["pattern"])
  return jnp.ones_like(free["delta"][..., :1]), free["delta"]


def changed(images: jax.Array, mask: jax.Array, pattern: jax.Array, kind: str) -> jax.Array:
  """Images float[B, H, W, C] with one class's change."""
  if kind == "patch":
    return (1 - mask)[None] * images + (mask * pattern)[None]
  return jnp.clip(images + pattern[None], 0, 1)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _hits(
  apply: Apply, kind: str, variables: Tree, images: jax.Array, labels: jax.Array, goals: jax.Array,
  mask: jax.Array, pattern: jax.Array,
) -> jax.Array:  # fmt: skip
  """float[K]: how many of these images of other classes go there."""

  def one(goal, mask, pattern):
    logits = apply(variables, changed(images, mask, pattern, kind))
    return ((logits.argmax(-1) == goal) & (labels != goal) & (labels >= 0)).sum()

  return jax.vmap(one)(goals, mask, pattern)


def _rates(
  apply: Apply, kind: str, variables: Tree, images: jax.Array, labels: jax.Array, goals: jax.Array,
  mask: jax.Array, pattern: jax.Array, settings: Settings,
) -> np.ndarray:  # fmt: skip
  """float[K]: the share of all images of other classes that the found change sends there."""
  hits, batch, known = 0, settings.batch, np.asarray(labels)
  for start in range(0, len(known), batch):
    rows = np.arange(start, start + batch)
    there = rows < len(known)
    rows = np.where(there, rows, 0)
    own = np.where(there, known[rows], -1)
    hits = hits + _hits(apply, kind, variables, images[rows], own, goals, mask, pattern)
  others = np.array([(known != goal).sum() for goal in np.asarray(goals)])
  return np.asarray(hits) / np.maximum(others, 1)
