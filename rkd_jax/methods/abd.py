"""ABD: distillation without data whose generator is vaccinated and whose student looks back.

Anti-backdoor data-free distillation (Hong et al. 2023, arXiv:2306.02368), around any method that
invents its images. In its first stage the *Shuffling Vaccine* (`vaccine.py`) makes the generator
avoid images whose class survives a shuffling of the teacher's channels, or, without a generator,
turns the student away from what is taught on them. In its second, *Self-Retrospection*
(`retrospection.py`) makes the student unlearn what one perturbation does to all images. The recipe
`abd` (`recipes.py`) plays both. Running statistics of the student come from the base's own pass.

Where paper and published code differ there is an option. What is otherwise here than in that code:

- The check of the vaccine looks at new images after each redrawing, and none is kept for it; a
  vaccine that fails every trial is kept by default, and either way the outcome is logged
  ("vaccine_on", "tail_ratio") and delivered. There it is switched off without a word.
- Redrawn permutations replace each other; there they compose, which comes to the same.
- The perturbation begins beside 0 (see `retrospection.py`). On a fixed teacher and a round's fixed
  images it is the same for all of the student's turns, and computed once.
- No vaccine acts in the second stage (so it is there for ZSKT and OOD, and in the published CMI).
  ZSKT's generator stands still in it: there the rate of its last rounds is next to 0.
- `search="classes"` is ours (docs/abd.md says why): the second stage seeks a perturbation into each
  class instead, and keeps it from round to round. If one works and is far smaller than most, it is
  what the student looks back on; `guard` also takes it away from all that the generator makes, so
  that the generator must find out what else the class is made of.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from rkd_jax.errors import UserError, check_range
from rkd_jax.methods import base, datafree, inversion, retrospection, vaccine

CHOICES = {
  "stage": ("vaccine", "retrospection"),
  "direction": ("forward", "reverse"),
  "reduction": ("mean", "batchmean"),
  "rejected": ("keep", "off"),
  "victim": ("teacher", "student"),
  "search": ("universal", "classes"),
}
LATER = frozenset(  # fields that only the second stage reads
  ("search", "victim", "ascents", "rate", "decay", "terms", "price", "success", "searched",
   "outlier", "guard", "share", "detach", "weight", "student_rate")
)  # fmt: skip
SEEKER = "perturbation"  # the player of a search by class, and its role
SOURCE = "source"  # the generator of the first stage


@dataclasses.dataclass(frozen=True)
class Method(base.Plugin):
  """Vaccine: -penalty * mean over suspicious x of KL(T || T~). Retrospection: + weight * psi.

  Attributes:
    stage: "vaccine" or "retrospection".
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
    search: "universal" (the perturbation that changes all answers most, anew for each batch), or
      "classes" (for each class the smallest into it, on the teacher; better from round to round).
    victim: whom a universal one is sought on, "teacher", or "student" in each of its turns.
    ascents: J, steps of the search a round.
    rate: of Adam in it, and of the inner problem's step.
    decay: of a universal perturbation's squared norm.
    terms: K, of the hyper-gradient's series; a search by class is not differentiated through.
    price: of the l_1 norm of a class's perturbation, in standard deviations.
    success: the rate from which on a class's perturbation works, in [0, 1].
    searched: images a step of a search by class.
    outlier: a class is suspected if its perturbation's l_1 norm is below so much of the median.
    guard: how many times a suspected class's perturbation is taken away from what the generator
      makes, and added where the student looks back; 0: nothing is taken away, once is added.
    share: of the batch that the student sees perturbed.
    detach: whether the student's plain answer is a constant in psi.
    weight: of psi.
    student_rate: learning rate of the student's Adam in the second stage.
  """

  stage: str = "vaccine"
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
  search: str = "universal"
  victim: str = "teacher"
  ascents: int = 10
  rate: float = 0.1
  decay: float = 1e-3
  terms: int = 5
  price: float = 0.03
  success: float = 0.9
  searched: int = 16
  outlier: float = 0.5
  guard: float = 0.0
  share: float = 0.02
  detach: bool = True
  weight: float = 1.0
  student_rate: float = 5e-4
  base: datafree.DataFree = dataclasses.field(kw_only=True)  # type: ignore[assignment]
  nested: ClassVar = {"base": "zskt"}

  def __post_init__(self):
    if not isinstance(self.base, datafree.DataFree):
      raise UserError(
        f"abd guards methods that invent their images, as zskt, cmi or ood; {self.base.name!r} "
        "learns from data. Set abd.base."
      )
    for field, known in CHOICES.items():
      if getattr(self, field) not in known:
        raise UserError(f"abd.{field} is {getattr(self, field)!r}; choose {' or '.join(known)}.")
    for field in ("teachers", "layers", "window", "ascents", "searched"):
      check_range(f"abd.{field}", getattr(self, field), 1, 10**5)
    for field in ("trials", "skip", "terms"):
      check_range(f"abd.{field}", getattr(self, field), 0, 10**5)
    for field in ("penalty", "weight", "rate", "decay", "price", "guard"):
      check_range(f"abd.{field}", getattr(self, field), 0, 1e6)
    for field in ("tail", "share", "success", "outlier"):
      check_range(f"abd.{field}", getattr(self, field), 0, 1)
    if self.guard and self.search != "classes":
      raise UserError('abd.guard is what abd.search="classes" finds; set that, or guard=0.')
    if self.guard and not self.base.settles:
      raise UserError(
        "abd.guard takes a perturbation away from what a generator makes that is handed on, as "
        f"zskt's is; {self.base.name!r} has none. Set abd.guard=0, or abd.base=zskt."
      )

  @property
  def watched(self) -> str:
    """Whose turns the vaccine acts in."""
    return "generator" if datafree.generates(self.base) else "student"

  @property
  def vaccinates(self) -> bool:
    return self.stage == "vaccine"

  @property
  def by_class(self) -> bool:
    """Whether perturbations are sought by class in this stage."""
    return not self.vaccinates and self.search == "classes"

  @property
  def turns(self):  # type: ignore[override]
    *others, student = self.base.turns
    if self.stands_still:
      others = [turn for turn in others if turn[0] != "generator"]
    seeker = [(SEEKER, self.ascents)] if self.by_class else []
    return (*others, *seeker, student)

  @property
  def stands_still(self) -> bool:
    """Whether the generator makes what it made at the end of the first stage."""
    return not self.vaccinates and self.base.settles and not self.guard

  @property
  def guards(self) -> bool:
    return not self.vaccinates and self.guard > 0

  @property
  def delivers(self):  # type: ignore[override]
    more = {"vaccine": "vaccine"} if self.vaccinates else {}
    more |= {SEEKER: SEEKER, "hits": "hits", "count": "count"} if self.by_class else {}
    return {**self.base.delivers, **more}

  def roles(self, networks):
    roles = super().roles(networks)
    vaccine.kernels(roles["teacher"].module, self.layers)
    if not self.vaccinates:
      student = roles["student"]
      adam = {**(student.optimizer or {}), "name": "adam", "learning_rate": self.student_rate}
      adam |= {"weight_decay": 0.0, "schedule": "cosine", "clip": 0.0}
      roles["student"] = dataclasses.replace(student, optimizer=adam)
    if self.guards:
      # What it made before the guard, which is what perturbations are sought on.
      roles[SOURCE] = base.Role(roles["generator"].module, copy="generator")
    if self.stands_still:
      roles["generator"] = dataclasses.replace(roles["generator"], player=None, optimizer=None)
    if self.by_class:
      adam = {"name": "adam", "learning_rate": self.rate, "schedule": "constant"}
      adam |= {"weight_decay": 0.0, "clip": 0.0}
      roles[SEEKER] = base.Role(player=SEEKER, optimizer=adam, init=self._start)
    return roles

  def _start(self, key, made, example):
    shape = (example.classes, *made["teacher"].module.image_shape)
    return retrospection.beside(key, shape)

  # The vaccine, and whether it works.

  def init_state(self, key, variables, example):
    state = super().init_state(key, variables, example)
    if self.vaccinates:
      state["vaccine"] = {
        "orders": self._draw(key, variables, 0),
        "on": jnp.float32(not self.trials),
        "ratio": jnp.zeros(()),
        "tried": jnp.int32(0),
        "turn": jnp.int32(-self.skip),
        "seen": jnp.zeros((self.window, example.batch["image"].shape[0])),
      }
    return {**state, **inversion.untallied(example.classes)} if self.by_class else state

  def _draw(self, key, variables, trial) -> dict[str, jax.Array]:
    teacher = variables["teacher"].module
    key = jax.random.fold_in(self.own(key), trial)
    return vaccine.draw(key, teacher, self.layers, self.teachers)

  def examined(self, key, variables, known: dict[str, Any], distances: jax.Array) -> dict[str, Any]:
    """The vaccine's state after a turn whose images lie so far from their shuffled answers."""
    turn, seen = known["turn"], known["seen"]
    row = jnp.where(turn < 0, self.window, turn)  # out of range: not counted
    seen = seen.at[row].set(vaccine.log10(distances), mode="drop")
    ratio = vaccine.tail_ratio(seen)
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
    if player == SEEKER:
      return self._sought(variables, state, batch, key)
    variables = self.guarded(variables, state)
    terms, aux = super().loss(player, variables, state, batch, targets, key, step)
    if not self.vaccinates:
      return self._looking_back(player, variables, state, batch, key, terms), aux
    if player != self.watched:
      return terms, aux
    known, images = state["vaccine"], self._images(player, variables, state, batch, key)
    own, others = vaccine.answers(variables["teacher"], known["orders"], images)
    distance = vaccine.divergence(own, others, self.direction, self.reduction)
    mask = vaccine.suspicious(own, others)
    price = self.penalty * known["on"]
    if player == "generator":
      terms["vaccine"] = (-price * distance, mask)
    else:
      terms = turned_away(terms, mask, price, known["on"])
    new = self.examined(key, variables, known, jax.lax.stop_gradient(distance))
    state = {**(state if aux.state is None else aux.state), "vaccine": new}
    metrics = {"suspicious": mask, "vaccine_on": known["on"], "distance": distance}
    metrics["tail_ratio"] = (new["ratio"][None], (new["tried"] > 0).astype(jnp.float32)[None])
    return terms, dataclasses.replace(aux, state=state, metrics=aux.metrics | metrics)

  def _images(self, player, variables, state, batch, key):
    return self.base.images(player, variables, state["base"], batch, key)

  # Self-retrospection.

  def shared(self, player, variables, state, batch, targets, key, step):
    if player == SEEKER:
      source = variables.get(SOURCE, variables.get("generator"))
      variables = {**variables, "generator": source}
    else:
      variables = self.guarded(variables, state)
    batch = super().shared(player, variables, state, batch, targets, key, step)
    if self.by_class and player == "student":
      delta, suspicious = self._suspect(variables, state)
      return {**batch, "delta": delta, "suspicious": suspicious}
    same = "image" in batch and self.victim == "teacher"
    if not self.vaccinates and player == "student" and same:
      batch = {**batch, "delta": self._universal(variables, batch["image"], self.own(key))}
    return batch

  def _universal(self, variables, images, key):
    with_whom = variables[self.victim], self.base.divergence
    search = self.ascents, self.rate, self.decay
    return retrospection.universal(*with_whom, images, key, *search)

  def _suspect(self, variables, state) -> tuple[jax.Array, jax.Array]:
    """(the suspected class's perturbation [1, H, W, C], 1 if a class is suspected)."""
    deltas, rates = variables[SEEKER], inversion.rates_of(state)
    sizes = retrospection.lengths(deltas)
    who = inversion.suspected(sizes, rates, self.success)
    small = sizes[who] < self.outlier * jnp.median(sizes)
    suspicious = (rates[who] >= self.success) & small
    return deltas[who][None], suspicious.astype(deltas.dtype)

  def guarded(self, variables, state):
    """The networks, with a generator whose images have lost what a class is suspected for."""
    if not self.guards:
      return variables
    delta, suspicious = jax.lax.stop_gradient(self._suspect(variables, state))
    less = retrospection.Guarded(
      variables["generator"], variables["teacher"], self.guard * suspicious * delta
    )
    return {**variables, "generator": less}

  def _sought(self, variables, state, batch, key):
    """A step of the search by class, on what the student is taught on."""
    images, teacher = self._images("student", variables, state, batch, key), variables["teacher"]
    images = images[: self.searched]
    labels = teacher(images, train=False)[0].logits.argmax(-1)
    with_what = images, labels, variables[SEEKER], self.price
    terms, weight, hit = retrospection.reach(teacher, *with_what)
    metrics = {"train_asr": (hit, weight), "suspicious": self._suspect(variables, state)[1]}
    state = {**state, **inversion.tallied(state, weight, hit)}
    return terms, base.Aux(state=state, metrics=metrics)

  def _looking_back(self, player, variables, state, batch, key, terms) -> dict[str, Any]:
    if player != "student":
      return terms
    images, student = self._images(player, variables, state, batch, key), variables["student"]
    divergence, key = self.base.divergence, self.own(key)
    delta = batch["delta"] if "delta" in batch else self._universal(variables, images, key)
    count = max(1, int(self.share * len(images)))
    drawn = jax.random.permutation(jax.random.fold_in(key, 1), len(images))
    marked = (drawn < count).astype(images.dtype).reshape(-1, 1, 1, 1)
    if self.by_class:
      delta = (self.guard or 1.0) * delta
    else:
      phi = retrospection.inner(divergence, self.rate, self.decay)
      delta = retrospection.optimum(phi, student, images, delta, self.terms)
    seen = retrospection.moved(student, images, delta * marked)
    seen = retrospection.box(seen) if self.by_class else seen
    psi = retrospection.outer(student, divergence, images, seen, self.detach)
    price = self.weight * batch["suspicious"] if self.by_class else self.weight
    return {**terms, "retrospection": (price * psi, jnp.ones_like(psi))}


def turned_away(
  terms: dict[str, Any], mask: jax.Array, price: jax.Array, on: jax.Array
) -> dict[str, Any]:
  """The student's terms: their mean over kept images minus `price` times that over suspicious ones.

  Args:
    terms: those with a value and a weight an image are split, the others left.
    mask: float[B], 1 on suspicious images.
    on: 0 where nothing is suspected yet.
  """
  split: dict[str, Any] = {}
  for name, term in terms.items():
    if isinstance(term, tuple):
      value, weight = term
      split[name] = (value, weight * (1 - on * mask))
      split[f"{name}_suspicious"] = (-price * value, weight * mask)
    else:
      split[name] = term
  return split
