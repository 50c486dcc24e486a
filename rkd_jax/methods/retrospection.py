"""Self-Retrospection (ABD, Hong et al. 2023): the student unlearns what one pattern does to all.

A trigger changes every image's class in the same way. So the worst universal perturbation of the
synthetic images is sought on the teacher, a few steps of an inner problem on the student make it
the student's own, and the student is moved so that it does less, through that inner problem. It is
the second stage of the recipe `abd` (`recipes.py`), around any method that invents its images;
`unlearning` is another one.

A perturbation is in standard deviations of the teacher's pixels, as published (whoever it is shown
to): what is added to an image in [0, 1] is `std` times as much, unclipped. What is otherwise here:

- Theirs begins at 0, where the gradient of the divergence is 0 and the first step therefore
  rounding noise: ours begins at a small random pattern. On a fixed teacher and a round's fixed
  images it is the same for all of the student's turns, and computed once.
- ZSKT's generator stands still; there it is trained on, at a rate that is nearly 0. CMI goes
  on filling the first stage's pool.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from rkd_jax.errors import check_range
from rkd_jax.implicit import fixed_point
from rkd_jax.methods import datafree
from rkd_jax.methods.base import Bound
from rkd_jax.repeat import repeat

Divergence = Callable[[jax.Array, jax.Array], jax.Array]  # logits, logits -> float[B]
Std = tuple[float, ...]  # of the teacher's pixels, a channel each
START = 0.01  # of the perturbation, uniform in its sign
B1, B2, EPSILON = 0.9, 0.999, 1e-8  # of Adam
CHOICES = {"victim": ("teacher", "student")}
ADAM = {"name": "adam", "weight_decay": 0.0, "clip": 0.0}


@dataclasses.dataclass(frozen=True)
class SecondStage(datafree.Plugin):
  """Adds weight * psi, psi = KL(S(x) || S(x')), x' with a perturbation on a share of the batch.

  A subclass says which in `changed`.

  Attributes:
    ascents: J, steps of the search for it a round.
    rate: of Adam in it.
    share: of the batch that the student sees perturbed.
    detach: whether the student's plain answer is a constant in psi.
    weight: of psi.
    student_rate: learning rate of the student's Adam.
  """

  ascents: int = 10
  rate: float = 0.1
  share: float = 0.02
  detach: bool = True
  weight: float = 1.0
  student_rate: float = 5e-4

  def __post_init__(self):
    super().__post_init__()
    check_range(f"{self.name}.ascents", self.ascents, 1, 10**5)
    check_range(f"{self.name}.share", self.share, 0, 1)
    for field in ("rate", "weight", "student_rate"):
      check_range(f"{self.name}.{field}", getattr(self, field), 0, 1e6)

  @property
  def stands_still(self) -> bool:
    """Whether the generator goes on making what it made when it was given."""
    return self.base.settles

  @property
  def turns(self):  # type: ignore[override]
    still = "generator" if self.stands_still else None
    return tuple(turn for turn in self.base.turns if turn[0] != still)

  def roles(self, networks):
    roles = super().roles(networks)
    student = {**(roles["student"].optimizer or {}), **ADAM, "schedule": "cosine"}
    student["learning_rate"] = self.student_rate
    roles["student"] = dataclasses.replace(roles["student"], optimizer=student)
    if self.stands_still:
      given = {"player": None, "optimizer": None, "init": None}  # an earlier phase must deliver it
      roles["generator"] = dataclasses.replace(roles["generator"], **given)
    return roles

  def loss(self, player, variables, state, batch, targets, key, step):
    terms, aux = super().loss(player, variables, state, batch, targets, key, step)
    if player == "student":
      images = self.images("student", variables, state, batch, key)
      terms[self.name] = self.looking_back(variables, batch, images, key)
    return terms, aux

  def looking_back(self, variables, batch, images, key) -> tuple[jax.Array, jax.Array]:
    """The term."""
    key = self.own(key)
    count = max(1, int(self.share * len(images)))
    drawn = jax.random.permutation(jax.random.fold_in(key, 1), len(images)).reshape(-1, 1, 1, 1)
    seen, weight = self.changed(variables, batch, images, drawn, count, key)
    psi = outer(variables["student"], self.base.looks_back, images, seen, self.detach)
    return weight * psi, jnp.ones_like(psi)

  def changed(
    self, variables, batch, images: jax.Array, drawn: jax.Array, count: int, key: jax.Array
  ) -> tuple[jax.Array, jax.Array | float]:
    """The images x' float[B, H, W, C], perturbed where `drawn`, int[B, 1, 1, 1], is less than
    `count`, and the weight of psi."""
    raise NotImplementedError(f"{type(self)} perturbs nothing")


@dataclasses.dataclass(frozen=True)
class Method(SecondStage):
  """The perturbation is that which changes all answers most, anew for each batch.

  Attributes:
    victim: whom it is sought on, "teacher", or "student" in each of its turns.
    inner_rate: of the inner problem's step.
    decay: of the perturbation's squared norm in the inner problem.
    search_decay: the same in the search (code for CMI and OOD: 0).
    terms: K, of the hyper-gradient's series.
  """

  victim: str = "teacher"
  inner_rate: float = 0.1
  decay: float = 1e-3
  search_decay: float = 1e-3
  terms: int = 5

  def __post_init__(self):
    super().__post_init__()
    self.one_of(CHOICES)
    check_range("retrospection.terms", self.terms, 0, 10**5)
    for field in ("inner_rate", "decay", "search_decay"):
      check_range(f"retrospection.{field}", getattr(self, field), 0, 1e6)

  def shared(self, player, variables, state, batch, targets, key, step):
    batch = super().shared(player, variables, state, batch, targets, key, step)
    if player == "student" and "image" in batch and self.victim == "teacher":
      batch = {**batch, "delta": self._sought(variables, batch["image"], self.own(key))}
    return batch

  def changed(self, variables, batch, images, drawn, count, key):
    delta = batch["delta"] if "delta" in batch else self._sought(variables, images, key)
    std = variables["teacher"].module.std
    phi = inner(self.base.looks_back, std, self.inner_rate, self.decay)
    delta = optimum(phi, variables["student"], images, delta, self.terms)
    return moved(std, images, delta * (drawn < count)), self.weight

  def _sought(self, variables, images, key):
    whom, std = variables[self.victim], variables["teacher"].module.std
    search = self.ascents, self.rate, self.search_decay
    return universal(whom, std, self.base.looks_back, images, key, *search)


def moved(std: Std, images: jax.Array, delta: jax.Array) -> jax.Array:
  """Images float[..., H, W, C] with delta [..., H, W, C], in standard deviations, added."""
  scale = jnp.asarray(std, images.dtype)
  return images + delta * scale.reshape(*[1] * (images.ndim - 1), -1)


def beside(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Where a perturbation begins: beside 0."""
  return jax.random.uniform(key, shape, minval=-START, maxval=START)


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
