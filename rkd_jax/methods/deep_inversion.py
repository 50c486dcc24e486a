"""DeepInversion: images are optimised until the teacher names them and its BatchNorms know them.

A simple baseline without a generator (Yin et al. 2020, arXiv:1912.08795): the pixels themselves are
what is trained, a batch a round.
"""

import dataclasses

import jax
import jax.numpy as jnp

from rkd_jax import losses
from rkd_jax.errors import check_range
from rkd_jax.methods import base, datafree, pooled


@dataclasses.dataclass(frozen=True)
class Method(pooled.Pooled):
  """Pixels: CE(T(x), a random class) + statistics * BatchNorm gap + smooth * total variation.

  Attributes:
    statistics: weight of `datafree.statistics_gap`.
    smooth: weight of the mean absolute difference of neighbouring pixels.
  """

  rate: float = 0.05
  statistics: float = 1.0
  smooth: float = 0.1

  def __post_init__(self):
    super().__post_init__()
    for field in ("statistics", "smooth"):
      check_range(f"deep_inversion.{field}", getattr(self, field), 0, 1e6)

  def roles(self, networks):
    pixels = base.Role(player="generator", optimizer=self.adam, init=self._noise)
    return {**super().roles(networks), "pixels": pixels}

  def _noise(self, key, made, example):
    return jax.random.normal(key, example.batch["image"].shape)

  def reset(self, epoch):
    return ("pixels",)

  def made(self, variables):
    return jax.nn.sigmoid(variables["pixels"])

  def loss(self, player, variables, state, batch, targets, key, step):
    images = self.images(player, variables, state, batch, key)
    if player == "student":
      return self.taught_by(variables, images, key)
    outputs = variables["teacher"](images, train=False, capture=True)[0]
    value = losses.cross_entropy(outputs.logits, batch["label"])
    gap = self.statistics * datafree.statistics_gap(variables["teacher"], outputs)
    rough = self.smooth * variation(images)
    state = self.kept(state, images, value.mean() + gap + rough, batch)
    terms = {"ce": (value, jnp.ones_like(value)), "statistics": gap, "smooth": rough}
    return terms, base.Aux(state=state)


def variation(images: jax.Array) -> jax.Array:
  """Mean absolute difference of neighbouring pixels, down and right together."""
  down, right = images[:, 1:] - images[:, :-1], images[:, :, 1:] - images[:, :, :-1]
  return jnp.abs(down).mean() + jnp.abs(right).mean()
