"""Which details of agreement matter? Readmission, BatchNorm's view of the dropped, consistency.

The quickstart's story (digits, 5 % labelled, 2 % contaminated, BadNets; teachers of seeds 0-2) with

  agreement           whatever witness and teacher agree on comes back each round ("always")
  agreement_robust    ... only if the new witness also says so under eight random blends
  agreement_robust50  ... under blends of amplitude .5, five times as strong
  agreement_never     ... never: once dropped, dropped
  agreement_replace   dropped examples are replaced in their batch, so BatchNorm never sees them
  consistency         random blends alone, no filter
  agreement_consistency  the filter around random blends

  python -m rkd_jax.main --config configs/ablation_agreement.py

13 minutes of training on a CPU. Results: results/ablation_agreement/ (where
agreement_robust is what agreement_robust50 is now); readmission of a blended trigger,
results/ablation_readmission/ (docs/reproduce.md has the commands).
"""

from configs import quickstart
from rkd_jax.config import Config


def get_config(arg: str | None = None) -> Config:
  """The quickstart's config with seven methods beside none and kd."""
  config = quickstart.get_config(arg)
  config.unlock()
  config.method.agreement_robust = {"name": "agreement", "readmit": "robust"}
  config.method.agreement_robust50 = {"name": "agreement", "readmit": "robust", "amplitude": 0.5}
  config.method.agreement_never = {"name": "agreement", "readmit": "never"}
  config.method.agreement_replace = {"name": "agreement", "dropped": "replace"}
  config.method.agreement_consistency = {"name": "agreement", "base": "consistency"}
  config.methods = (
    "none", "kd", "agreement", "agreement_robust", "agreement_robust50", "agreement_never",
    "agreement_replace", "consistency", "agreement_consistency",
  )  # fmt: skip
  config.clean_teacher_seeds, config.all_labels_control = 0, False  # the quickstart shows both
  return config
