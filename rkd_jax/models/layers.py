"""What several architectures share: convolutions, pools and small checks, as PyTorch has them."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from rkd_jax.errors import UserError, nearest
from rkd_jax.models.network import Edit
from rkd_jax.models.norm import BatchNorm

BLOCKS = {  # of the four stages of residual networks (He et al., 2016, table 1), by depth
  18: (2, 2, 2, 2),
  34: (3, 4, 6, 3),
  50: (3, 4, 6, 3),
  101: (3, 4, 23, 3),
  152: (3, 8, 36, 3),
}
BOTTLENECKS = (50, 101, 152)  # the others have blocks of two 3x3 convolutions


def block_convs(channels: int, middle: int, stride: int) -> tuple[tuple[int, int, int], ...]:
  """(channels, size, stride) of a block's convolutions.

  A 3x3 of `middle` channels between two 1x1, which strides itself ("v1.5"); 0: two 3x3.
  """
  if middle:
    return (middle, 1, 1), (middle, 3, stride), (channels, 1, 1)
  return (channels, 3, stride), (channels, 3, 1)


def conv(channels: int, size: int, stride: int = 1, **kwargs: Any) -> nn.Conv:
  """A square convolution without bias, padded by half its size on either side.

  XLA's "SAME" pads strided convolutions of even sizes on one side only; PyTorch does not. First
  values are those of He et al. (2015, arXiv:1502.01852), by the number of outputs.
  """
  init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
  window: dict[str, Any] = dict(kernel_size=(size, size), strides=stride, padding=size // 2)
  return nn.Conv(channels, **{"use_bias": False, "kernel_init": init, **window, **kwargs})


def normed(
  x: jax.Array,
  train: bool,
  name: str,
  *window: int,
  alone: bool = False,
  dtype: Dtype = jnp.float32,
  bn_group: int | None = None,
) -> jax.Array:
  """x through a convolution and its batch norm, within the module that calls.

  Args:
    x: float[B, H, W, C].
    train: as for the norm.
    name: of the convolution; the norm of "conv1" is "norm1", that of "shortcut" "shortcut_norm".
    window: channels, size, stride.
    alone: every channel has a kernel of its own ("depthwise").
    dtype: of what comes out.
    bn_group: see `norm.BatchNorm`.
  """
  groups = x.shape[-1] if alone else 1
  x = conv(*window, feature_group_count=groups, dtype=dtype, name=name)(x)
  norm = name.replace("conv", "norm") if "conv" in name else f"{name}_norm"
  return BatchNorm(bn_group, dtype=dtype, name=norm)(x, train)


def edited(edit: Edit | None, stage: str, x: jax.Array) -> jax.Array:
  """x after the caller's edit, in the type that it had."""
  return x if edit is None else edit(stage, x).astype(x.dtype)


def max_pool(x: jax.Array, size: int, stride: int, padding: int = 0) -> jax.Array:
  """x [B, H, W, C] -> the largest of every window; what is left over at the far end is dropped."""
  around: Any = ((padding, padding),) * 2
  return nn.max_pool(x, (size, size), (stride, stride), around)


def mean_pool(x: jax.Array, size: int) -> jax.Array:
  """x [B, H, W, C] -> [B, size, size, C]: the means of windows that cover it evenly.

  Windows overlap where `size` does not divide, and repeat where `size` is larger, as PyTorch's
  AdaptiveAvgPool2d has it.
  """
  if x.shape[1:3] == (size, size):
    return x
  rows, columns = (_windows(side, size) for side in x.shape[1:3])
  exact = jax.lax.Precision.HIGHEST  # these are means, not layers
  return jnp.einsum("bhwc,ih,jw->bijc", x, rows, columns, precision=exact).astype(x.dtype)


def _windows(side: int, size: int) -> jax.Array:
  """float[size, side]: the weights of each window; they sum to one."""
  place, start = jnp.arange(side)[None], (jnp.arange(size) * side // size)[:, None]
  end = -((-(jnp.arange(size) + 1) * side) // size)[:, None]
  inside = ((place >= start) & (place < end)).astype(jnp.float32)
  return inside / inside.sum(1, keepdims=True)


def pad_channels(x: jax.Array, before: int, after: int) -> jax.Array:
  """Zeros for channels that are new."""
  return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(before, after)])


def choose(what: str, value: Any, known: Iterable[Any]) -> None:
  """Raises a `UserError` unless `value` is one of `known`."""
  known = list(known)
  if value not in known:
    raise UserError(f"{what} is {value!r}. {nearest(str(value), map(str, known))}")
