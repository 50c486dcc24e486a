"""KDIGA (Shao et al. 2021, arXiv 2110.12072): distillation with input gradients aligned.

A student that only answers as a robust teacher does may lose the robustness; alignment teaches it
the slope of the teacher's loss in every pixel as well. The paper's code is not public; what follows
is its loss, with attacked variants as `kl_at` and `align_at`. Gradients are taken in pixels:
networks normalise inside, so teacher and student may do so differently.

Costs, with F the student's forward pass and T the teacher's: distillation 3F + T, this 6F + 2T
where passes are shared (alignment on the clean batch, normalised as in training).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from rkd_jax import losses
from rkd_jax.errors import UserError, check_range
from rkd_jax.methods import base, kd, robust

NORMS = ("l2", "squared", "l1", "cosine")
POINTS = ("clean", "adv")
LABELLED = ("label", "mix_label", "mix_weight")  # of a batch: what cross-entropy looks at
CLIP = 1.0  # norm of an update: without it the second derivatives of a fresh network blow up
ROUND = 1e-6  # rounds the norm's corner: where gradients are equal, so are theirs, and not NaN


@dataclasses.dataclass(frozen=True)
class Method(robust.Robust):
  """ce CE(S(x), y) + kl T^2 KL(T(x) || S(x)) + weight |J_S - J_T|, J = d CE(., y) / dx per example.

  x' below is the student's adversary, raising KL(T(x) || S(x')); it is looked for only where it is
  used. The teacher's answer is always that to the clean image.

  Attributes:
    ce, kl, weight: of the three terms, >= 0. Without `weight` nothing is aligned, nor computed.
    temperature: T > 0.
    gradient_norm: "l2" (sqrt(|.|^2 + 1e-12)), "squared", "l1", or "cosine" (1 - cos).
    kl_at: where the student answers, "clean" (x) or "adv" (x').
    align_at: where both gradients are taken, "clean" or "adv".
    align_bn: how the student normalises while its gradient is taken: "train" (by the batch; on
      clean images it is the pass that the other terms use; an image's gradient then also contains
      how it moves its neighbours) or "eval" (running statistics: its own alone, one pass more).
    label_free: y is the teacher's argmax everywhere, not only where a label is missing.
    every: align each n-th round only. Cheaper on accelerators, not on CPU.
    align_batch: align the first n examples of a batch only; 0: all.
  """

  ce: float = 1.0
  kl: float = 1.0
  weight: float = 1.0
  temperature: float = 4.0
  gradient_norm: str = "l2"
  kl_at: str = "clean"
  align_at: str = "clean"
  align_bn: str = "train"
  label_free: bool = False
  every: int = 1
  align_batch: int = 0

  def __post_init__(self):
    super().__post_init__()
    for field in ("ce", "kl", "weight"):
      check_range(f"kdiga.{field}", getattr(self, field), 0, 1e9)
    check_range("kdiga.temperature", self.temperature, 1e-3, 1e3)
    check_range("kdiga.every", self.every, 1, 10**9)
    check_range("kdiga.align_batch", self.align_batch, 0, 10**9)
    self._one_of("gradient_norm", NORMS)
    self._one_of("kl_at", POINTS)
    self._one_of("align_at", POINTS)
    self._one_of("align_bn", ("train", "eval"))
    if not self.ce + self.kl + self.weight:
      raise UserError("kdiga.ce, kl and weight are all 0: nothing would be learned. Raise one.")

  def roles(self, networks):
    roles = super().roles(networks)
    student = dataclasses.replace(roles["student"], optimizer={"clip": CLIP})
    return {**roles, "student": student}

  def attacks(self):
    aligned = self.weight > 0 and self.align_at == "adv"
    return aligned or (self.kl > 0 and self.kl_at == "adv")

  @property
  def cacheable(self):  # type: ignore[override]  # the clean image's answer and slope, neither of which asks its neighbours
    return not (self.attacks() or self.every > 1 or self.align_batch)

  def inner(self, variables, batch):
    answer = batch["answer"]
    return lambda images: losses.kl_divergence(answer, self.attacked(variables, images))

  def batch(self, key, variables, state, batch, step):
    if self.every > 1:
      now = jnp.where(step % self.every == 0, 1.0, 0.0)
      batch = {**batch, "align": jnp.broadcast_to(now, batch["label"].shape)}
    return super().batch(key, variables, state, batch, step) if self.attacks() else (batch, state)

  # Gradients.

  def _point(self, batch: base.Batch) -> jax.Array:
    """The images whose gradients are aligned, [n, H, W, C]."""
    images = batch["image" if self.align_at == "clean" else "adversarial"]
    return images[: self.align_batch or None]

  def _labels(self, batch: base.Batch, answer: jax.Array) -> base.Batch:
    """The batch with the y that both networks' gradients, and CE, are about."""
    if self.label_free:
      names = {"label", "mix_label"} & batch.keys()
      batch = {**batch, **{name: jnp.full_like(batch[name], -1) for name in names}}
    return kd.with_teachers_labels(batch, answer)

  def _when_due(self, batch: base.Batch, gradient: Any, instead: Any, images: jax.Array) -> Any:
    """gradient(images), or in the rounds between instead(images), which is cheaper.

    Not on CPU, where XLA runs convolutions inside a branch ten times slower than outside: there the
    gradient is always taken, and without weight between.
    """
    if self.every == 1 or jax.default_backend() == "cpu":
      return gradient(images)
    return jax.lax.cond(batch["align"][0] > 0, gradient, instead, images)

  def _worst(self, keys, variables, batch):
    found = super()._worst
    if self.kl and self.kl_at == "adv":
      return found(keys, variables, batch)
    attack = lambda _: found(keys, variables, batch)  # noqa: E731
    return self._when_due(batch, attack, lambda images: images, batch["image"])

  def targets(self, frozen, batch, key):
    if not self.weight:
      return {"answer": self._answer(frozen, batch)}

    def taught(images):
      return self.answer(frozen, images)

    if self.align_at == "clean" and not self.align_batch and self.every == 1:
      slope, answer = slopes(taught, batch["image"], lambda z: self._wrong(z, batch, z))
      return {"answer": answer, "slope": slope}
    answer = self._answer(frozen, batch)
    wrong = self._wrong_of(batch, answer)
    slope = self._when_due(
      batch, lambda x: slopes(taught, x, wrong)[0], jnp.zeros_like, self._point(batch)
    )
    return {"answer": answer, "slope": slope}

  def _answer(self, frozen, batch):
    return batch["answer"] if "answer" in batch else self.answer(frozen, batch["image"])

  def _wrong(self, logits, batch, answer):
    """float[B]: the cross-entropy whose gradient is aligned."""
    return losses.mixed_cross_entropy(logits, self._labels(batch, jax.lax.stop_gradient(answer)))[0]

  def _wrong_of(self, batch, answer):
    """The same of the part of the batch that is aligned, as a function of its logits."""
    part = self.align_batch or None
    batch = {name: batch[name][:part] for name in LABELLED if name in batch}
    return lambda logits: self._wrong(logits, batch, answer[:part])

  def loss(self, player, variables, state, batch, targets, key, step):
    student, answer = variables["student"], targets["answer"]

    def passed(images):
      outputs, stats = student(images, train=True, key=key)
      return outputs.logits, stats

    slope, (clean, stats) = self._seen(passed, student, batch, answer, key)
    value, weight = losses.mixed_cross_entropy(clean, self._labels(batch, answer))
    said = clean if self.kl_at == "clean" or not self.kl else passed(batch["adversarial"])[0]
    soft = losses.kl_divergence(answer, said, self.temperature)
    terms = {"ce": (self.ce * value, weight), "kl": robust.everyone(self.kl * soft)}
    metrics = {}
    if slope is not None:
      terms["align"], metrics["gradient_gap"] = self._aligned(slope, targets["slope"], batch)
    return terms, base.Aux(batch_stats={"student": stats}, metrics=metrics)

  def _seen(self, passed, student, batch, answer, key):
    """(the student's gradients, (its logits of the clean images, its new statistics)).

    In one pass where it is the same pass; the gradients are None where nothing is aligned.
    """
    if not self.weight:
      return None, passed(batch["image"])
    wrong = self._wrong_of(batch, answer)
    train = self.align_bn == "train"
    if train and self.align_at == "clean" and not self.align_batch and self.every == 1:
      return slopes(passed, batch["image"], lambda found: wrong(found[0]))

    def gradient(images):
      return slopes(lambda x: student(x, train=train, key=key)[0].logits, images, wrong)[0]

    slope = self._when_due(batch, gradient, jnp.zeros_like, self._point(batch))
    return slope, passed(batch["image"])

  def _aligned(self, own: jax.Array, wanted: jax.Array, batch: base.Batch) -> tuple[Any, Any]:
    """The term, and the gap for the log: [B] each, without weight where nothing is aligned."""
    value = gap(own, wanted, self.gradient_norm)
    weight = jnp.ones_like(value)
    if self.every > 1:
      weight = weight * batch["align"][: len(value)]
    rest = len(batch["label"]) - len(value)
    value, weight = (jnp.pad(x, (0, rest)) for x in (value, weight))
    return (self.weight * value, weight), (value, weight)


def slopes(network: Any, images: jax.Array, wrong: Any) -> tuple[jax.Array, Any]:
  """(each example's gradient of its loss in its pixels, what the network returned).

  It is the gradient of the SUM over the batch, so it depends neither on the batch's size nor on the
  number of devices.

  Args:
    network: images float[B, H, W, C] -> whatever `wrong` takes.
    wrong: that -> float[B], the loss.
  """

  def total(images):
    found = network(images)
    return wrong(found).sum(), found

  return jax.grad(total, has_aux=True)(images)


def gap(a: jax.Array, b: jax.Array, norm: str) -> jax.Array:
  """float[B]: how far two gradients float[B, H, W, C] are apart.

  Differentiable with a finite gradient, also where both are equal or one is 0.

  Args:
    norm: one of `NORMS`.
  """
  a, b = (x.astype(jnp.float32).reshape(len(x), -1) for x in (a, b))
  if norm == "l1":
    return jnp.abs(a - b).sum(-1)
  if norm == "cosine":
    lengths = [jnp.sqrt(jnp.square(x).sum(-1) + ROUND**2) for x in (a, b)]
    return 1 - (a * b).sum(-1) / (lengths[0] * lengths[1])
  squared = jnp.square(a - b).sum(-1)
  return squared if norm == "squared" else jnp.sqrt(squared + ROUND**2)
