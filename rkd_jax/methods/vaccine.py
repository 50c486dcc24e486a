"""The Shuffling Vaccine (Hong et al. 2023, arXiv:2306.02368): which images lean on few channels?

A backdoor is a shortcut through a few channels. A teacher whose last convolutions read their input
channels in another order forgets what needs many channels at once, and keeps what needs few: an
image whose class survives the shuffling is suspicious. Around a method that invents its images the
vaccine makes the generator avoid such images, or, where there is none, turns the student away from
what is taught on them. It is the first stage of the recipe `abd` (`recipes.py`).

What is otherwise here than in the published code: the check looks at new images after each
redrawing, and none is kept for it; a vaccine that fails every trial is kept by default, and either
way the outcome is logged ("vaccine_on", "tail_ratio") and delivered, where theirs is switched off
without a word. Redrawn permutations replace each other; there they compose: the same in the end.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import traverse_util

from rkd_jax import losses
from rkd_jax.errors import UserError, check_range
from rkd_jax.methods import datafree
from rkd_jax.methods.base import Bound

Path = tuple[str, ...]
TINY = 1e-12  # a divergence, so that it has a logarithm
CHOICES = {
  "direction": ("forward", "reverse"),
  "reduction": ("mean", "batchmean"),
  "rejected": ("keep", "off"),
}


@dataclasses.dataclass(frozen=True)
class Method(datafree.Plugin):
  """Adds -penalty * mean over suspicious x of KL(T || T~), T~ the shuffled teachers' mean.

  Attributes:
    teachers: shuffled copies of the teacher, whose logits are averaged.
    layers: the last so many convolutions are shuffled.
    penalty: c >= 0, of suspicious images.
    direction: of the divergence: "forward", KL(T || T~) (code), or "reverse" (paper).
    reduction: "mean" over the classes too (code), or "batchmean".
    trials: shufflings that are tried before one is taken; 0: the first is, unseen.
    skip: turns before the first trial, while the generator finds its feet.
    window: turns whose images a trial looks at; there is no penalty until one passes.
    tail: a shuffling passes if more than this share of log-divergences lies far below the rest.
    rejected: what becomes of the last shuffling if none passes, "keep" or "off" (code).
  """

  teachers: int = 3
  layers: int = 5
  penalty: float = 0.1
  direction: str = "forward"
  reduction: str = "mean"
  trials: int = 8
  skip: int = 11
  window: int = 39
  tail: float = 0.02
  rejected: str = "keep"
  adds: ClassVar = {"vaccine": "vaccine"}

  def __post_init__(self):
    super().__post_init__()
    self.one_of(CHOICES)
    for field in ("teachers", "layers", "window"):
      check_range(f"vaccine.{field}", getattr(self, field), 1, 10**5)
    for field in ("trials", "skip"):
      check_range(f"vaccine.{field}", getattr(self, field), 0, 10**5)
    check_range("vaccine.penalty", self.penalty, 0, 1e6)
    check_range("vaccine.tail", self.tail, 0, 1)

  @property
  def watched(self) -> str:
    """Whose turns it acts in."""
    return "generator" if datafree.generates(self.base) else "student"

  def roles(self, networks):
    roles = super().roles(networks)
    kernels(roles["teacher"].module, self.layers)
    return roles

  def init_state(self, key, variables, example):
    state = super().init_state(key, variables, example)
    state["vaccine"] = {
      "orders": self._draw(key, variables, 0),
      "on": jnp.float32(not self.trials),
      "ratio": jnp.zeros(()),
      "tried": jnp.int32(0),
      "turn": jnp.int32(-self.skip),
      "seen": jnp.zeros((self.window, example.batch["image"].shape[0])),
    }
    return state

  def _draw(self, key, variables, trial) -> dict[str, jax.Array]:
    teacher = variables["teacher"].module
    key = jax.random.fold_in(self.own(key), trial)
    return draw(key, teacher, self.layers, self.teachers)

  def examined(self, key, variables, known: dict[str, Any], distances: jax.Array) -> dict[str, Any]:
    """The vaccine's state after a turn whose images lie so far from their shuffled answers."""
    turn, seen = known["turn"], known["seen"]
    row = jnp.where(turn < 0, self.window, turn)  # out of range: not counted
    seen = seen.at[row].set(log10(distances), mode="drop")
    ratio = tail_ratio(seen)
    open_ = (known["on"] == 0) & (known["tried"] < self.trials)
    judged = open_ & (turn == self.window - 1)
    passed, last = judged & (ratio > self.tail), known["tried"] + 1 >= self.trials
    on = passed | (judged & last & (self.rejected == "keep"))
    redrawn = judged & ~passed & ~last
    fresh = self._draw(key, variables, known["tried"] + 1)
    pick = lambda new, old: jnp.where(redrawn, new, old)  # noqa: E731
    return {
      "orders": jax.tree.map(pick, fresh, known["orders"]),
      "on": jnp.where(on, 1.0, known["on"]),
      "ratio": jnp.where(judged, ratio, known["ratio"]),
      "tried": known["tried"] + judged,
      "turn": jnp.where(judged, 0, turn + 1),
      "seen": seen,
    }

  def loss(self, player, variables, state, batch, targets, key, step):
    if player != self.watched:
      return super().loss(player, variables, state, batch, targets, key, step)
    known, images = state["vaccine"], self.images(player, variables, state, batch, key)
    own, others = answers(variables["teacher"], known["orders"], images)
    distance = divergence(own, others, self.direction, self.reduction)
    mask = suspicious(own, others)
    price = self.penalty * known["on"]
    if player == "generator":
      beside = -price * (distance * mask).sum() / jnp.maximum(mask.sum(), 1)
      batch = {**batch, "beside": batch.get("beside", 0.0) + beside}
    terms, aux = super().loss(player, variables, state, batch, targets, key, step)
    if player == "generator":
      terms["vaccine"] = (-price * distance, mask)
    else:
      terms = turned_away(terms, mask, price, known["on"])
    new = self.examined(key, variables, known, jax.lax.stop_gradient(distance))
    state = {**(state if aux.state is None else aux.state), "vaccine": new}
    metrics = {"suspicious": mask, "vaccine_on": known["on"], "distance": distance}
    metrics["tail_ratio"] = (new["ratio"][None], (new["tried"] > 0).astype(jnp.float32)[None])
    return terms, dataclasses.replace(aux, state=state, metrics=aux.metrics | metrics)

  def outcome(self, variables, state):
    return outcome(self, state["vaccine"])


def outcome(method: Method, known: Mapping[str, Any]) -> str:
  """What became of the vaccine's check, in a sentence.

  Args:
    known: its state after the phase, as `examined` returns it.
  """
  on, tried, ratio = float(known["on"]), int(known["tried"]), float(known["ratio"])
  if not method.trials:
    return "The first shuffling was taken, unchecked."
  if ratio > method.tail and on:
    return f"Shuffling {tried} passed: {ratio:.1%} of its divergences lie far below the rest."
  if tried < method.trials:
    return f"The phase ended before a shuffling had passed ({tried} tried): there was no vaccine."
  last = "the last was kept" if on else "the vaccine was switched off"
  return f"None of {tried} shufflings passed ({ratio:.1%} far below the rest): {last}."


def turned_away(
  terms: dict[str, Any], mask: jax.Array, price: jax.Array, on: jax.Array
) -> dict[str, Any]:
  """The student's terms: their mean over kept images minus `price` times that over suspicious ones.

  Args:
    terms: those with a value and a weight an image are split, the others left.
    mask: float[B], 1 on suspicious images.
    on: 0 where nothing is suspected yet.
  """
  apart = {name: term for name, term in terms.items() if isinstance(term, tuple)}
  pushed = {
    f"{n}_suspicious": (-price * value, weight * mask) for n, (value, weight) in apart.items()
  }
  return datafree.without(terms, on * mask) | pushed


def kernels(network: Any, layers: int) -> tuple[Path, ...]:
  """Paths in params of the last convolutions that read more than one channel, in forward order.

  Raises:
    UserError: the network has fewer (a ViT has its patch embedding alone).
  """
  found, called = list(readers(network)), type(network.module).__module__
  if len(network.convs) < 2:
    raise UserError(
      f"The vaccine shuffles inputs of the teacher's convolutions, and this teacher ({called}) has "
      "none but its first. Distil it without: by the base alone, instead of 'abd' or 'vaccine'."
    )
  if len(found) < layers:
    raise UserError(
      f"The vaccine shuffles inputs of the teacher's last {layers} convolutions, and this teacher "
      f"({called}) has {len(found)} that read several channels. Lower vaccine.layers to that."
    )
  return tuple(found[len(found) - layers :])


def readers(network: Any) -> dict[Path, int]:
  """{path in params: how many channels it reads} of all convolutions that read more than one, in
  forward order."""
  params = jax.eval_shape(network.init, jax.random.key(0))["params"]
  shapes: dict[Path, Any] = traverse_util.flatten_dict(dict(params))
  read = {path: shapes[path].shape[-2] for path in network.convs}
  return {path: channels for path, channels in read.items() if channels > 1}


def draw(key: jax.Array, network: Any, layers: int, count: int) -> dict[str, jax.Array]:
  """{kernel: int32[count, channels]}: an independent permutation for every copy and kernel."""
  drawn, read = {}, readers(network)
  for place, path in enumerate(kernels(network, layers)):
    keys = jax.random.split(jax.random.fold_in(key, place), count)
    permuted = functools.partial(jax.random.permutation, x=read[path])
    drawn["/".join(path)] = jax.vmap(permuted)(keys)
  return drawn


def shuffled(teacher: Bound, permutations: Mapping[str, jax.Array], copy: int) -> Bound:
  """The teacher whose kernels read their inputs in the order of this copy: w <- w[:, :, order]."""
  params: dict[Path, Any] = traverse_util.flatten_dict(dict(teacher.params))
  for name, orders in permutations.items():
    path = tuple(name.split("/"))
    params[path] = jnp.take(params[path], orders[copy], axis=-2)
  return teacher.with_params(traverse_util.unflatten_dict(params))


def answers(
  teacher: Bound, permutations: Mapping[str, jax.Array], images: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """(the teacher's logits, the mean of its shuffled copies' logits), float[B, K] each."""
  copies = len(next(iter(permutations.values())))
  said = [shuffled(teacher, permutations, k)(images, train=False)[0].logits for k in range(copies)]
  return teacher(images, train=False)[0].logits, functools.reduce(jnp.add, said) / copies


def suspicious(logits: jax.Array, shuffled: jax.Array) -> jax.Array:
  """float[B], 1 where the class survives the shuffling."""
  return (logits.argmax(-1) == shuffled.argmax(-1)).astype(logits.dtype)


def divergence(logits: jax.Array, shuffled: jax.Array, direction: str, reduction: str) -> jax.Array:
  """How far the shuffled teacher's answer is from its own, float[B].

  Args:
    direction: "forward", KL(T || T~) (the code), or "reverse", KL(T~ || T) (the paper's score).
    reduction: "mean", over the K classes (the code), or "batchmean", in nats.
  """
  pair = (logits, shuffled) if direction == "forward" else (shuffled, logits)
  value = losses.kl_divergence(*pair)
  return value / logits.shape[-1] if reduction == "mean" else value


def tail_ratio(logs: jax.Array) -> jax.Array:
  """The share of log10 divergences below their mean minus three (biased) standard deviations."""
  return (logs < logs.mean() - 3 * logs.std()).astype(jnp.float32).mean()


def log10(divergences: jax.Array) -> jax.Array:
  return jnp.log10(jnp.maximum(divergences, TINY))
