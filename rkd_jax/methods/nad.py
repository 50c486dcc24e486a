"""Neural attention distillation: repairing a backdoored network (Li et al., ICLR 2021).

The network itself is the student: a copy of it that was fine-tuned on clean labels teaches it where
to look. Its recipe makes the copy first, and distils the repaired network afterwards.
"""

import dataclasses

from rkd_jax import losses
from rkd_jax.errors import check_range
from rkd_jax.methods import attention


@dataclasses.dataclass(frozen=True)
class Method(attention.Method):
  """CE + weight * sum over taps of `losses.attention_transfer`, the first times `shallow`.

  With the default weight the official code's betas for three stages: 500, 1000, 1000.

  Attributes:
    shallow: factor of the first tap, in [0, 1].
  """

  shallow: float = 0.5
  part = "labelled"

  def __post_init__(self):
    super().__post_init__()
    check_range("nad.shallow", self.shallow, 0, 1)

  def distance(self, student, taught, variables, state):
    first, *rest = (losses.attention_transfer(student[tap], taught[tap]) for tap in taught)
    return self.shallow * first + sum(rest)
