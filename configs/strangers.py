"""Two teachers that strangers published, one of them backdoored: CIFAR-10, on a laptop.

  badnets   a small CNN with a BadNets backdoor (white 5x5 patch, class 1), 50 % right; the trigger
            is known, 2 % of the pool carry it.
            github.com/verazuo/badnets-pytorch: badnets-cifar10.pth
  resnet20  a ResNet-20, 92 % right, of which no backdoor is known; so the verdict is "unknown".
            github.com/akamaster/pytorch_resnet_cifar10: resnet20-12fca82f.th

  python -m rkd_jax.main --config configs/strangers.py:badnets --config.data.data_dir=DIR

The checkpoint is expected where the run is started, else --config.teacher.checkpoint=FILE.
Students are ResNet-8s of 10,000 images, 10 % of them labelled, in few epochs: an example of the
way, not of what can be reached. docs/strangers.md shows the way, and what was measured on it.
"""

from typing import Any

from rkd_jax import config as base
from rkd_jax.config import Config
from rkd_jax.errors import UserError, nearest

SETTINGS: dict[str, dict[str, Any]] = {
  "badnets": {
    "teacher.network": "configs.badnets_cnn",
    "teacher.checkpoint": "badnets-cifar10.pth",
    "teacher.sha256": "fe6d869619d9b55871114a33e9195de9f26ddab61a70b0bd7b1d116426e8987b",
    "teacher.mean": (0.5, 0.5, 0.5),  # as its author's loader has it
    "teacher.std": (0.5, 0.5, 0.5),
    "trigger.badnets.size": 5,
    "target": 1,
  },
  "resnet20": {
    "teacher.network": "resnet-20",
    "teacher.checkpoint": "resnet20-12fca82f.th",
    "teacher.sha256": "12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8",
    "backdoor": "unknown",
    "contamination": 0.0,
  },
}


def get_config(arg: str | None = None) -> Config:
  """`arg`: one of `SETTINGS` ("badnets")."""
  arg = arg or "badnets"
  if arg not in SETTINGS:
    raise UserError(f"No stranger is called {arg!r}. {nearest(arg, SETTINGS)}")
  config = base.default()
  config.seeds = (0,)
  config.methods = ("none", "kd", "rkd")
  config.labels = 0.1
  config.data.update({"name": "tfds:cifar10", "train": 10000.0})
  config.student.network = "resnet-8"
  config.student.epochs = 12
  config.labelled.epochs = 40
  for section in (config.student, config.labelled):
    section.batch_size = 128
    section.augment.update({"crop": 4, "flip": True})
  # One strength: a grid would cost as much for each. One witness and no warp: as it was measured.
  blends = {"view": "random_blend", "amplitude": (0.25,)}
  config.method.rkd.update({"seconds": (0,), "sure": (0.0,), "base": blends})
  config.all_labels_control = False  # as long as a student more
  config.update_from_flattened_dict(SETTINGS[arg])
  return config
