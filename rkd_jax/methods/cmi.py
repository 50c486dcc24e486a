"""CMI: inversion by a generator whose images shall differ from all that were made before.

Contrastive model inversion (Fang et al. 2021, arXiv:2105.08584): a round draws a generator and its
noise anew and trains both on the teacher's BatchNorm statistics, random classes, what the student
does not know yet, and a contrast to earlier images, whose embeddings a bank remembers. The round's
best batch goes into a pool that the student learns from, its embeddings into the bank.

Otherwise than in the published code: an embedding is what the teacher's last layer reads, there all
BatchNorms' statistics; statistics, class and divergence are those of the images as they are, there
of moved ones; `datafree.statistics_gap` is a mean over BatchNorms, there a sum.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from rkd_jax import losses
from rkd_jax.errors import check_range
from rkd_jax.methods import base, datafree, pooled
from rkd_jax.models.generator import Generator, fresh


class Head(nn.Module):
  """Embeddings float[N, D] -> unit vectors float[N, width], by two dense layers."""

  width: int = 256

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = nn.Dense(self.width)(nn.relu(nn.Dense(self.width)(x)))
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)


@dataclasses.dataclass(frozen=True)
class Method(pooled.Pooled):
  """Generator: statistics * BN gap + CE(T, random class) - adversarial * KL(T || S) where both say
  the same + contrast * InfoNCE.

  Attributes:
    statistics: weight of `datafree.statistics_gap`.
    adversarial: weight of the divergence of teacher and student, where their classes agree.
    contrast: weight of the contrastive term.
    sharpness: temperature of the contrastive term.
    bank: embeddings that are remembered.
    negatives: of those how many an image is contrasted with at a step, at most.
    noise: numbers that an image is made from.
    width: of the generator.
  """

  statistics: float = 1.0
  adversarial: float = 0.5
  contrast: float = 0.8
  sharpness: float = 0.1
  bank: int = 40_960
  negatives: int = 4096
  noise: int = 256
  width: int = 64

  def __post_init__(self):
    super().__post_init__()
    for field in ("statistics", "adversarial", "contrast"):
      check_range(f"cmi.{field}", getattr(self, field), 0, 1e6)
    for field in ("bank", "negatives", "noise"):
      check_range(f"cmi.{field}", getattr(self, field), 1, 10**7)
    check_range("cmi.sharpness", self.sharpness, 1e-3, 1e3)

  def roles(self, networks):
    roles, player = super().roles(networks), "generator"
    teacher, adam = roles["teacher"].module, self.adam
    generator = Generator(teacher.image_shape, self.width)
    size = teacher.shapes().embedding.shape[-1]
    return {
      **roles,
      "generator": base.Role(generator, player, adam, init=fresh(generator, self.noise)),
      "noise": base.Role(None, player, adam, init=self._noise),
      "head": base.Role(Head(), player, {**adam, "b1": 0.9}, init=_head(size)),
    }

  def _noise(self, key, made, example):
    return jax.random.normal(key, (example.batch["image"].shape[0], self.noise))

  def reset(self, epoch):
    return ("generator", "noise")

  def init_state(self, key, variables, example):
    size = variables["teacher"].module.shapes().embedding.shape[-1]
    said = jnp.zeros((example.batch["image"].shape[0], size))
    bank = {"bank": jnp.zeros((self.bank, size)), "embedding": said}
    return super().init_state(key, variables, example) | bank

  def batch(self, key, variables, state, batch, step):
    bank = remembered(state["bank"], state["embedding"], step - 1)
    bank = jnp.where(step > 0, bank, state["bank"])
    return super().batch(key, variables, {**state, "bank": bank}, batch, step)

  def made(self, variables):
    return variables["generator"](variables["noise"])

  def loss(self, player, variables, state, batch, targets, key, step):
    images = self.images(player, variables, state, batch, key)
    if player == "student":
      return self.taught_by(variables, images, key)
    outputs = variables["teacher"](images, train=False, capture=True)[0]
    value, ones = losses.cross_entropy(outputs.logits, batch["label"]), jnp.ones(len(images))
    terms: dict[str, Any] = {"ce": (value, ones)}
    terms["statistics"] = self.statistics * datafree.statistics_gap(variables["teacher"], outputs)
    terms["adversarial"] = (-self.adversarial * self._unknown(variables, images, outputs), ones)
    apart = self._contrast(variables, state, batch, images, outputs, key)
    terms["contrast"] = (self.contrast * apart, ones)
    whole = sum(t[0].mean() if isinstance(t, tuple) else t for t in terms.values())
    new = self.kept(state, images, jnp.asarray(whole), batch)
    said = jax.lax.stop_gradient(outputs.embedding)
    said = jnp.where(new["best"] < state["best"], said, state["embedding"])
    return terms, base.Aux(state={**new, "embedding": said})

  def _unknown(self, variables, images, outputs):
    """float[B]: KL(T || S), 0 where the two name different classes. Published: at T = 1."""
    logits = variables["student"](images, train=False)[0].logits
    agree = outputs.logits.argmax(-1) == logits.argmax(-1)
    return losses.kl_divergence(outputs.logits, logits) * agree

  def _contrast(self, variables, state, batch, images, outputs, key):
    """float[B]: an image's other view against the other images and some of earlier rounds'."""
    view, some = jax.random.split(key)
    shown = pooled.jittered(view, images)
    embedding = variables["teacher"](shown, train=False)[0].embedding
    count = min(self.negatives, self.bank)
    filled = jnp.minimum(batch["round"] * len(images), self.bank)
    rows = jax.random.randint(some, (count,), 0, jnp.maximum(filled, 1))
    known = jnp.concatenate([embedding, state["bank"][rows]])
    there = jnp.concatenate([jnp.ones(len(images), bool), jnp.arange(count) < filled])
    anchors, others = variables["head"](outputs.embedding), variables["head"](known)
    return info_nce(anchors, others, there, self.sharpness)


def _head(size: int):
  return lambda key, made, example: Head().init(key, jnp.zeros((1, size)))


def info_nce(
  anchors: jax.Array, others: jax.Array, there: jax.Array, temperature: float
) -> jax.Array:
  """float[B]: -log softmax(anchor . others / temperature) at the anchor's own partner.

  Args:
    anchors: float[B, D], unit vectors.
    others: float[B + M, D]: the partners in order, then whatever else they shall differ from.
    there: bool[B + M], which of the others count.
  """
  likeness = jnp.where(there, anchors @ others.T / temperature, -1e9)
  return losses.cross_entropy(likeness, jnp.arange(len(anchors)))


def remembered(bank: jax.Array, embeddings: jax.Array, round_: jax.Array) -> jax.Array:
  """The bank float[N, D] as a ring: the round's rows hold the embeddings of its best batch."""
  count = min(len(embeddings), len(bank))
  rows = (round_ * count + jnp.arange(count)) % len(bank)
  return bank.at[rows].set(embeddings[:count])
