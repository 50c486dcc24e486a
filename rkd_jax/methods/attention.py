"""Attention transfer (Zagoruyko & Komodakis, ICLR 2017, arXiv:1612.03928)."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from rkd_jax import losses
from rkd_jax.methods import features


@dataclasses.dataclass(frozen=True)
class Method(features.Method):
  """CE + weight * sum over taps of `losses.attention_transfer`.

  The paper sets beta to 1000 over the sizes of batch and map, before a sum: with means in its place
  1000, and no half, as in the authors' code. The channels of the two networks may differ, so there
  is no connector unless `variance` needs one.
  """

  weight: float = 1000.0
  connects: ClassVar[bool] = False

  def distance(self, student, taught, variables, state):
    values = [losses.attention_transfer(student[tap], taught[tap]) for tap in taught]
    return jnp.stack(values).sum(0)
