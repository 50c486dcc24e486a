"""Trigger inversion: per class, the smallest mask and pattern that send images there.

Neural Cleanse (Wang et al. 2019) for all classes at once. The class that needs the smallest mask is
the suspect; on a clean network some class does too, so this is a suspicion and no verdict.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from rkd_jax import losses
from rkd_jax.errors import check_range
from rkd_jax.methods import base


@dataclasses.dataclass(frozen=True)
class Method(base.Method):
  """min over M_k, t_k: CE(T((1 - M_k) x + M_k t_k), k) + cost |M_k|_1, without images of class k.

  Delivers the suspected class's trigger, "suspect": mask float[H, W, 1] and pattern float[H, W, C]
  in [0, 1]; and |M_k|_1 of every class, "norms" float[K].

  Attributes:
    cost: of the mask, per pixel.
    steps, batch_size: of the search; each step asks the teacher about batch_size images per class.
    learning_rate: of Adam.
  """

  cost: float = 0.01
  steps: int = 150
  batch_size: int = 16
  learning_rate: float = 0.1
  turns: ClassVar = (("suspect", 1),)
  delivers: ClassVar = {"suspect": "suspect", "norms": "suspect"}
  part: ClassVar = "labelled"

  def __post_init__(self):
    check_range("inversion.cost", self.cost, 0, 1e6)
    check_range("inversion.steps", self.steps, 1, 10**9)
    check_range("inversion.batch_size", self.batch_size, 1, 10**6)

  def roles(self, networks):
    adam = {"name": "adam", "learning_rate": self.learning_rate, "weight_decay": 0.0, "b1": 0.5}
    suspect = base.Role(player="suspect", optimizer=adam, init=self._draw)
    return {"teacher": base.Role(base.network(networks, "teacher")), "suspect": suspect}

  def _draw(self, key, made, example):
    mask, pattern = jax.random.split(key)
    height, width, channels = example.batch["image"].shape[1:]
    return {
      "mask": jax.random.normal(mask, (example.classes, height, width, 1)),
      "pattern": jax.random.normal(pattern, (example.classes, height, width, channels)),
    }

  def loss(self, player, variables, state, batch, targets, key, step):
    mask, pattern = (jax.nn.sigmoid(variables["suspect"][name]) for name in ("mask", "pattern"))
    classes, images = len(mask), batch["image"]
    seen = (1 - mask)[:, None] * images[None] + (mask * pattern)[:, None]
    logits = variables["teacher"](seen.reshape(-1, *images.shape[1:]), train=False)[0].logits
    goals = jnp.repeat(jnp.arange(classes), len(images))
    value = losses.cross_entropy(logits, goals)
    weight = (jnp.tile(batch["label"], classes) != goals).astype(value.dtype)
    hit = (logits.argmax(-1) == goals).astype(value.dtype)
    terms = {"flip": (value, weight), "size": self.cost * mask.sum((1, 2, 3)).mean()}
    return terms, base.Aux(metrics={"train_asr": (hit, weight)})

  def predict(self, variables, state, images):
    return variables["teacher"](images, train=False)[0].logits

  def deliver(self, variables, state):
    mask, pattern = (jax.nn.sigmoid(variables["suspect"][name]) for name in ("mask", "pattern"))
    norms = mask.sum((1, 2, 3))
    who = norms.argmin()
    return {"suspect": {"mask": mask[who], "pattern": pattern[who]}, "norms": norms}
