"""ABD's setting on CIFAR-10: WRN-16-2 -> WRN-16-1 without any data, and a shortened schedule.

Source: table 1 and the code of ABD (arXiv 2306.02368): 10 % poisoned, target 0, teachers of 200
epochs (SGD .1, cosine, batch 128, weight decay 5e-4); ZSKT of 80,000 rounds of 128 (Adam, student
2e-3, generator 1e-3, KL's mean over classes, attention 250), the vaccine all along without its
check, then 600 rounds of retrospection: `abd_published`; `abd` seeks its perturbation by class. The
argument is TRIGGER, before it any of "short-", "cmi-" (CMI of 200 rounds in ZSKT's place), "gtsrb-"
(traffic signs: target 1, 10,000 rounds, KL at temperature .5, no attention, the vaccine checked):

  badnets_grid   chequered 3x3 patch           trojan_wm   a watermark, our own drawing
  badnets        white 4x4 patch, 1 px in      blended     a noise image, share .2
  sig            a sinusoid, on half of the target class

The published table also has Trojan 3x3 and 8x8, l2_inv and l0_inv, whose pattern files are their
authors', and clean-label, whose images are attacked first. "short": 16x16, 20,000 images, 16
epochs, 2,000 rounds of 64 (CMI: 10, of half the generator's and a quarter of the student's steps),
generator of half the width; ZSKT's is told what images must be like (balance, statistics).

  python -m rkd_jax.main --config configs/cifar10_abd.py:badnets_grid --config.data.data_dir=DIR
  python -m rkd_jax.main --config configs/cifar10_abd.py:short-cmi-sig --config.data.data_dir=DIR

DIR holds CIFAR-10 as TFDS prepares it in array_record format, or the folder gtsrb32. Measured are
short-trojan_wm, -badnets_grid, -blended and short-gtsrb-trojan_wm, two hours of a core each
(docs/abd.md).
"""

from configs import digits_abd
from rkd_jax import config as base
from rkd_jax.config import Config
from rkd_jax.errors import UserError, nearest

TRIGGERS = ("badnets_grid", "trojan_wm", "blended", "badnets", "sig")
KINDS = ("short", "cmi", "gtsrb")


def get_config(arg: str | None = None) -> Config:
  """`arg`: TRIGGER, after any of `KINDS`, with hyphens; badnets_grid if none."""
  *kinds, trigger = (arg or "badnets_grid").split("-")
  if trigger not in TRIGGERS or not set(kinds) <= set(KINDS):
    raise UserError(
      f"cifar10_abd takes TRIGGER after any of {', '.join(f'{k}-' for k in KINDS)}, but got "
      f"{arg!r}. {nearest(trigger, TRIGGERS)}"
    )
  short, cmi, signs = (kind in kinds for kind in KINDS)
  config = base.default()
  config.data.name = "tfds:cifar10"
  config.backdoor, config.labels, config.contamination = trigger, 0.0, 0.0
  config.trigger.badnets.update({"size": 4, "margin": 1})
  config.teacher.update({"network": "wideresnet-16-2", "epochs": 200, "batch_size": 128})
  config.teacher.augment.update({"crop": 4, "flip": True})
  if trigger == "sig":  # half of the target class
    config.teacher.update({"plan": "target_only", "poison": 0.025 if signs else 0.05})
  config.student.update({"network": "wideresnet-16-1", "batch_size": 128, "steps": 80_000})
  config.student.rounds_per_epoch = 1000
  config.methods, config.clean_teacher_seeds = ("zskt", "abd_published", "abd"), 1
  config.method.vaccine.trials = 0
  if short:
    config.data.update({"train": 20000.0, "size": 16})
    config.teacher.epochs = 16
    config.teacher.augment.crop = 2
    config.student.update({"batch_size": 64, "steps": 2000, "rounds_per_epoch": 100})
    config.clean_teacher_seeds, config.all_labels_control = 0, False
    digits_abd.shorten(config)
  rounds, published = (300, 50) if short else (10_000, 600)
  if signs:
    rounds, published = (500, 50) if short else (1250, 200)
    traffic_signs(config, short)
  digits_abd.two_ways(config, rounds, published, classes=43 if signs else 10)
  # the guard ruins the student here: docs/abd.md
  config.method.unlearning.update({"guard": 0.0, "shown": 1.0, "radius": 2.5})
  config.method.unlearning.update({"student_rate": 5e-4, "share": 0.2, "weight": 5.0})
  if cmi:
    digits_abd.pooled(config, "cmi")
    config.method.cmi.jitter = not signs
  if cmi and not short:
    config.student.update({"batch_size": 256, "steps": 200})
    # statistics: published as a sum over WRN-16-2's 13 BatchNorms, here a mean
    config.method.cmi.update({"width": 64, "searches": 200, "students": 400, "statistics": 13.0})
    config.method.abd.rounds, config.method.abd_published.rounds = 60, 3
  return config


def traffic_signs(config: Config, short: bool) -> None:
  """GTSRB in CIFAR-10's place, with what the published code has otherwise there."""
  config.data.update({"name": "folder:gtsrb32", "holdout": 0.1, "train": 0.0})
  config.target = 1
  config.teacher.augment.update({"crop": 2, "flip": False})
  config.method.zskt.update({"temperature": 0.5, "attention": 0.0})
  config.method.vaccine.trials = 8
  config.method.unlearning.searched = 4  # for each of 43 classes
  if not short:
    config.student.steps = 10_000
