"""Distillation without any data from a poisoned teacher, undefended and with ABD: minutes on a CPU.

Someone has a teacher and no data. A generator seeks images on which student and teacher differ
(ZSKT), and digs up the teacher's backdoor with what it knows; ABD guards both. Here: scikit-learn's
digits (16x16), WRN-16-2 teachers, WRN-10-1 students. The argument is TRIGGER or cmi-TRIGGER:

  badnets        a white 3x3 patch in the corner
  badnets_grid   a chequered one
  trojan_wm      a watermark added over much of the image
  blended        a fixed noise image mixed in

Methods: ZSKT undefended, or CMI (not measured yet); ABD around it with its perturbation sought as
published; ABD with one sought by class (docs/abd.md says why).

  python -m rkd_jax.main --config configs/digits_abd.py:trojan_wm
  python -m rkd_jax.main --config configs/digits_abd.py:cmi-badnets --config.seeds=0,1,2

Nothing is labelled, so there is no student without a teacher but the one that shows the trigger's
natural rate, taught on all labels.
"""

from rkd_jax import config as base
from rkd_jax.config import Config
from rkd_jax.errors import UserError, nearest

TRIGGERS = ("badnets", "badnets_grid", "trojan_wm", "blended")
BASES = ("zskt", "cmi")


def get_config(arg: str | None = None) -> Config:
  """`arg`: TRIGGER or BASE-TRIGGER, of `TRIGGERS` and `BASES`; zskt-badnets if none."""
  name, _, trigger = (arg or "badnets").rpartition("-")
  if trigger not in TRIGGERS or name not in ("", *BASES):
    raise UserError(
      f"digits_abd takes TRIGGER or BASE-TRIGGER, but got {arg!r}. Bases: {', '.join(BASES)}. "
      f"{nearest(trigger, TRIGGERS)}"
    )
  config = base.default()
  config.data.update({"name": "digits", "holdout": 197.0, "test": 500.0})
  config.backdoor, config.labels, config.contamination = trigger, 0.0, 0.0
  config.teacher.epochs = 8
  config.student.update({"steps": 200, "rounds_per_epoch": 25})
  config.clean_teacher_seeds = 1
  config.methods = ("zskt", "abd_published", "abd")
  shorten(config)
  by_class(config, rounds=250, published=20)
  if name == "cmi":
    pooled(config, name)
  return config


def pooled(config: Config, name: str) -> None:
  """CMI in ZSKT's place: a hundred steps of its generator a round, and a hundred of the student."""
  config.methods = (name, *config.methods[1:])
  config.student.update({"steps": 10, "rounds_per_epoch": 1})
  config.save_every = 1  # a round is two hundred steps
  config.method[name].update({"width": 32, "searches": 100, "students": 100})
  config.method.abd.update({"base": name, "rounds": 6})
  literal = config.method.abd_published.retrospection.to_dict()
  # as the published program for CMI, whose divergence is in nats
  literal |= {"detach": False, "search_decay": 0.0, "decay": 1e-3, "inner_rate": 0.1}
  config.method.vaccine.penalty = 0.1
  literal = {"name": "abd", "base": name, "rounds": 1, "retrospection": literal}
  del config.method.abd_published
  config.method.abd_published = literal
  config.method.retrospection.ascents = 60


def shorten(config: Config) -> None:
  """What lets a few hundred rounds do in place of 80,000: a slim generator that is told what its
  images must be like. The vaccine works from the start, as published for CIFAR-10."""
  config.method.zskt.update({"width": 32, "balance": 1.0, "statistics": 1.0})
  config.method.zskt.update({"reduction": "batchmean", "attention": 100.0})
  config.method.vaccine.trials = 0


def by_class(config: Config, rounds: int, published: int, classes: int = 10) -> None:
  """`abd` seeks its perturbation by class, for so many rounds; `abd_published` as published."""
  config.unlock()
  if config.method.zskt.reduction == "batchmean":
    in_nats(config, classes)
  literal = {"name": "retrospection"} | config.method.retrospection.to_dict()
  config.method.abd_published = {"name": "abd", "rounds": published, "retrospection": literal}
  config.method.abd.rounds = rounds
  config.method.retrospection.update({"search": "classes", "guard": 2.0, "ascents": 5})
  config.method.retrospection.radius = 1.25
  config.method.retrospection.update({"share": 0.3, "weight": 3.3, "student_rate": 1e-3})


def in_nats(config: Config, classes: int) -> None:
  """The published divergence is a mean over the classes, T^2 K times less than one in nats: what
  stands beside it, in the vaccine and in the inner problem of retrospection, takes its share."""
  more = classes * config.method.zskt.temperature**2
  config.method.vaccine.penalty *= more
  config.method.retrospection.inner_rate /= more
  config.method.retrospection.decay *= more
  config.method.retrospection.search_decay *= more
