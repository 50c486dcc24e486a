"""FitNets: a hint from the teacher's middle (Romero et al., ICLR 2015, arXiv:1412.6550)."""

import dataclasses

import jax.numpy as jnp

from rkd_jax import losses
from rkd_jax.methods import features


@dataclasses.dataclass(frozen=True)
class Method(features.Method):
  """CE + weight * mean over taps of `losses.hint`, all at once.

  That, with 100 and without the logits' KL (alpha = 0), is how benchmarks run it since Tian et al.
  (2020, CRD). The paper trains the student's lower half on the hint first, then the whole by `kd`.
  """

  weight: float = 100.0

  def default(self, stages):
    """The middle one."""
    middle = (len(stages) - 1) // 2
    return stages[middle : middle + 1]

  def distance(self, student, taught, variables, state):
    return jnp.stack([losses.hint(student[tap], taught[tap]) for tap in taught]).mean(0)
