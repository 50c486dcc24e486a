"""Which part removes the backdoor? Detoxification, variance, consistency, agreement, repairs.

The quickstart's story (digits, 5 % labelled, WRN-16-2 -> WRN-10-1, teachers of seeds 0-2) in the
settings below, one a run:

  adba15 adba30 adba50         clean pool, ADBA's trigger at caps .15, .3, .5
  badnets1 badnets2 badnets5   1, 2, 5 % of the pool triggered, BadNets
  blended1 blended2 blended5   the same, a blended pattern

  python -m rkd_jax.main --config configs/ablation_robustkd.py:badnets2 --workdir runs/badnets2

This is the development set-up: the forms of `robustkd`'s variant "tuned" and of `rkd` were chosen
on it, by runs of earlier revisions. Results: docs/robustkd-measured.md and
results/ablation_robustkd, of adba30, badnets2, and for nine methods blended2;
results/ablation_rates of the others for none, kd and rkd. Cost: one to two hours of a core for
each, when idle.
Strengths given as grids are chosen in each run by the rule of `rkd_jax/selection.py`.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import quickstart
from rkd_jax import config as base
from rkd_jax.config import Config
from rkd_jax.errors import UserError, nearest

SETTINGS: dict[str, dict[str, Any]] = {
  **{
    f"adba{c}": {"backdoor": "adba", "contamination": 0.0, "method.adba.cap": c / 100}
    for c in (15, 30, 50)
  },
  **{f"badnets{r}": {"backdoor": "badnets", "contamination": r / 100} for r in (1, 2, 5)},
  **{f"blended{r}": {"backdoor": "blended", "contamination": r / 100} for r in (1, 2, 5)},
}

WEIGHTS = (0.0, 1.0, 10.0)
ATTENTION = (0.0, 10.0, 100.0, 1000.0)
VARIANCE_WEIGHTS = (0.0, 1.0, 10.0, 100.0)
SHARES = (0.0, 0.25, 0.5)
LEARNED_MASK = {
  "name": "detox", "combine": "convex", "mask": "learned", "grain": "channel", "cap": 1.0,
  "learn_pattern": False, "variance": "batch", "weight": WEIGHTS,
}  # fmt: skip

# One part at a time, each on its undefended base.
PARTS: dict[str, dict[str, Any]] = {
  # base distillations
  "ofd": {"name": "ofd"},
  "attention": {"name": "attention", "weight": ATTENTION},
  "fitnet": {"name": "fitnet"},
  # detoxification: literal, its other readings, a learned mask, one against an inverted trigger
  "robustkd": {"name": "robustkd", "detox": {"name": "detox", "weight": WEIGHTS}},
  "detox_convex": {
    "name": "robustkd",
    "detox": {"name": "detox", "combine": "convex", "learning_rate": 1e-3, "weight": WEIGHTS},
  },
  "detox_mask": {"name": "robustkd", "detox": LEARNED_MASK},
  "detox_inverted": {"name": "robustkd", "detox": {**LEARNED_MASK, "inverted": True}},
  "detox_random": {  # a control: a pattern of the same norm that means nothing
    "name": "robustkd",
    "detox": {"name": "detox", "start": "random", "learn_pattern": False},
  },
  "robustkd_attention": {"name": "robustkd", "base": {"name": "attention", "weight": ATTENTION}},
  # feature variance, on plain OFD
  **{
    f"variance_{kind}": {"name": "ofd", "variance": kind, "variance_weight": VARIANCE_WEIGHTS}
    for kind in ("residual", "moments", "views")
  },
  # both: the variance of, and against, detoxified features
  **{
    f"robustkd_{kind}": {
      "name": "robustkd",
      "base": {"name": "ofd", "variance": kind, "variance_weight": VARIANCE_WEIGHTS},
    }
    for kind in ("residual", "moments", "views")
  },
  "robustkd_tuned": {"name": "robustkd", "variant": "tuned"},
  # consistency, around KD
  "blend": {"name": "consistency", "amplitude": SHARES},
  "occlusion": {"name": "consistency", "view": "occlusion", "amplitude": SHARES},
  "warp": {"name": "consistency", "view": "warp", "pixels": (0.0, 1.0, 2.0)},
  "universal": {"name": "consistency", "view": "universal", "radius": (0.0, 0.1, 0.3)},
  "blend_ofd": {"name": "consistency", "amplitude": SHARES, "base": "ofd"},  # beside variance_views
  # agreement
  "agreement": {"name": "agreement"},
  "agreement_ofd": {"name": "agreement", "base": "ofd"},
  "agreement_views": {
    "name": "agreement",
    "base": {"name": "ofd", "variance": "views", "variance_weight": VARIANCE_WEIGHTS},
  },
  # repairs of the teacher, then KD
  "finetune": {"name": "finetune"},
  "ft_sam": {"name": "ft_sam"},
  "nad": {"name": "nad", "epochs": 100},  # as many steps as fine-tuning: 10 are too few here
  "bcu": {"name": "bcu"},
}


def get_config(arg: str | None = None) -> Config:
  """`arg`: one of `SETTINGS` ("badnets2"); all parts beside none, kd and rkd."""
  config = setting(arg or "badnets2", SETTINGS)
  for label, spec in PARTS.items():
    config.method[label] = spec
  config.methods = ("none", "kd", *PARTS, "rkd")
  config.clean_teacher_seeds = 0 if config.contamination else 1
  return config


def setting(name: str, settings: dict[str, dict[str, Any]]) -> Config:
  """The quickstart's config, unlocked, in one of the settings."""
  if name not in settings:
    raise UserError(f"No setting is called {name!r}. {nearest(name, settings)}")
  config = quickstart.get_config(None)
  config.unlock()
  config.method.rkd = ConfigDict(base.RKD)  # its strength is chosen in each run, too
  config.update_from_flattened_dict(settings[name])
  return config
