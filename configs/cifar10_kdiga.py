"""KDIGA and its rivals on CIFAR-10, at the field's radii.

Source: KDIGA (Shao et al. 2021, arXiv 2110.12072), whose tables are not at hand; networks as in the
literature of adversarial distillation: a WRN-28-4 trained by PGD (Madry et al. 2018; 8/255, 10
steps), WRN-16-2 or ResNet-20 students, 200 epochs, SGD .1, cosine, batch 128, crops and flips. The
argument is the pair:

  a  WRN-28-4 -> WRN-16-2      b  WRN-28-4 -> ResNet-20
  s  WRN-16-2 -> WRN-16-1, 10,000 images, 15 epochs, 7 steps: for a CPU

  python -m rkd_jax.main --config configs/cifar10_kdiga.py:a --config.data.data_dir=DIR

DIR holds CIFAR-10 as TFDS prepares it in array_record format. All labels; AutoAttack on the first
1,000 test images beside PGD-20 at 2, 4 and 8/255. `kdiga` compares gradients by their difference,
`kdiga_cosine` by their direction, which is what works on digits (docs/robustness.md). Cost and
result: not measured yet.
"""

from rkd_jax import config as base
from rkd_jax.config import Config
from rkd_jax.errors import UserError, nearest

PAIRS = {
  "a": ("wideresnet-28-4", "wideresnet-16-2"),
  "b": ("wideresnet-28-4", "resnet-20"),
  "s": ("wideresnet-16-2", "wideresnet-16-1"),
}
EPS = 8 / 255
ATTACKING = ("pgd_at", "trades", "ard", "rslad", "iad", "adaad")


def get_config(arg: str | None = None) -> Config:
  """`arg`: one of `PAIRS`."""
  pair = arg or "s"
  if pair not in PAIRS:
    raise UserError(f"No pair is called {arg!r}. {nearest(pair, PAIRS)}")
  short = pair == "s"
  config = base.default()
  config.unlock()
  config.data.name = "tfds:cifar10"
  config.backdoor, config.contamination, config.labels = "none", 0.0, 1.0
  config.teacher.network, config.student.network = PAIRS[pair]
  config.teacher.method = "pgd_at"
  attack = {"eps": EPS, "steps": 7 if short else 10}
  for section in (config.teacher, config.student, config.labelled):
    section.update({"epochs": 15 if short else 200, "batch_size": 128})
    section.augment.update({"crop": 4, "flip": True})
  for name in (*ATTACKING, "kdiga"):
    config.method[name].update(attack)
  config.method.kdiga_adv = {"name": "kdiga", "kl_at": "adv", "align_at": "adv"} | attack
  cosine = {"name": "kdiga", "gradient_norm": "cosine", "weight": 10.0, "align_bn": "eval"}
  config.method.kdiga_cosine = cosine | attack
  config.method.igdm_rslad = {"name": "igdm", "base": {"name": "rslad", **attack}}
  config.methods = ("none", "kd", "kdiga", "kdiga_cosine", "kdiga_adv", *ATTACKING, "igdm_rslad")
  attacks = ("pgd-20",) if short else ("pgd-20", "autoattack")
  radii = (2 / 255, 4 / 255, EPS)
  config.eval.adversarial.update({"attacks": attacks, "eps": radii, "images": 1000})
  if short:
    config.seeds, config.data.train = (0,), 10000.0
    config.methods = ("none", "kd", "kdiga", "kdiga_cosine", "pgd_at", "rslad")
    config.eval.adversarial.images = 200
  return config
