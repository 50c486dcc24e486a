"""The quickstart's story on CIFAR-10: a backdoored teacher, a contaminated pool, defended students.

Source: the threat model of `configs/quickstart.py` on CIFAR-10 (Krizhevsky 2009) with WRN-16-2
teachers and WRN-16-1 students (Zagoruyko and Komodakis 2016), BadNets in 10 % of the teacher's
training images, 2 % of the unlabelled pool triggered, 5 % of it labelled and clean. 10 % of the
training images are the hold-out; padded crops of 4 pixels and flips everywhere.

  python -m rkd_jax.main --config configs/cifar10.py --config.data.data_dir=DIR

DIR holds CIFAR-10 as TFDS prepares it in array_record format; where it does not, the run stops with
the command that prepares it. Cost: not measured yet. Result: not measured yet.
"""

from rkd_jax import config as base
from rkd_jax.config import Config
from rkd_jax.errors import UserError


def get_config(arg: str | None = None) -> Config:
  """One seed; more with --config.seeds=0,1,2."""
  if arg:
    raise UserError(f"cifar10 takes no argument, but got {arg!r}")
  config = base.default()
  config.seeds = (0,)
  config.data.name = "tfds:cifar10"
  config.teacher.network = "wideresnet-16-2"
  config.student.network = "wideresnet-16-1"
  for section in (config.teacher, config.student, config.labelled):
    section.batch_size = 128
    section.augment.update({"crop": 4, "flip": True})
  config.teacher.epochs = config.student.epochs = 8
  return config
