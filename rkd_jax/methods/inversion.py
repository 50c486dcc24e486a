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
    return untallied(example.classes)

  def _draw(self, key, made, example):
    mask, pattern = jax.random.split(key)
    height, width, channels = example.batch["image"].shape[1:]
    return {
      "mask": jax.random.normal(mask, (example.classes, height, width, 1)),
      "pattern": jax.random.normal(pattern, (example.classes, height, width, channels)),
    }

  def loss(self, player, variables, state, batch, targets, key, step):
    mask, pattern = (jax.nn.sigmoid(variables["suspect"][name]) for name in ("mask", "pattern"))
    seen = (1 - mask)[:, None] * batch["image"][None] + (mask * pattern)[:, None]
    value, weight, hit = flips(variables["teacher"], seen, batch["label"])
    terms = {"flip": (value, weight), "size": self.cost * mask.sum((1, 2, 3)).mean()}
    aux = base.Aux(state=tallied(state, weight, hit), metrics={"train_asr": (hit, weight)})
    return terms, aux

  def predict(self, variables, state, images):
    return variables["teacher"](images, train=False)[0].logits

  def deliver(self, variables, state):
    mask, pattern = (jax.nn.sigmoid(variables["suspect"][name]) for name in ("mask", "pattern"))
    norms, rates = mask.sum((1, 2, 3)), rates_of(state)
    who = suspected(norms, rates, self.success)
    suspect = {"mask": mask[who], "pattern": pattern[who]}
    return {"suspect": suspect, "norms": norms, "rates": rates}


# What every search has that seeks a change into each class at once.


def flips(
  network: base.Bound, seen: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(cross-entropy into the class, 1 where the image is not of it anyway, 1 where it gets there).

  Args:
    seen: float[K, B, H, W, C]: every image with each class's change.
    labels: int[B].

  Returns:
    float[K B] each, class by class.
  """
  logits = network(seen.reshape(-1, *seen.shape[2:]), train=False)[0].logits
  goals = jnp.repeat(jnp.arange(len(seen)), seen.shape[1])
  value = losses.cross_entropy(logits, goals)
  weight = (jnp.tile(labels, len(seen)) != goals).astype(value.dtype)
  return value, weight, (logits.argmax(-1) == goals).astype(value.dtype)


def untallied(classes: int) -> dict[str, jax.Array]:
  return {"hits": jnp.zeros(classes), "count": jnp.zeros(classes)}


def tallied(known: dict[str, jax.Array], weight: jax.Array, hit: jax.Array) -> dict[str, jax.Array]:
  """{"hits", "count"} float[K] after a step of these `flips`; earlier ones fade."""
  more = {"hits": hit * weight, "count": weight}
  return {n: FADE * known[n] + more[n].reshape(len(known[n]), -1).sum(1) for n in more}


def rates_of(known: dict[str, jax.Array]) -> jax.Array:
  """float[K]: how often each class's change worked of late."""
  return known["hits"] / jnp.maximum(known["count"], 1e-6)


def suspected(sizes: jax.Array, rates: jax.Array, success: float) -> jax.Array:
  """The class of the smallest change that works; where none does, of the one that works best."""
  works = rates >= success
  return jnp.where(works.any(), jnp.where(works, sizes, jnp.inf).argmin(), rates.argmax())
