"""One hidden layer: what an audit can be tried on in seconds."""

import jax.numpy as jnp
from flax import linen as nn

from rkd_jax.models.network import Outputs


class Model(nn.Module):
  """Attributes:
  width: of the hidden layer.
  """

  width: int = 32
  classes: int = 10
  dtype: type = jnp.float32
  bn_group: int | None = None
  stages = ("hidden",)
  margin_bn = {}  # noqa: RUF012

  @nn.compact
  def __call__(self, images, train, edit=None):
    x = nn.Dense(self.width, name="dense")(images.reshape(len(images), -1))
    x = pre = edit("hidden", x) if edit else x
    x = nn.relu(x)
    logits = nn.Dense(self.classes, name="head")(x)
    tensor = x[:, None, None]
    return Outputs(jnp.float32(logits), {"hidden": tensor}, {"hidden": pre[:, None, None]}, x)
