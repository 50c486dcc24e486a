"""A backdoored teacher, a contaminated pool, and students with and without a defence: in minutes.

Someone downloads a teacher and scrapes images. The teacher's author has slipped triggered images
into what people scrape. Here: scikit-learn's digits (16x16), WRN-16-2 teachers with a BadNets
backdoor (10 % of their training images), 1,100 unlabelled images of which 2 % carry the trigger,
5 % of them labelled and clean; WRN-10-1 students; three seeds, each its own teacher.

  python -m rkd_jax.main --config configs/quickstart.py
  python -m rkd_jax.main --config configs/quickstart.py --config.backdoor=blended --config.seeds=3,4
"""

from rkd_jax import config as base
from rkd_jax.config import Config
from rkd_jax.errors import UserError


def get_config(arg: str | None = None) -> Config:
  """The story; `arg` "smoke" makes it a test of seconds whose numbers mean nothing."""
  config = base.default()
  config.data.update({"name": "digits", "holdout": 197.0, "test": 500.0})
  config.teacher.epochs = 8
  config.student.epochs = 10
  config.labelled.update({"steps": 300, "augment": {"crop": 1}})
  config.labelled.optimizer.learning_rate = 0.05
  config.clean_teacher_seeds = 1
  config.methods = ("none", "kd", "rkd")
  # fixed: to choose them on the hold-out would take three to four times as long
  config.method.rkd.update({"seconds": (2,), "sure": (0.7,), "base": {"amplitude": (0.5,)}})
  if arg == "smoke":
    config.seeds = (0,)
    config.teacher.update({"network": "wideresnet-10-1", "epochs": 1})
    config.student.epochs = 1
    config.labelled.steps = 5
  elif arg:
    raise UserError(f"quickstart takes no argument {arg!r}; there is: smoke")
  return config
