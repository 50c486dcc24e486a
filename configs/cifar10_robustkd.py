"""RobustKD's setting on CIFAR-10: its pairs of networks, and a shortened protocol for a CPU.

Source: the pairs and the schedule of RobustKD's code (arXiv 2406.03409): SGD .1, Nesterov, weight
decay 5e-4, batch 64, 300 epochs with steps at 150 and 225, reflected crops and flips. Its data are
CIFAR-100 and its defender has all labels; here CIFAR-10, and 5 % of the labels.

The argument is PAIR-BACKDOOR. Pairs:

  a  WRN-28-4 -> WRN-16-4           e  PyramidNet-200 -> WRN-28-4
  b  WRN-28-4 -> WRN-28-2           f  PyramidNet-200 -> PyramidNet-110
  c  WRN-28-4 -> WRN-16-2           tb  WRN-28-4 -> ResNet-18 (their "test-b")
  d  WRN-28-4 -> ResNet-56          tc  ResNet-50 -> ResNet-18 ("test-c", on CIFAR-10)
  s  WRN-16-2 -> WRN-16-1, 20,000 training images, 8 epochs, cosine, batch 128: for a CPU

Backdoors: badnets, cheatkd, latent, ... in 2 % of the pool; adba on a clean pool.

  python -m rkd_jax.main --config configs/cifar10_robustkd.py:s-badnets --config.data.data_dir=DIR

DIR holds CIFAR-10 as TFDS prepares it in array_record format. The hold-out, by which strengths are
chosen, has 1,000 images: with many more labels in it than there are others, nobody would need a
teacher. Results: docs/robustkd-measured.md; of other pairs than "s" none yet.
"""

from rkd_jax import config as base
from rkd_jax.config import Config
from rkd_jax.errors import UserError, nearest

PYRAMIDS = "pyramidnet-200-240-block=bottleneck", "pyramidnet-110-84"
RESNETS = "imagenet_resnet-50-stem=cifar", "imagenet_resnet-18-stem=cifar"
PAIRS = {
  "a": ("wideresnet-28-4", "wideresnet-16-4"),
  "b": ("wideresnet-28-4", "wideresnet-28-2"),
  "c": ("wideresnet-28-4", "wideresnet-16-2"),
  "d": ("wideresnet-28-4", "resnet-56"),
  "e": (PYRAMIDS[0], "wideresnet-28-4"),
  "f": PYRAMIDS,
  "tb": ("wideresnet-28-4", RESNETS[1]),
  "tc": RESNETS,
  "s": ("wideresnet-16-2", "wideresnet-16-1"),
}
CLEAN_POOL = ("adba",)


def get_config(arg: str | None = None) -> Config:
  """`arg`: PAIR-BACKDOOR ("s-badnets")."""
  pair, _, backdoor = (arg or "s-badnets").partition("-")
  if pair not in PAIRS or not backdoor:
    raise UserError(
      f"cifar10_robustkd takes PAIR-BACKDOOR, but got {arg!r}. {nearest(pair, PAIRS)}"
    )
  config = base.default()
  config.unlock()
  config.data.update({"name": "tfds:cifar10", "holdout": 1000.0})
  config.backdoor = backdoor
  config.contamination = 0.0 if backdoor in CLEAN_POOL else 0.02
  config.teacher.network, config.student.network = PAIRS[pair]
  config.networks.shadow = config.student.network
  shortened = pair == "s"
  for section in (config.teacher, config.student, config.labelled):
    section.batch_size = 128 if shortened else 64
    section.augment.update({"crop": 4, "flip": True, "pad": "reflect"})
  if shortened:
    config.data.train = 20000.0
    config.teacher.epochs = config.student.epochs = 8
  else:
    config.teacher.epochs = config.student.epochs = 300
    for section in (config.teacher, config.student):
      section.optimizer.update({"schedule": "step", "milestones": (0.5, 0.75)})
  if pair == "tb":  # three stages and four
    for name in ("ofd", "attention", "fitnet"):
      config.method[name].taps = tuple(f"stage{k}:stage{k}" for k in (1, 2, 3))
  # One witness and no warp: as it was measured. Here witnesses are weak, and each costs images.
  config.method.rkd.update({"seconds": (0,), "sure": (0.0,), "base": {"view": "random_blend"}})
  config.methods = ("none", "kd", "ofd", "robustkd", "rkd")
  config.clean_teacher_seeds = 0 if shortened else 1
  return config
