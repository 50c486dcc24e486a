"""Batch normalisation whose groups are stated in examples, not in devices.

Under `jax.jit` with a batch-sharded input the whole global batch is one group, which changes the
training dynamics as machines are added. `group` fixes the number of examples instead: the same
numbers on one chip and on a pod. Where every group lies on one device nothing has to be exchanged
to normalise, only to move the running statistics.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util
from flax.typing import Dtype

from rkd_jax.errors import UserError

# The collection into which every BatchNorm puts its input when an `apply` makes it mutable.
INPUTS = "bn_inputs"


def captured(collection: Mapping[str, Any]) -> dict[str, jax.Array]:
  """The inputs sown into `INPUTS`, by the path of their norm: {"stage1_block0/norm1": [B, ...]}."""
  flat: dict[tuple[str, ...], Any] = dict(traverse_util.flatten_dict(dict(collection)))
  return {"/".join(path[:-1]): inputs for path, inputs in flat.items()}


class BatchNorm(nn.Module):
  """Batch normalisation over all axes but the last (Ioffe & Szegedy, 2015, arXiv:1502.03167).

  Params `scale` and `bias`, batch_stats `mean` and `var`: float32[C] whatever `dtype` is. The
  running statistics move by the mean over groups of each group's mean and biased variance
  (PyTorch's variance is the unbiased one: n / (n - 1) times ours).

  Attributes:
    group: examples per normalisation group, neighbours in the batch; None: the global batch.
    momentum: what the running statistics keep at each step (PyTorch calls 1 - this "momentum").
    epsilon: added to the variance.
    dtype: of the output; statistics are always computed in float32.
  """

  group: int | None = None
  momentum: float = 0.9
  epsilon: float = 1e-5
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Normalises x [B, ..., C] by the statistics of its groups (train) or the running ones.

    Raises:
      UserError: B is not a multiple of `group` (only in training).
    """
    channels = (x.shape[-1],)
    mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
    var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
    scale = self.param("scale", nn.initializers.ones, channels, jnp.float32)
    bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
    if self.is_initializing():  # nothing may move, and the example may be smaller than a group
      return x.astype(self.dtype)
    self.sow(INPUTS, "inputs", x, reduce_fn=lambda _, new: new, init_fn=lambda: x)
    if not train:
      return self._normalise(x, mean.value, var.value, scale, bias)
    grouped = x.reshape(self._groups(x.shape[0]), -1, *x.shape[1:])
    group_mean, group_var = _statistics(grouped)
    if self.is_mutable_collection("batch_stats"):
      mean.value = self._moved(mean.value, group_mean)
      var.value = self._moved(var.value, group_var)
    return self._normalise(grouped, group_mean, group_var, scale, bias).reshape(x.shape)

  def _groups(self, batch: int) -> int:
    group = batch if self.group is None else self.group
    if group < 1 or batch % group:
      raise UserError(
        f"A batch of {batch} examples cannot be split into normalisation groups of {group}. "
        f"Choose a batch size that is a multiple of bn_group, or bn_group=None for one group."
      )
    return batch // group

  def _moved(self, running: jax.Array, groups: jax.Array) -> jax.Array:
    """running [C] one step nearer to the mean of groups [G, C]."""
    return self.momentum * running + (1 - self.momentum) * groups.mean(0)

  def _normalise(self, x, mean, var, scale, bias) -> jax.Array:
    """x [B, ..., C] by mean, var [C], or x [G, B/G, ..., C] by mean, var [G, C]; in float32."""
    groups = mean.shape[:-1]
    per_group = (*groups, *[1] * (x.ndim - len(groups) - 1), x.shape[-1])
    per_channel = (*[1] * (x.ndim - 1), x.shape[-1])
    factor = jax.lax.rsqrt(var + self.epsilon).reshape(per_group) * scale.reshape(per_channel)
    y = (x - mean.reshape(per_group)) * factor + bias.reshape(per_channel)
    return y.astype(self.dtype)


def _statistics(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Mean and biased variance, float32[G, C], of x [G, B/G, ..., C]."""
  axes = tuple(range(1, x.ndim - 1))
  x = x.astype(jnp.float32)
  mean, square = x.mean(axes), jax.lax.square(x).mean(axes)  # one pass: XLA fuses the two sums
  return mean, jnp.maximum(0.0, square - jax.lax.square(mean))
