"""The student unlearns what leads into one class: a second stage of ABD of our own.

Self-retrospection (`retrospection`) takes the perturbation that changes most answers for the
trigger. Where the generator has dug the trigger up, its images of the target class carry it
already, and what changes most takes it away (docs/abd.md). So the smallest perturbation *into* each
class is sought here, on the teacher, kept and better from round to round. If one works and is far
smaller than most, its class is suspected, and:

- The student looks back on it: what it says must not change.
- `guard` takes it away from all that the generator makes, which must find out what else makes the
  class. Images that still lean on it teach nothing: those of the class that leave it with one guard
  more.
- `radius`: the smallest perturbation is a part of the trigger, and a student that has unlearned the
  part may follow the whole. So it also looks back on a perturbation of its own, into the same class
  and not much larger, a step further in each of its turns: what it still follows.

A perturbation is in standard deviations of the teacher's pixels, whoever it is shown to; images
stay in [0, 1]. It is a stage of the recipe `abd`: `config.method.abd.retrospection = "unlearning"`.

Sources: the perturbations are universal ones (Moosavi-Dezfooli et al. 2017, arXiv:1610.08401),
sought by class as by Neural Cleanse (Wang et al. 2019), and unlearned as by I-BAU (Zeng et al.
2022, arXiv:2110.03735), whose defender has clean data.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rkd_jax import losses
from rkd_jax.errors import UserError, check_range
from rkd_jax.methods import base, datafree, inversion, retrospection
from rkd_jax.methods.base import Bound
from rkd_jax.methods.retrospection import ADAM, Std, beside, moved

TINY = 1e-20  # beside a squared norm
SEEKER = "perturbation"  # the player of the search, and its role


@dataclasses.dataclass(frozen=True)
class Method(retrospection.SecondStage):
  """The perturbation is the smallest one into the class of which it is smallest by far.

  Attributes:
    ascents: steps of the search a round.
    price: of the l_1 norm of a class's perturbation, in standard deviations.
    success: the rate from which on a class's perturbation works, in [0, 1]. Under a price none
      works on all images: those into other classes on eight or nine in ten.
    searched: images a step of the search.
    outlier: a class is suspected if its perturbation's size (`sizes`) is below so much of the
      median.
    guard: how many times a suspected class's perturbation is taken away from what the generator
      makes; 0: nothing is, and images that lean on it teach.
    shown: how many times it is added where the student looks back.
    radius: l_2 norm of the student's own perturbation into a suspected class, of which half the
      perturbed images are shown: so many times that of the class's; 0: there is none.
  """

  ascents: int = 5
  price: float = 0.03
  success: float = 0.8
  searched: int = 16
  outlier: float = 0.65
  guard: float = 2.0
  shown: float = 2.0
  radius: float = 1.25
  share: float = 0.3
  weight: float = 3.3
  student_rate: float = 1e-3

  def __post_init__(self):
    super().__post_init__()
    check_range("unlearning.searched", self.searched, 1, 10**5)
    for field in ("price", "guard", "shown", "radius"):
      check_range(f"unlearning.{field}", getattr(self, field), 0, 1e6)
    for field in ("success", "outlier"):
      check_range(f"unlearning.{field}", getattr(self, field), 0, 1)

  @property
  def stands_still(self) -> bool:
    return super().stands_still and not self.guard

  @property
  def turns(self):  # type: ignore[override]
    *others, student = super().turns
    return (*others, (SEEKER, self.ascents), student)

  def roles(self, networks):
    roles = super().roles(networks)
    if self.guard:
      if "generator" not in roles:
        raise UserError(
          "unlearning.guard takes a perturbation away from what a generator makes, and "
          f"{self.base.name!r} has none. Set guard=0, or base=zskt or cmi."
        )
      roles[datafree.SOURCE] = base.Role(roles["generator"].module, copy="generator")
    seeker = {**ADAM, "learning_rate": self.rate, "schedule": "constant"}
    roles[SEEKER] = base.Role(player=SEEKER, optimizer=seeker, init=self._start)
    return roles

  def _start(self, key, made, example):
    return beside(key, (example.classes, *made["teacher"].module.image_shape))

  def init_state(self, key, variables, example):
    state = super().init_state(key, variables, example) | inversion.untallied(example.classes)
    state["suspected"] = jnp.zeros(example.classes + 1)  # steps, by class; the last: none was
    if self.radius:
      shape = variables["teacher"].module.image_shape
      state["student_delta"] = beside(jax.random.fold_in(self.own(key), 1), (1, *shape))
    return state

  def shared(self, player, variables, state, batch, targets, key, step):
    if player == SEEKER:
      variables, state = self._given(variables, state)
      return super().shared(player, variables, state, batch, targets, key, step)
    variables = self.guarded(variables, state)
    batch = super().shared(player, variables, state, batch, targets, key, step)
    if player == "student":
      suspect = self._suspect(variables, state)
      batch = {**batch, "delta": suspect.delta, "suspicious": suspect.on, "goal": suspect.label}
      if self.guard and "image" in batch:
        batch["leaning"] = self._leaning(variables, state, batch["image"])
    return batch

  def loss(self, player, variables, state, batch, targets, key, step):
    if player == SEEKER:
      return self._sought(variables, state, batch, key)
    variables, further = self.guarded(variables, state), {}
    if player == "student" and self.radius:
      further["student_delta"] = self._follows(variables, state, batch, key)
      batch = {**batch, **further}
    terms, aux = super().loss(player, variables, state, batch, targets, key, step)
    if further:
      aux = dataclasses.replace(aux, state=(state if aux.state is None else aux.state) | further)
    if self.guard:
      if (leaning := batch.get("leaning")) is None:
        images = self.images(player, variables, state, batch, key)
        leaning = self._leaning(variables, state, images)
      looking = {name: term for name, term in terms.items() if name == self.name}
      terms = datafree.without(terms, leaning) | looking
      aux = dataclasses.replace(aux, metrics={**aux.metrics, "leaning": leaning})
    return terms, aux

  def changed(self, variables, batch, images, drawn, count, key):
    shown = self.shown * batch["delta"]
    if self.radius:
      if count < 2:
        raise UserError(
          f"unlearning.share is {self.share:g}, {count} of {len(images)} images, and half of them "
          "are for the student's own perturbation. Raise it or the batch, or set radius=0."
        )
      shown = jnp.where(drawn < count // 2, batch["student_delta"], shown)
    seen = moved(variables["teacher"].module.std, images, shown * (drawn < count))
    return jnp.clip(seen, 0, 1), self.weight * batch["suspicious"]

  def invent(self, key, variables, state, count):
    return super().invent(key, self.guarded(variables, state), state, count)

  def outcome(self, variables, state):
    suspect, found = self._suspect(variables, state), sizes(variables[SEEKER])
    who, rate = int(suspect.label), float(inversion.rates_of(state)[suspect.label])
    size = float(found[who] / jnp.median(found))
    none = f"No class is suspected; the nearest is class {who}"
    *steps, no = np.asarray(state["suspected"])
    most, often = int(np.argmax(steps)), max(steps) / max(sum(steps) + no, 1)
    before = (
      f"Class {most} was in {often:.0%} of the steps" if often else "No class was in any step"
    )
    return (
      f"{f'Class {who} is suspected' if suspect.on else none}: the perturbation into it works on "
      f"{rate:.1%} (from {self.success:.0%} on) and has {size:.2f} of the median size (below "
      f"{self.outlier:g}), when the phase ends. {before} of the search."
    )

  def _given(self, variables, state):
    """Networks and state whose images the search looks at: those made before the guard."""
    if not self.guard:
      return variables, state
    variables, own = self.base.given(variables, state["base"])
    return variables, {**state, "base": own}

  def _suspect(self, variables, state) -> "Suspect":
    deltas, rates = variables[SEEKER], inversion.rates_of(state)
    found = sizes(deltas)
    who = inversion.suspected(found, rates, self.success)
    small = found[who] < self.outlier * jnp.median(found)
    suspicious = (rates[who] >= self.success) & small
    suspect = Suspect(who, deltas[who][None], suspicious.astype(deltas.dtype))
    return jax.lax.stop_gradient(suspect)

  def _leaning(self, variables, state, images) -> jax.Array:
    """float[B]: 1 where an image is of the suspected class, and not so without its perturbation."""
    suspect, teacher = self._suspect(variables, state), variables["teacher"]
    without = jnp.clip(moved(teacher.module.std, images, -self.guard * suspect.delta), 0, 1)
    was, now = (teacher(x, train=False)[0].logits.argmax(-1) for x in (images, without))
    return suspect.on * (was == suspect.label) * (now != suspect.label)

  def guarded(self, variables, state):
    """The networks, with a generator whose images have lost what a class is suspected for."""
    if not self.guard:
      return variables
    suspect = self._suspect(variables, state)
    taken = self.guard * suspect.on * suspect.delta
    less = Guarded(variables["generator"], variables["teacher"].module.std, taken)
    return {**variables, "generator": less}

  def _sought(self, variables, state, batch, key):
    """A step of the search, on what the student is taught on."""
    given, teacher = self._given(variables, state), variables["teacher"]
    images = self.images("student", *given, batch, key)
    images = jax.random.permutation(self.own(key), images)[: self.searched]  # others in each step
    labels = teacher(images, train=False)[0].logits.argmax(-1)
    terms, weight, hit = reach(teacher, images, labels, variables[SEEKER], self.price)
    suspect = self._suspect(variables, state)
    metrics = {"train_asr": (hit, weight), "suspicious": suspect.on}
    which = jnp.where(suspect.on > 0, suspect.label, teacher.module.classes)
    counted = {"suspected": state["suspected"].at[which].add(1)}
    state = {**state, **inversion.tallied(state, weight, hit), **counted}
    return terms, base.Aux(state=state, metrics=metrics)

  def _follows(self, variables, state, batch, key) -> jax.Array:
    """float[1, H, W, C]: the student's own perturbation into a suspected class, a step further."""
    images = self.images("student", variables, state, batch, key)
    size = self.radius * jnp.sqrt(jnp.square(batch["delta"]).sum())
    std, student = variables["teacher"].module.std, variables["student"]
    return towards(student, std, images, batch["goal"], state["student_delta"], size)


class Suspect(NamedTuple):
  """The class that is suspected, or would be first.

  Attributes:
    label: int[].
    delta: its perturbation, float[1, H, W, C], in standard deviations.
    on: float[], 1 if it is suspected.
  """

  label: jax.Array
  delta: jax.Array
  on: jax.Array


def reach(
  network: Bound, images: jax.Array, labels: jax.Array, deltas: jax.Array, price: float
) -> tuple[dict[str, Any], jax.Array, jax.Array]:
  """What a perturbation into each class is to lower: CE(N(x + delta_k), k) + price |delta_k|_1.

  The images stay in [0, 1].

  Args:
    labels: int[B], the network's classes of the images float[B, H, W, C].
    deltas: float[K, H, W, C].

  Returns:
    (the terms, weight and hit float[K B] as of `inversion.flips`).
  """
  seen = jnp.clip(moved(network.module.std, images[None], deltas[:, None]), 0, 1)
  value, weight, hit = inversion.flips(network, seen, labels)
  return {"flip": (value, weight), "size": price * lengths(deltas).mean()}, weight, hit


def towards(
  network: Bound, std: Std, images: jax.Array, label: jax.Array, delta: jax.Array, radius: jax.Array
) -> jax.Array:
  """A step of a universal perturbation into a class, as long as the radius, back into its ball.

  Projected ascent as Madry et al. 2018's (arXiv:1706.06083), over a batch instead of an image, and
  kept from step to step as in Shafahi et al. 2019 (arXiv:1904.12843).

  Args:
    images: float[B, H, W, C] in [0, 1], where they stay.
    label: int[], the class.
    delta: float[1, H, W, C], in standard deviations.
    radius: float[], of the l_2 ball around 0.
  """

  def objective(delta):
    seen = jnp.clip(moved(std, images, delta), 0, 1)
    logits = network(seen, train=False)[0].logits
    return losses.cross_entropy(logits, jnp.broadcast_to(label, len(images))).mean()

  norm = lambda x: jnp.sqrt(jnp.square(x).sum() + TINY)  # noqa: E731
  gradient = jax.grad(objective)(delta)
  further = delta - radius * gradient / norm(gradient)
  return jax.lax.stop_gradient(further * jnp.minimum(1.0, radius / norm(further)))


def lengths(deltas: jax.Array) -> jax.Array:
  """float[K]: l_1 norms of float[K, H, W, C]."""
  return jnp.abs(deltas).sum((1, 2, 3))


def sizes(deltas: jax.Array) -> jax.Array:
  """float[K] of float[K, H, W, C]: the geometric mean of l_1 and l_2 norm.

  What leads into the target class is small in l_1 where the trigger is a patch, and in l_2 where it
  is spread over the image (docs/abd.md).
  """
  return jnp.sqrt(lengths(deltas) * jnp.sqrt(jnp.square(deltas).sum((1, 2, 3))))


@struct.dataclass
class Guarded:
  """A generator from whose images a perturbation is taken away.

  Attributes:
    generator: noise -> images in [0, 1].
    std: in which the perturbation is.
    delta: float[1, H, W, C].
  """

  generator: Bound
  std: Std = struct.field(pytree_node=False)
  delta: jax.Array

  def __call__(self, noise: jax.Array) -> jax.Array:
    return jnp.clip(moved(self.std, self.generator(noise), -self.delta), 0, 1)
