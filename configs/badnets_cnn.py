"""A small CNN that no family knows, with the map that a file in its names is converted by.

The one in the BadNets reproduction verazuo/badnets-pytorch, written again in Flax.
"""

import flax.linen as nn
import jax.numpy as jnp

from rkd_jax.models.network import Outputs

KEYS = {"conv1.0": "conv1", "conv2.0": "conv2", "fc1.0": "dense", "fc2.0": "head"}


class Model(nn.Module):
  classes: int = 10
  dtype: type = jnp.float32
  bn_group: int | None = None

  @property
  def stages(self):
    return ("stage1", "stage2")

  @property
  def margin_bn(self):
    return {}

  @nn.compact
  def __call__(self, images, train, edit=None):
    features, pre_relu, x = {}, {}, images
    for stage, name, channels in (("stage1", "conv1", 16), ("stage2", "conv2", 32)):
      x = nn.Conv(channels, (5, 5), padding="VALID", dtype=self.dtype, name=name)(x)
      x = pre_relu[stage] = x if edit is None else edit(stage, x).astype(x.dtype)
      x = nn.relu(x)
      features[stage] = x
      x = nn.avg_pool(x, (2, 2), (2, 2))
    x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)  # channels first, as PyTorch flattens
    x = nn.relu(nn.Dense(512, dtype=self.dtype, name="dense")(x)).astype(jnp.float32)
    logits = nn.Dense(self.classes, name="head")(x)
    return Outputs(logits, features, pre_relu, x)
