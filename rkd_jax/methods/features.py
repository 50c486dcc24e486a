"""Feature distillation: the student's stages are pulled to the teacher's, beside the labels.

The family that `ofd`, `attention` and `fitnet` belong to. Each says which tensor of a stage it
compares and how; stages, connectors, the terms on variance and the checks are here.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from rkd_jax import losses
from rkd_jax.errors import UserError, check_range, nearest
from rkd_jax.methods import base, kd, views
from rkd_jax.models.connector import Connector
from rkd_jax.models.network import Network, Outputs

VARIANCES = ("none", "residual", "moments", "views")
OF_NETWORK = ("dtype", "bn_group")  # what a connector takes over from the student
VIEW = 0x76696577  # folded into the key of the blended views
Features = dict[str, jax.Array]  # {teacher's stage: float[B, h, w, c]}, in the order of the taps
Sizes = Mapping[str, tuple[int, ...]]  # {stage: (h, w, c)}


@dataclasses.dataclass(frozen=True)
class Method(kd.Method):
  """(1 - alpha) CE + alpha T^2 KL, as `kd`, + weight * distance + variance_weight * variance.

  With C(s) the student's features in the teacher's channels and t the teacher's, the variance is
  "residual", Var(C(s) - t) / Var t within each example; "moments", the squared gap of the channels'
  standard deviations over the batch, one number for all examples; or "views", the variance of
  C(s(x)) and C(s(x')), x' a random blend of x. It is the mean over the taps.

  Attributes:
    alpha: weight of the logits' KL, in [0, 1]; 0: labels and features alone teach.
    taps: stages that are compared, shallow to deep: "stage2" in both networks, or
      "stage2:stage1", the teacher's first; (): the method's own choice, here all stages in order.
    weight: of the distance, >= 0.
    variance: "none", "residual", "moments" or "views".
    variance_weight: >= 0.
    amplitude: of the views, see `views.random_blend`.

  Class attributes:
    tensor: which of the `Outputs` is compared: "features" or "pre_relu".
    connects: whether the distance is that of connected features, or of the student's own.
  """

  alpha: float = 0.0
  taps: tuple[str, ...] = ()
  weight: float = 1.0
  variance: str = "none"
  variance_weight: float = 1.0
  amplitude: float = 0.5
  tensor: ClassVar[str] = "features"
  connects: ClassVar[bool] = True
  plain: ClassVar = {"variance": "none"}
  cacheable = True

  def __post_init__(self):
    super().__post_init__()
    object.__setattr__(self, "taps", base.tapped(self.taps))
    if self.variance not in VARIANCES:
      raise UserError(
        f"{self.name}.variance is {self.variance!r}; choose one of {', '.join(VARIANCES)}."
      )
    check_range(f"{self.name}.weight", self.weight, 0, 1e9)
    check_range(f"{self.name}.variance_weight", self.variance_weight, 0, 1e9)
    check_range(f"{self.name}.amplitude", self.amplitude, 0, 1)

  # What a subclass says.

  def default(self, stages: tuple[str, ...]) -> tuple[str, ...]:
    """The stages that are compared where no taps are named."""
    return stages

  def distance(
    self, student: Features, taught: Features, variables: Mapping[str, Any], state: base.Tree
  ) -> jax.Array:
    """float[B], taps combined; `student` is connected where the method `connects`."""
    raise NotImplementedError(f"{type(self)} defines no distance")

  def observe(self, state: base.Tree, taught: Features, mask: jax.Array) -> base.Tree:
    """What the method wants to know of the teacher before step 0; mask float[B] as in `survey`."""
    return state

  # Who takes part.

  def roles(self, networks):
    roles = super().roles(networks)
    teacher, student = roles["teacher"].module, roles["student"].module
    pairs = tuple(zip(self.stages(teacher, 0), self.stages(student, -1), strict=False))
    ours, theirs = sizes(student, self.tensor), sizes(teacher, self.tensor)
    self._check(pairs, theirs, ours)
    if self.connects or self.variance != "none":
      taps = tuple((t, ours[s][-1], theirs[t][-1]) for t, s in pairs)
      like = {f: getattr(student.module, f) for f in OF_NETWORK if hasattr(student.module, f)}
      roles["connector"] = base.Role(Connector(taps, **like), player="student")
    return roles

  def stages(self, network: Network, side: int) -> tuple[str, ...]:
    """The stages of a network that are compared; side 0 for the teacher, -1 for the student."""
    own = tuple(tap.split(":")[side] for tap in self.taps)
    return own or self.default(tuple(sizes(network, self.tensor)))

  def _check(self, pairs: tuple[tuple[str, str], ...], teacher: Sizes, student: Sizes) -> None:
    """Raises a `UserError` where the pairs cannot be compared."""
    both = f"The teacher has {shown(teacher)}; the student has {shown(student)}."
    if any(tap.count(":") > 1 for tap in self.taps) or len(dict(pairs)) < len(pairs):
      raise UserError(
        f"{self.name}.taps is {self.taps}; name each stage of the teacher once, "
        f"as 'stage2' or, the teacher's first, 'stage2:stage1'. {both}"
      )
    for side, (who, known) in enumerate({"teacher": teacher, "student": student}.items()):
      for stage in (pair[side] for pair in pairs):
        if stage not in known:
          raise UserError(
            f"{self.name}.taps: the {who} has no stage {stage!r}. {nearest(stage, known)}"
          )
    fits = fitting(teacher, student)
    counts = {len(self.default(tuple(known))) for known in (teacher, student)}
    if not self.taps and (len(counts) > 1 or 0 in counts):
      raise UserError(f"{self.name} cannot tell which stages belong together. {both} {fits}")
    for t, s in pairs:
      if teacher[t][:2] != student[s][:2]:
        raise UserError(
          f"{self.name} compares {t} of the teacher, {shown({t: teacher[t]})}, with {s} of the "
          f"student, {shown({s: student[s]})}: height and width must be equal. {both} {fits}"
        )

  # What the teacher says.

  def tapped(self, frozen: Mapping[str, Any], images: jax.Array) -> tuple[Outputs, Features]:
    """(the teacher's outputs as they are taught, the compared ones among their features)."""
    outputs = self.taught(frozen, images)
    found = getattr(outputs, self.tensor)
    return outputs, {stage: found[stage] for stage in self.stages(frozen["teacher"].module, 0)}

  def targets(self, frozen, batch, key) -> base.Tree:
    outputs, taught = self.tapped(frozen, batch["image"])
    return {"logits": outputs.logits, "features": taught}

  def init_state(self, key, variables, example):
    taps = self.stages(variables["teacher"].module, 0)
    return {"finite": {stage: jnp.ones((), bool) for stage in taps}}

  def survey(self, key, variables, state, batch):
    taught, mask = self.tapped(variables, batch["image"])[1], batch["mask"]
    known = {t: ok & (finite(taught[t]) | (mask == 0)).all() for t, ok in state["finite"].items()}
    return self.observe({**state, "finite": known}, taught, mask)

  def check(self, state):
    refuse(stage for stage, ok in state["finite"].items() if not ok)

  # What the student is told.

  def loss(self, player, variables, state, batch, targets, key, step):
    outputs, stats = variables["student"](batch["image"], train=True, key=key)
    terms, metrics = self.of_logits(outputs.logits, targets["logits"], batch)
    # A compiled program sorts the names in a dict; the taps' own order is from shallow to deep.
    order = self.stages(variables["teacher"].module, 0)
    taught = {stage: targets["features"][stage] for stage in order}
    own, statistics = self._own(variables, outputs), {"student": stats}
    connected = own
    if "connector" in variables:
      connected, statistics["connector"] = variables["connector"](own, train=True)
    value = self.distance(connected if self.connects else own, taught, variables, state)
    terms["feature"] = (self.weight * value, jnp.ones_like(value))
    if self.variance != "none":
      terms["variance"] = self._variance(connected, taught, variables, batch["image"], key)
    sound = jnp.stack([finite(feature) for feature in taught.values()]).all(0)
    metrics["train_teacher_finite"] = sound.astype(jnp.float32)
    return terms, base.Aux(batch_stats=statistics, metrics=metrics)

  def _own(self, variables: Mapping[str, Any], outputs: Outputs) -> Features:
    """The student's compared features, by the teacher's stages."""
    order = self.stages(variables["teacher"].module, 0)
    names = self.stages(variables["student"].module, -1)
    found = getattr(outputs, self.tensor)
    return {t: found[s] for t, s in zip(order, names, strict=True)}

  def _variance(self, connected: Features, taught: Features, variables, images, key) -> Any:
    """The term of `variance`: (value[B], weight[B]), or a scalar."""
    if self.variance == "views":
      view, student = jax.random.split(jax.random.fold_in(key, VIEW))
      seen = views.random_blend(view, images, self.amplitude)
      outputs, _ = variables["student"](seen, train=True, key=student)
      other, _ = variables["connector"](self._own(variables, outputs), train=True)
      found = [losses.view_variance(connected[tap], other[tap]) for tap in taught]
    else:
      gap = {"residual": losses.residual_variance, "moments": losses.moment_gap}[self.variance]
      found = [gap(connected[tap], taught[tap]) for tap in taught]
    value = self.variance_weight * jnp.stack(found).mean(0)
    return value if self.variance == "moments" else (value, jnp.ones_like(value))


@functools.lru_cache
def sizes(network: Network, tensor: str) -> Sizes:
  """{stage: (h, w, c)} of a network's "features" or "pre_relu", shallow to deep."""
  found = getattr(network.shapes(), tensor)
  return {stage: found[stage].shape[1:] for stage in network.stages if stage in found}


def shown(sizes: Sizes) -> str:
  """As "stage1 [h, w, c], stage2 [h, w, c]"."""
  return ", ".join(f"{stage} {list(size)}" for stage, size in sizes.items()) or "no stages"


def fitting(teacher: Sizes, student: Sizes) -> str:
  """Which stages could be compared, as taps."""
  fits = [f"{t}:{s}" for t in teacher for s in student if teacher[t][:2] == student[s][:2]]
  if not fits:
    return "No two of their stages have the same height and width."
  return f"Pairs that fit, teacher first: {', '.join(fits)}; as in taps=({fits[-1]!r},)."


def refuse(stages: Iterable[str]) -> None:
  """Raises a `UserError` if there are stages where the teacher's features are not finite."""
  if wrong := ", ".join(stages):
    raise UserError(
      f"The teacher's features are not finite on these images (inf or NaN in {wrong}), so nothing "
      "can be learned from them. The teacher's training diverged, or overflowed: lower "
      "--config.teacher.optimizer.learning_rate, or use --config.dtype=float32."
    )


def finite(feature: jax.Array) -> jax.Array:
  """bool[B]: all of an example's features [B, h, w, c] are numbers."""
  return jnp.isfinite(feature).all((1, 2, 3))
