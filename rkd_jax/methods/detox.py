"""Feature detoxification: what is added to a teacher's features before they are taught (RobustKD).

The teacher stays as it is; learned tensors p (and masks m) change its features at some stages, and
what was changed flows on. They are optimised on clean labelled images so that the teacher still
says the label while its features vary less: a backdoored network's features vary more (RobustKD,
arXiv 2406.03409). The optimisation was never published. Its sources disagree about the sign and
the place of the change; each reading is an option here, the paper's the default.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from rkd_jax import losses
from rkd_jax.errors import UserError, check_range, nearest
from rkd_jax.methods import base, features
from rkd_jax.models.network import Edit

CHOICES = {
  "combine": ("add", "convex"),
  "mask": ("fixed", "learned"),
  "grain": ("element", "channel"),
  "variance": ("sample", "channel", "batch"),
  "start": ("mean", "zeros", "random"),
}

CLOSED = -2.0  # where a learned mask's w begins: m is 2 % of the cap, so strength 0 changes little


@dataclasses.dataclass(frozen=True)
class Method(base.Method):
  """min over p (and m): guard * CE(T(x; F -> F'), y) + weight * mean over taps of Var F' / Var F.

  F' = F + m p ("add", the paper as summarised) or (1 - m) F + m p ("convex", its WRN code); Var F
  is the untouched teacher's, so `weight` has no scale. Delivers the tensors as "mask".

  Attributes:
    combine: "add" or "convex".
    mask: m is the number `cap` ("fixed") or cap * (tanh(w) + 1) / 2 with w learned ("learned").
    grain: a learned m is one number per "element" [h, w, c] or per "channel" [c].
    cap: largest m, in [0, 1]; 0 leaves the teacher as it is.
    start: p begins as the "mean" feature of the data, "zeros", or "random" of the mean's norm (a
      control).
    learn_pattern: whether p is learned; if not it stays where it starts.
    variance: within a "sample" (over h, w, c), over "channel"s at each place, or over the "batch"
      at each element. With "add" the batch's does not depend on p: a control.
    weight: lambda >= 0.
    guard: weight of the cross-entropy that keeps the teacher's answers, >= 0.
    taps: stages whose features are changed; (): all.
    learning_rate: of Adam.
    steps: of the optimisation.
    inverted: also ask for the label on images that carry the suspected trigger, as found by
      `inversion`.
  """

  combine: str = "add"
  mask: str = "fixed"
  grain: str = "element"
  cap: float = 0.2
  start: str = "mean"
  learn_pattern: bool = True
  variance: str = "sample"
  weight: float = 0.1
  guard: float = 1.0
  taps: tuple[str, ...] = ()
  learning_rate: float = 0.01
  steps: int = 100
  inverted: bool = False
  turns: ClassVar = (("mask", 1),)
  delivers: ClassVar = {"mask": "mask"}
  part: ClassVar = "labelled"

  def __post_init__(self):
    object.__setattr__(self, "taps", base.tapped(self.taps))
    for field, known in CHOICES.items():
      if getattr(self, field) not in known:
        raise UserError(f"detox.{field} is {getattr(self, field)!r}; choose {' or '.join(known)}.")
    check_range("detox.cap", self.cap, 0, 1)
    for field in ("weight", "guard"):
      check_range(f"detox.{field}", getattr(self, field), 0, 1e6)
    check_range("detox.steps", self.steps, 1, 10**9)

  def trains(self):
    return {"steps": self.steps}

  def roles(self, networks):
    teacher = base.network(networks, "teacher")
    for tap in self.taps:
      if tap not in teacher.stages:
        raise UserError(f"detox.taps names {tap!r}. {nearest(tap, teacher.stages)}")
    adam = {"name": "adam", "learning_rate": self.learning_rate, "weight_decay": 0.0}
    mask = base.Role(
      player="mask", optimizer={**adam, "schedule": "constant"}, from_state=self._first
    )
    suspect = {"suspect": base.Role()} if self.inverted else {}
    return {"teacher": base.Role(teacher), **suspect, "mask": mask}

  # What the untouched teacher's features are.

  def init_state(self, key, variables, example):
    shapes = variables["teacher"].module.shapes().features
    state = {}
    for stage in self.taps or tuple(shapes):
      shape = shapes[stage].shape[1:]
      noise = jax.random.normal(jax.random.fold_in(key, len(state)), shape)
      state[stage] = {"sum": jnp.zeros(shape), "square": jnp.zeros(shape), "noise": noise}
      state[stage] |= {"within": jnp.zeros(()), "count": jnp.zeros(())}
    return state

  def survey(self, key, variables, state, batch):
    seen: dict[str, jax.Array] = {}
    variables["teacher"](batch["image"], train=False, edit=self.edit({}, seen))
    mask, new = batch["mask"], {}
    weight, kind = mask[:, None, None, None], "channel" if self.variance == "channel" else "sample"
    for stage, old in state.items():
      feature = seen[stage].astype(jnp.float32)
      more = {
        "sum": (weight * feature).sum(0),
        "square": (weight * feature**2).sum(0),
        "within": (mask * spread(kind, feature)).sum(),
        "count": mask.sum(),
      }
      new[stage] = old | {name: old[name] + more[name] for name in more}
    return new

  def check(self, state):
    known = {stage: jnp.isfinite(seen["sum"]).all() for stage, seen in state.items()}
    features.refuse(stage for stage, ok in known.items() if not ok)

  def untouched(self, known: base.Tree) -> jax.Array:
    """Var F of one tap, from what the survey saw."""
    count = jnp.maximum(known["count"], 1)
    if self.variance != "batch":
      return known["within"] / count
    return (known["square"] / count - (known["sum"] / count) ** 2).mean()

  def _first(self, state: base.Tree) -> base.Tree:
    """{stage: {"pattern": p [h, w, c], "gate": w of a learned mask}} as the optimisation begins."""
    made = {}
    for stage, known in state.items():
      mean = known["sum"] / jnp.maximum(known["count"], 1)
      norm = jnp.linalg.norm(mean.ravel()) / jnp.linalg.norm(known["noise"].ravel())
      starts = {"mean": mean, "zeros": jnp.zeros_like(mean), "random": norm * known["noise"]}
      made[stage] = {"pattern": starts[self.start]}
      if self.mask == "learned":
        shape = mean.shape if self.grain == "element" else mean.shape[-1:]
        made[stage]["gate"] = jnp.full(shape, CLOSED)
    return made

  # The change.

  def edit(self, mask: base.Tree, seen: dict[str, jax.Array] | None = None) -> Edit:
    """F -> F' at every stage of `mask`; what comes out is also put into `seen`."""

    def change(stage: str, feature: jax.Array) -> jax.Array:
      if stage in mask:
        pattern = mask[stage]["pattern"]
        pattern = (pattern if self.learn_pattern else jax.lax.stop_gradient(pattern))[None]
        m = self._amount(mask[stage])
        kept = feature if self.combine == "add" else (1 - m) * feature
        feature = (kept + m * pattern).astype(feature.dtype)
      if seen is not None:
        seen[stage] = feature
      return feature

    return change

  def _amount(self, mask: base.Tree) -> jax.Array | float:
    """m, in [0, cap]: a number, or [1, h, w, c] or [1, 1, 1, c]."""
    if self.mask == "fixed":
      return self.cap
    m = self.cap * (jnp.tanh(mask["gate"]) + 1) / 2
    return m.reshape((1,) * (4 - m.ndim) + m.shape)

  def loss(self, player, variables, state, batch, targets, key, step):
    seen: dict[str, jax.Array] = {}
    edit, teacher = self.edit(variables["mask"], seen), variables["teacher"]
    logits = teacher(batch["image"], train=False, edit=edit)[0].logits
    value, weight = losses.mixed_cross_entropy(logits, batch)
    hit = (logits.argmax(-1) == batch["label"]).astype(logits.dtype)
    ratios = [
      spread(self.variance, seen[stage]).mean() / (self.untouched(known) + 1e-12)
      for stage, known in state.items()
    ]
    ratio = jnp.stack(ratios).mean()
    terms = {"guard": (self.guard * value, weight), "variance": self.weight * ratio}
    metrics: dict[str, Any] = {"train_acc": (hit, weight), "variance_ratio": ratio}
    if self.inverted:
      share, pattern = (variables["suspect"][name][None] for name in ("mask", "pattern"))
      images = (1 - share) * batch["image"] + share * pattern
      logits = self.detoxified(variables)(images, train=False)[0].logits
      value, weight = losses.mixed_cross_entropy(logits, batch)
      terms["inverted"] = (self.guard * value, weight)
    return terms, base.Aux(metrics=metrics)

  def predict(self, variables, state, images):
    return self.detoxified(variables)(images, train=False)[0].logits

  def detoxified(self, variables: Any) -> "Detoxified":
    """The teacher with its features changed by `variables["mask"]`."""
    return Detoxified(variables["teacher"], self.edit(variables["mask"]))


class Detoxified:
  """A network whose features are edited, called like the `Bound` it stands for."""

  def __init__(self, network: base.Bound, edit: Edit):
    self.network, self.edit = network, edit
    self.module, self.variables, self.params = network.module, network.variables, network.params

  def __call__(self, images: jax.Array, train: bool, **kwargs: Any) -> Any:
    return self.network(images, train=train, edit=self.edit, **kwargs)


def spread(kind: str, feature: jax.Array) -> jax.Array:
  """The variance of features [B, h, w, c]: of each "sample" float[B] over h, w, c; over "channel"s,
  float[B], mean over places; over the "batch", a scalar, mean over elements."""
  feature = feature.astype(jnp.float32)
  if kind == "batch":
    return feature.var(0).mean()
  return feature.var((1, 2, 3)) if kind == "sample" else feature.var(-1).mean((1, 2))
