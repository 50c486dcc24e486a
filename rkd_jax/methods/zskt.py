"""ZSKT: a generator seeks images on which student and teacher differ; the student learns them.

Zero-shot knowledge transfer (Micaelli & Storkey 2019, arXiv:1905.09768). A round is one batch of
noise: a step of the generator, then ten of the student on what the generator now makes of it. These
images, and what the teacher says of them, are the same in all ten, so they are computed once.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from rkd_jax import losses
from rkd_jax.errors import UserError, check_range
from rkd_jax.methods import base, datafree
from rkd_jax.models.generator import Generator, fresh

ADAM = {"name": "adam", "weight_decay": 0.0, "schedule": "cosine", "clip": 5.0}


@dataclasses.dataclass(frozen=True)
class Method(datafree.DataFree):
  """Generator: -KL(T || S). Student: KL(T || S) + attention * mean over stages of AT.

  The published code takes the KL's mean over the classes too ("mean"), which makes the attention
  term K times heavier.

  Attributes:
    attention: weight of attention transfer (`losses.attention_transfer`), summed over the stages.
    balance: of -H(mean answer), with which the generator covers all classes (DAFL, Chen et al.
      2019, eq. 5); published: 0. A few hundred rounds need it.
    statistics: of the gap to the teacher's BatchNorm statistics (DeepInversion, Yin et al. 2020,
      eq. 4), which keeps its images near what the teacher saw; published: 0.
    students: steps of the student a round.
    noise: numbers that an image is made from.
    width: of the generator.
    generator_rate: learning rate of its Adam.
    student_rate: of the student's.
  """

  reduction: str = "mean"
  attention: float = 250.0
  balance: float = 0.0
  statistics: float = 0.0
  students: int = 10
  noise: int = 100
  width: int = 64
  generator_rate: float = 1e-3
  student_rate: float = 2e-3
  delivers: ClassVar = {"student": "student", "generator": "generator"}
  settles: ClassVar = True

  def __post_init__(self):
    super().__post_init__()
    for field in ("attention", "balance", "statistics"):
      check_range(f"zskt.{field}", getattr(self, field), 0, 1e6)
    for field in ("students", "noise"):
      check_range(f"zskt.{field}", getattr(self, field), 1, 10**5)

  @property
  def turns(self):  # type: ignore[override]
    return (("generator", 1), ("student", self.students))

  def roles(self, networks):
    roles = super().roles(networks)
    teacher, student = roles["teacher"].module, roles["student"].module
    if self.attention:
      check_stages(teacher, student)
    if self.statistics:
      datafree.require_norms("zskt.statistics", teacher)
    generator = Generator(teacher.image_shape, self.width, teacher.mean, teacher.std)
    rates = ADAM | {"learning_rate": self.student_rate}
    roles["student"] = dataclasses.replace(roles["student"], optimizer=rates)
    rates = ADAM | {"learning_rate": self.generator_rate}
    init = fresh(generator, self.noise)
    return {**roles, "generator": base.Role(generator, "generator", rates, init=init)}

  def init_state(self, key, variables, example):
    return {"noise": jnp.zeros((example.batch["image"].shape[0], self.noise))}

  def batch(self, key, variables, state, batch, step):
    drawn = {"noise": jax.random.normal(key, state["noise"].shape)}
    return drawn, drawn

  def shared(self, player, variables, state, batch, targets, key, step):
    if player == "generator":
      return batch
    images = variables["generator"](batch["noise"])
    outputs, _ = variables["teacher"](images, train=False)
    maps = [losses.attention_map(feature) for feature in outputs.features.values()]
    return {"image": images, "answer": outputs.logits, "maps": maps if self.attention else []}

  def images(self, player, variables, state, batch, key):
    return batch["image"] if player == "student" else variables["generator"](batch["noise"])

  def loss(self, player, variables, state, batch, targets, key, step):
    images = self.images(player, variables, state, batch, key)
    outputs, stats = variables["student"](images, train=True, key=key)
    if player == "generator":
      return self._seeking(variables["teacher"], images, outputs.logits), base.Aux()
    value, same = self.divergence(batch["answer"], outputs.logits), jnp.ones(len(images))
    agree = (outputs.logits.argmax(-1) == batch["answer"].argmax(-1)).astype(value.dtype)
    terms: dict[str, Any] = {"kl": (value, same)}
    if self.attention:
      gaps = zip(outputs.features.values(), batch["maps"], strict=True)
      apart = sum(jnp.square(losses.attention_map(own) - known).mean(-1) for own, known in gaps)
      terms["attention"] = (self.attention * apart, same)
    return terms, base.Aux(batch_stats={"student": stats}, metrics={"agreement": agree})

  def _seeking(self, teacher, images, logits):
    """The generator's terms."""
    answer = teacher(images, train=False, capture=bool(self.statistics))[0]
    value = self.divergence(answer.logits, logits)
    terms: dict[str, Any] = {"adversarial": (-value, jnp.ones_like(value))}
    if self.balance:
      terms["balance"] = self.balance * datafree.imbalance(answer.logits)
    if self.statistics:
      terms["statistics"] = self.statistics * datafree.statistics_gap(teacher, answer)
    return terms

  def invent(self, key, variables, state, count):
    size = len(state["noise"])  # as many at once as in training: it normalises by its batch
    noise = jax.random.normal(key, (-(-count // size), size, self.noise))
    images = jax.lax.map(lambda batch: variables["generator"](batch), noise)
    return images.reshape(-1, *images.shape[2:])[:count]


def check_stages(teacher, student):
  """Raises a `UserError` where attention maps of the two networks cannot be compared."""
  sides = [[f.shape[1:3] for f in net.shapes().features.values()] for net in (teacher, student)]
  if sides[0] != sides[1]:
    raise UserError(
      f"Attention transfer compares the stages of teacher and student one by one; their sides are "
      f"{sides[0]} and {sides[1]}. Choose a student of the teacher's kind, or attention=0."
    )
