"""Trigger inversion: per class, the smallest mask and pattern that send images there.

Neural Cleanse (Wang et al. 2019) for all classes at once. The suspect is the class of the smallest
mask among those whose trigger works; on a clean network some class is too, so this is a suspicion
and no verdict.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from rkd_jax import losses
from rkd_jax.errors import check_range
from rkd_jax.methods import base

FADE = 0.9  # what a step keeps of the earlier ones' hits


@dataclasses.dataclass(frozen=True)
class Method(base.Method):
  """min over M_k, t_k: CE(T((1 - M_k) x + M_k t_k), k) + cost |M_k|_1, without images of class k.

  Delivers the suspected class's trigger, "suspect": mask float[H, W, 1] and pattern float[H, W, C]
  in [0, 1]; and of every class |M_k|_1, "norms" float[K], and how often its trigger worked of late,
  "rates" float[K]. Where none works the suspect is the class whose trigger works best.

  Attributes:
    cost: of the mask, per pixel.
    success: the rate from which on a trigger works, in [0, 1].
    steps: of the search.
    batch_size: how many images per class each step asks the teacher about.
    learning_rate: of Adam.
  """

  cost: float = 0.01
  success: float = 0.9
  steps: int = 150
  batch_size: int = 16
  learning_rate: float = 0.1
  turns: ClassVar = (("suspect", 1),)
  delivers: ClassVar = {"suspect": "suspect", "norms": "suspect", "rates": "hits"}
  part: ClassVar = "labelled"

  def __post_init__(self):
    check_range("inversion.cost", self.cost, 0, 1e6)
    check_range("inversion.success", self.success, 0, 1)
    check_range("inversion.steps", self.steps, 1, 10**9)
    check_range("inversion.batch_size", self.batch_size, 1, 10**6)

  def trains(self):
    return {"steps": self.steps, "batch_size": self.batch_size}

  def roles(self, networks):
    adam = {"name": "adam", "learning_rate": self.learning_rate, "weight_decay": 0.0, "b1": 0.5}
    adam |= {"schedule": "constant"}
    suspect = base.Role(player="suspect", optimizer=adam, init=self._draw)
    return {"teacher": base.Role(base.network(networks, "teacher")), "suspect": suspect}

  def init_state(self, key, variables, example):
    return {"hits": jnp.zeros(example.classes), "count": jnp.zeros(example.classes)}

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
    more = {"hits": hit * weight, "count": weight}
    state = {n: FADE * state[n] + more[n].reshape(classes, -1).sum(1) for n in more}
    return terms, base.Aux(state=state, metrics={"train_asr": (hit, weight)})

  def predict(self, variables, state, images):
    return variables["teacher"](images, train=False)[0].logits

  def deliver(self, variables, state):
    mask, pattern = (jax.nn.sigmoid(variables["suspect"][name]) for name in ("mask", "pattern"))
    norms, rates = mask.sum((1, 2, 3)), state["hits"] / jnp.maximum(state["count"], 1e-6)
    works = rates >= self.success
    who = jnp.where(works.any(), jnp.where(works, norms, jnp.inf).argmin(), rates.argmax())
    suspect = {"mask": mask[who], "pattern": pattern[who]}
    return {"suspect": suspect, "norms": norms, "rates": rates}
