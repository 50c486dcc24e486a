"""Self-Retrospection (ABD, Hong et al. 2023): the student unlearns what one pattern does to all.

A trigger changes every image's class in the same way. So the worst universal perturbation of the
synthetic images is sought on the teacher, a few steps of an inner problem on the student make it
the student's own, and the student is moved so that it does less, through that inner problem. It is
the second stage of the recipe `abd` (`recipes.py`), around any method that invents its images.

A perturbation is in standard deviations of the teacher's pixels, as published (whoever it is shown
to): what is added to an image in [0, 1] is `std` times as much, unclipped. What is otherwise here:

- Theirs begins at 0, where the gradient of the divergence is 0 and the first step therefore
  rounding noise: ours begins at a small random pattern. On a fixed teacher and a round's fixed
  images it is the same for all of the student's turns, and computed once.
- ZSKT's generator stands still; there it is trained on, at a rate that is nearly 0. CMI goes
  on filling the first stage's pool.
- `search="classes"` is ours (docs/abd.md says why). Where the generator has dug the trigger up, its
  images of the target class carry it already, and the perturbation that changes most takes it away.
  So the smallest one into each class is sought instead, on the teacher, better from round to round.
  If one works and is far smaller than most, it is what the student looks back on; `guard` also
  takes it away from all that the generator makes, which must find out what else makes the class.
  Images that still lean on it teach nothing: those of the class that leave it with one guard more.
- `radius` is ours too. The smallest perturbation is a part of the trigger, and a student that has
  unlearned the part may follow the whole. So it also looks back on a perturbation of its own, into
  the same class and not much larger, a step further in each of its turns: what it still follows.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from rkd_jax import losses
from rkd_jax.errors import UserError, check_range
from rkd_jax.implicit import fixed_point
from rkd_jax.methods import base, datafree, inversion
from rkd_jax.methods.base import Bound
from rkd_jax.repeat import repeat

Divergence = Callable[[jax.Array, jax.Array], jax.Array]  # logits, logits -> float[B]
Std = tuple[float, ...]  # of the teacher's pixels, a channel each
TINY = 1e-20  # beside a squared norm
START = 0.01  # of the perturbation, uniform in its sign
B1, B2, EPSILON = 0.9, 0.999, 1e-8  # of Adam
CHOICES = {"search": ("universal", "classes"), "victim": ("teacher", "student")}
ADAM = {"name": "adam", "weight_decay": 0.0, "clip": 0.0}
SEEKER = "perturbation"  # the player of a search by class, and its role


@dataclasses.dataclass(frozen=True)
class Method(datafree.Plugin):
  """Adds weight * psi, psi = KL(S(x) || S(x')), x' with the perturbation on a share of the batch.

  Attributes:
    search: "universal" (the perturbation that changes all answers most, anew for each batch), or
      "classes" (for each class the smallest into it, kept).
    victim: whom a universal one is sought on, "teacher", or "student" in each of its turns.
    ascents: J, steps of the search a round.
    rate: of Adam in it.
    inner_rate: of the inner problem's step.
    decay: of the perturbation's squared norm in the inner problem.
    search_decay: the same in the search for a universal one (code for CMI and OOD: 0).
    terms: K, of the hyper-gradient's series; a search by class is not differentiated through.
    price: of the l_1 norm of a class's perturbation, in standard deviations.
    success: the rate from which on a class's perturbation works, in [0, 1].
    searched: images a step of a search by class.
    outlier: a class is suspected if its perturbation's l_1 norm is below so much of the median.
    guard: how many times a suspected class's perturbation is taken away from what the generator
      makes, and added where the student looks back; 0: nothing is taken away, once is added, and
      images that lean on it teach.
    radius: l_2 norm of the student's own perturbation into a suspected class, of which half the
      perturbed images are shown: so many times that of the class's; 0: there is none.
    share: of the batch that the student sees perturbed.
    detach: whether the student's plain answer is a constant in psi.
    weight: of psi.
    student_rate: learning rate of the student's Adam.
  """

  search: str = "universal"
  victim: str = "teacher"
  ascents: int = 10
  rate: float = 0.1
  inner_rate: float = 0.1
  decay: float = 1e-3
  search_decay: float = 1e-3
  terms: int = 5
  price: float = 0.03
  success: float = 0.9
  searched: int = 16
  outlier: float = 0.5
  guard: float = 0.0
  radius: float = 0.0
  share: float = 0.02
  detach: bool = True
  weight: float = 1.0
  student_rate: float = 5e-4

  def __post_init__(self):
    super().__post_init__()
    self.one_of(CHOICES)
    for field in ("ascents", "searched"):
      check_range(f"retrospection.{field}", getattr(self, field), 1, 10**5)
    check_range("retrospection.terms", self.terms, 0, 10**5)
    for field in (
      "weight", "rate", "inner_rate", "decay", "search_decay", "price", "guard", "radius",
    ):  # fmt: skip
      check_range(f"retrospection.{field}", getattr(self, field), 0, 1e6)
    for field in ("share", "success", "outlier"):
      check_range(f"retrospection.{field}", getattr(self, field), 0, 1)
    for field in ("guard", "radius"):
      if getattr(self, field) and not self.by_class:
        raise UserError(
          f'retrospection.{field} is of what retrospection.search="classes" finds; set that, or '
          f"{field}=0."
        )

  @property
  def by_class(self) -> bool:
    return self.search == "classes"

  @property
  def stands_still(self) -> bool:
    """Whether the generator goes on making what it made when it was given."""
    return self.base.settles and not self.guard

  @property
  def turns(self):  # type: ignore[override]
    *others, student = self.base.turns
    if self.stands_still:
      others = [turn for turn in others if turn[0] != "generator"]
    seeker = [(SEEKER, self.ascents)] if self.by_class else []
    return (*others, *seeker, student)

  def roles(self, networks):
    roles = super().roles(networks)
    student = {**(roles["student"].optimizer or {}), **ADAM, "schedule": "cosine"}
    student["learning_rate"] = self.student_rate
    roles["student"] = dataclasses.replace(roles["student"], optimizer=student)
    if self.guard:
      if "generator" not in roles:
        raise UserError(
          "retrospection.guard takes a perturbation away from what a generator makes, and "
          f"{self.base.name!r} has none. Set guard=0, or base=zskt or cmi."
        )
      roles[datafree.SOURCE] = base.Role(roles["generator"].module, copy="generator")
    if self.stands_still:
      given = {"player": None, "optimizer": None, "init": None}  # an earlier phase must deliver it
      roles["generator"] = dataclasses.replace(roles["generator"], **given)
    if self.by_class:
      seeker = {**ADAM, "learning_rate": self.rate, "schedule": "constant"}
      roles[SEEKER] = base.Role(player=SEEKER, optimizer=seeker, init=self._start)
    return roles

  def _start(self, key, made, example):
    return beside(key, (example.classes, *made["teacher"].module.image_shape))

  def init_state(self, key, variables, example):
    state = super().init_state(key, variables, example)
    if self.by_class:
      state = {**state, **inversion.untallied(example.classes)}
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
    if player == "student" and self.by_class:
      suspect = self._suspect(variables, state)
      batch = {**batch, "delta": suspect.delta, "suspicious": suspect.on, "goal": suspect.label}
      if self.guard and "image" in batch:
        batch["leaning"] = self._leaning(variables, state, batch["image"])
      return batch
    if player == "student" and "image" in batch and self.victim == "teacher":
      batch = {**batch, "delta": self._universal(variables, batch["image"], self.own(key))}
    return batch

  def loss(self, player, variables, state, batch, targets, key, step):
    if player == SEEKER:
      return self._sought(variables, state, batch, key)
    variables = self.guarded(variables, state)
    terms, aux = super().loss(player, variables, state, batch, targets, key, step)
    if self.guard:
      if (leaning := batch.get("leaning")) is None:
        images = self.images(player, variables, state, batch, key)
        leaning = self._leaning(variables, state, images)
      terms = datafree.without(terms, leaning)
      aux = dataclasses.replace(aux, metrics={**aux.metrics, "leaning": leaning})
    if player == "student":
      images = self.images("student", variables, state, batch, key)
      if self.radius:
        batch = {**batch, "student_delta": self._follows(variables, state, batch, images)}
        kept = {"student_delta": batch["student_delta"]}
        aux = dataclasses.replace(aux, state=(state if aux.state is None else aux.state) | kept)
      terms["retrospection"] = self._looking_back(variables, batch, images, key)
    return terms, aux

  def invent(self, key, variables, state, count):
    return super().invent(key, self.guarded(variables, state), state, count)

  def _given(self, variables, state):
    """Networks and state whose images a search by class looks at: those made before the guard."""
    if not self.guard:
      return variables, state
    variables, own = self.base.given(variables, state["base"])
    return variables, {**state, "base": own}

  def _universal(self, variables, images, key):
    whom, std = variables[self.victim], variables["teacher"].module.std
    search = self.ascents, self.rate, self.search_decay
    return universal(whom, std, self.base.looks_back, images, key, *search)

  def _suspect(self, variables, state) -> "Suspect":
    deltas, rates = variables[SEEKER], inversion.rates_of(state)
    sizes = lengths(deltas)
    who = inversion.suspected(sizes, rates, self.success)
    small = sizes[who] < self.outlier * jnp.median(sizes)
    suspicious = (rates[who] >= self.success) & small
    found = Suspect(who, deltas[who][None], suspicious.astype(deltas.dtype))
    return jax.lax.stop_gradient(found)

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
    """A step of the search by class, on what the student is taught on."""
    given, teacher = self._given(variables, state), variables["teacher"]
    images = self.images("student", *given, batch, key)
    images = jax.random.permutation(self.own(key), images)[: self.searched]  # others in each step
    labels = teacher(images, train=False)[0].logits.argmax(-1)
    terms, weight, hit = reach(teacher, images, labels, variables[SEEKER], self.price)
    metrics = {"train_asr": (hit, weight), "suspicious": self._suspect(variables, state).on}
    state = {**state, **inversion.tallied(state, weight, hit)}
    return terms, base.Aux(state=state, metrics=metrics)

  def _follows(self, variables, state, batch, images) -> jax.Array:
    """float[1, H, W, C]: the student's own perturbation into a suspected class, a step further."""
    size = self.radius * jnp.sqrt(jnp.square(batch["delta"]).sum())
    std, student = variables["teacher"].module.std, variables["student"]
    return towards(student, std, images, batch["goal"], state["student_delta"], size)

  def _looking_back(self, variables, batch, images, key) -> tuple[jax.Array, jax.Array]:
    """The term."""
    student = variables["student"]
    divergence, std, key = self.base.looks_back, variables["teacher"].module.std, self.own(key)
    delta = batch["delta"] if "delta" in batch else self._universal(variables, images, key)
    count = max(1, int(self.share * len(images)))
    drawn = jax.random.permutation(jax.random.fold_in(key, 1), len(images))
    marked = (drawn < count).astype(images.dtype).reshape(-1, 1, 1, 1)
    if self.by_class:
      shown = (self.guard or 1.0) * delta
      if self.radius:
        own = (drawn < count // 2).reshape(marked.shape)
        shown = jnp.where(own, batch["student_delta"], shown)
      seen = jnp.clip(moved(std, images, shown * marked), 0, 1)
      price = self.weight * batch["suspicious"]
    else:
      phi = inner(divergence, std, self.inner_rate, self.decay)
      delta = optimum(phi, student, images, delta, self.terms)
      seen, price = moved(std, images, delta * marked), self.weight
    psi = outer(student, divergence, images, seen, self.detach)
    return price * psi, jnp.ones_like(psi)


def moved(std: Std, images: jax.Array, delta: jax.Array) -> jax.Array:
  """Images float[..., H, W, C] with delta [..., H, W, C], in standard deviations, added."""
  scale = jnp.asarray(std, images.dtype)
  return images + delta * scale.reshape(*[1] * (images.ndim - 1), -1)


def gap(
  network: Bound, std: Std, divergence: Divergence, images: jax.Array, delta: jax.Array, train: bool
) -> jax.Array:
  """Mean of KL(N(x) || N(x + delta)), N(x) a constant as in the code. Running statistics stay."""
  plain, seen = (network(x, train=train)[0].logits for x in (images, moved(std, images, delta)))
  return divergence(jax.lax.stop_gradient(plain), seen).mean()


def universal(
  network: Bound, std: Std, divergence: Divergence, images: jax.Array, key: jax.Array, steps: int,
  rate: float, decay: float,
) -> jax.Array:  # fmt: skip
  """float[1, H, W, C]: the perturbation after Adam's ascent of the divergence - decay |delta|^2."""
  plain = network(images, train=False)[0].logits

  def objective(delta):
    seen = network(moved(std, images, delta), train=False)[0].logits
    return decay * jnp.square(delta).sum() - divergence(plain, seen).mean()

  def move(i, carry):
    delta, first, second = carry
    gradient = jax.grad(objective)(delta)
    first = B1 * first + (1 - B1) * gradient
    second = B2 * second + (1 - B2) * gradient**2
    scale = jnp.sqrt(second / (1 - B2 ** (i + 1))) + EPSILON
    return delta - rate * first / (1 - B1 ** (i + 1)) / scale, first, second

  start = beside(key, (1, *images.shape[1:]))
  still = jnp.zeros_like(start)
  return jax.lax.stop_gradient(repeat(move, (start, still, still), steps)[0])


def beside(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Where a perturbation begins: beside 0."""
  return jax.random.uniform(key, shape, minval=-START, maxval=START)


def inner(divergence: Divergence, std: Std, rate: float, decay: float) -> Callable[..., jax.Array]:
  """Phi: a descent step of decay |delta|^2 - KL(S(x) || S(x + delta)) in delta."""

  def phi(student: Bound, images: jax.Array, delta: jax.Array) -> jax.Array:
    def objective(delta):
      far = gap(student, std, divergence, images, delta, train=True)
      return decay * jnp.square(delta).sum() - far

    return delta - rate * jax.grad(objective)(delta)

  return phi


def outer(
  student: Bound, divergence: Divergence, images: jax.Array, seen: jax.Array, detach: bool
) -> jax.Array:
  """psi float[B]: KL(S(x) || S(x')).

  Args:
    images: x, float[B, H, W, C].
    seen: x', the same with the perturbation added to some.
    detach: whether no gradient passes through S(x) (the code for ZSKT; that for CMI lets it).
  """
  plain = student(images, train=True)[0].logits
  plain = jax.lax.stop_gradient(plain) if detach else plain
  return divergence(plain, student(seen, train=True)[0].logits)


def optimum(
  phi: Callable[..., jax.Array], student: Bound, images: jax.Array, delta: jax.Array, terms: int
) -> jax.Array:
  """delta taken for Phi's fixed point: its gradient in the student is implicit, of `terms` terms.

  As published Phi itself makes no step forward.
  """
  return fixed_point(phi, 0, student, images, delta, terms)


# By class.


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
