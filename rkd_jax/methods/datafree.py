"""What methods share that invent their images: the student learns on what somebody makes up.

Such a method trains on no part of the data. A plug-in that guards it (`vaccine`, `retrospection`)
asks for the images of a turn, for more of them, and for the divergence that the student is taught
by.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import traverse_util

from rkd_jax import losses
from rkd_jax.errors import UserError, check_range
from rkd_jax.methods import base

REDUCTIONS = ("mean", "batchmean")
SOURCE = "source"  # a generator as it was given


@dataclasses.dataclass(frozen=True)
class DataFree(base.Method):
  """Base of the methods without data.

  Attributes:
    temperature: of the KL divergence that teaches.
    reduction: of that divergence: "batchmean", T^2 KL in nats, or "mean", KL / K without T^2; the
      published programs have the one or the other.
  """

  temperature: float = 1.0
  reduction: str = "batchmean"
  part: ClassVar = "nothing"
  settles: ClassVar = False  # whether its generator has come to rest when its training ends

  def __post_init__(self):
    check_range(f"{self.name}.temperature", self.temperature, 1e-3, 1e3)
    if self.reduction not in REDUCTIONS:
      raise UserError(
        f"{self.name}.reduction is {self.reduction!r}; choose {' or '.join(REDUCTIONS)}."
      )

  def roles(self, networks):
    if (classes := base.network(networks, "teacher").classes) < 2:
      raise UserError(f"{self.name} distils what tells classes apart; there is only {classes}.")
    return super().roles(networks)

  def divergence(self, target_logits: jax.Array, logits: jax.Array) -> jax.Array:
    """KL(target || logits) float[B] at the temperature, as `reduction` counts it."""
    value = losses.kl_divergence(target_logits, logits, self.temperature)
    whole = self.reduction == "batchmean"
    return value if whole else value / (self.temperature**2 * logits.shape[-1])

  def looks_back(self, target_logits: jax.Array, logits: jax.Array) -> jax.Array:
    """The divergence by which perturbations are sought and unlearned (`retrospection`)."""
    return self.divergence(target_logits, logits)

  def given(
    self, variables: Mapping[str, Any], state: base.Tree
  ) -> tuple[Mapping[str, Any], base.Tree]:
    """The networks and the state whose images are an earlier phase's: its generator is `SOURCE`."""
    return {**variables, "generator": variables[SOURCE]}, state

  def images(
    self,
    player: str,
    variables: Mapping[str, Any],
    state: base.Tree,
    batch: base.Batch,
    key: jax.Array,
  ) -> jax.Array:
    """float[B, H, W, C]: what a turn is about, with its `loss`'s arguments; a generator's are
    differentiable."""
    return batch["image"]

  def invent(
    self, key: jax.Array, variables: Mapping[str, Any], state: base.Tree, count: int
  ) -> jax.Array:
    """float[count, H, W, C]: images as the student is taught on, in [0, 1]."""
    raise NotImplementedError(f"{type(self)} invents no images")


@dataclasses.dataclass(frozen=True)
class Plugin(base.Plugin):
  """A plug-in around a method that invents its images."""

  base: DataFree = dataclasses.field(kw_only=True)  # type: ignore[assignment]
  nested: ClassVar = {"base": "zskt"}

  def __post_init__(self):
    if isinstance(self.base, Plugin):
      raise UserError(
        f"{self.name} cannot guard what {self.base.name!r} guards already: the one is the first "
        f"stage of a student, the other the second. Set {self.name}.base to "
        f"{self.base.base.name!r}, or name the recipe 'abd', which has both."
      )
    if not isinstance(self.base, DataFree):
      raise UserError(
        f"{self.name} guards methods that invent their images, as zskt, cmi or ood; "
        f"{self.base.name!r} learns from data. Set {self.name}.base."
      )

  def one_of(self, choices: Mapping[str, tuple[str, ...]]) -> None:
    """Raises a `UserError` for a field that is none of its choices."""
    for field, known in choices.items():
      if (given := getattr(self, field)) not in known:
        raise UserError(f"{self.name}.{field} is {given!r}; choose {' or '.join(known)}.")

  def images(self, player, variables, state, batch, key):
    """The base's; see `DataFree.images`."""
    return self.base.images(player, variables, state["base"], batch, key)

  def invent(self, key, variables, state, count):
    """The base's; see `DataFree.invent`."""
    return self.base.invent(key, variables, state["base"], count)


def without(terms: Mapping[str, Any], dropped: jax.Array) -> dict[str, Any]:
  """The terms of a loss without images for which `dropped`, float[B], is 1."""
  kept = {n: (t[0], t[1] * (1 - dropped)) for n, t in terms.items() if isinstance(t, tuple)}
  return {**terms, **kept}


def imbalance(logits: jax.Array) -> jax.Array:
  """-H of the batch's mean answer, in nats: least where all classes are said equally often."""
  mean = jax.nn.softmax(logits).mean(0)
  return (mean * jnp.log(mean + 1e-12)).sum()


def statistics_gap(teacher: base.Bound, outputs: Any) -> jax.Array:
  """Mean over BatchNorms of |batch mean - running mean| + |batch var - running var|, l_2 norms.

  DeepInversion (Yin et al. 2020, arXiv:1912.08795), eq. 4, which has the sum.

  Args:
    outputs: the teacher's on the images, with its BatchNorms' inputs captured.
  """
  known = traverse_util.flatten_dict(dict(teacher.variables["batch_stats"]), sep="/")
  gaps = []
  for path, inputs in outputs.bn.items():
    axes = tuple(range(inputs.ndim - 1))
    for found, name in ((inputs.mean(axes), "mean"), (inputs.var(axes), "var")):
      gaps.append(jnp.sqrt(jnp.square(found - known[f"{path}/{name}"]).sum() + 1e-12))
  return 2 * jnp.stack(gaps).mean()


def generates(method: base.Method) -> bool:
  """Whether somebody's turns are about making images."""
  return "generator" in dict(method.turns)


def require_norms(name: str, teacher: Any) -> None:
  """Raises a `UserError` for a teacher without batch statistics."""
  statistics = jax.eval_shape(teacher.init, jax.random.key(0)).get("batch_stats")
  if not jax.tree.leaves(statistics):
    raise UserError(
      f"{name} makes images that fit a teacher's BatchNorm statistics, and this teacher "
      f"({type(teacher.module).__module__}) has none. Use zskt or ood, or another teacher."
    )
