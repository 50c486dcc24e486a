"""A connector: per tap a 1x1 convolution and a norm, from a student's channels to a teacher's.

Heo et al. (2019, arXiv:1904.01866). Trained beside the student, and of no use after.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from rkd_jax.models.norm import BatchNorm


@dataclasses.dataclass(frozen=True)
class Connector:
  """The connectors of all taps. Holds no arrays; hashable; called as a `Network` is.

  Attributes:
    taps: ((name, channels of the student, channels of the teacher), ...).
    dtype: of what comes out; parameters and statistics are float32.
    bn_group: examples per normalisation group (see `norm.BatchNorm`).
  """

  taps: tuple[tuple[str, int, int], ...]
  dtype: Dtype = jnp.float32
  bn_group: int | None = None

  def init(self, key: jax.Array) -> dict[str, Any]:
    """Fresh variables: {"params": {tap: ...}, "batch_stats": {tap: ...}}."""
    features = {tap: jnp.zeros((1, 1, 1, student)) for tap, student, _ in self.taps}
    return dict(self._module.init(key, features, train=False))

  def apply(
    self, variables: Mapping[str, Any], features: Mapping[str, jax.Array], train: bool
  ) -> tuple[dict[str, jax.Array], Any]:
    """Connects {tap: float[B, h, w, of the student]}.

    Returns:
      ({tap: float[B, h, w, of the teacher]}, new_batch_stats): the latter as given unless `train`.
    """
    mutable = ["batch_stats"] * train
    connected, updated = self._module.apply(dict(variables), features, train, mutable=mutable)
    return connected, updated.get("batch_stats", variables["batch_stats"])

  @property
  def _module(self) -> nn.Module:
    return _All(tuple((tap, teacher) for tap, _, teacher in self.taps), self.dtype, self.bn_group)


class _All(nn.Module):
  taps: tuple[tuple[str, int], ...]
  dtype: Dtype
  bn_group: int | None

  @nn.compact
  def __call__(self, features: Mapping[str, jax.Array], train: bool) -> dict[str, jax.Array]:
    return {
      tap: _One(channels, self.dtype, self.bn_group, name=tap)(features[tap], train)
      for tap, channels in self.taps
    }


class _One(nn.Module):
  channels: int
  dtype: Dtype
  bn_group: int | None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")  # variance 2 / channels
    conv = nn.Conv(
      self.channels, (1, 1), use_bias=False, kernel_init=init, dtype=self.dtype, name="conv"
    )
    return BatchNorm(self.bn_group, dtype=self.dtype, name="norm")(conv(x), train)
