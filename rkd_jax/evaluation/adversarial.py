"""Finished networks under attack: what they say of test images that were changed against them.

Some test images, of every class as many, are attacked by attacks of `adversarial/`, each network
with the same random draws. What is saved is the class that a network says of each changed image, so
that every accuracy can be counted again; and, where the config asks for the analysis, one number an
image of each term.
"""

import dataclasses
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rkd_jax.adversarial import analysis, autoattack, ball, named
from rkd_jax.data import lazy, seeds, splits
from rkd_jax.data.stream import padded
from rkd_jax.errors import UserError, check_range
from rkd_jax.evaluation.predictions import Questions
from rkd_jax.training import sharding
from rkd_jax.training.state import Program

Tree = Any
Arrays = dict[str, np.ndarray]
MORE = "pgd-100"  # more steps than usual: they should not find much more
SIGMA = 0.25  # of the noise that certifies


@dataclasses.dataclass(frozen=True)
class Asked:
  """A program's logits as a function of its arrays: equal programs share compilations."""

  program: Program

  def __call__(self, trees: Tree, memory: Tree, images: jax.Array) -> jax.Array:
    variables = self.program.method.materialize(self.program.bind(trees))
    images = sharding.split(self.program.mesh, images)
    return self.program.method.predict(variables, memory, images)


def apply_of(program: Program, trees: Mapping[str, Tree], memory: Tree) -> jax.tree_util.Partial:
  """The network that a phase made, as attacks take it: images -> logits, a pytree."""
  program = program.for_prediction()
  asked = dict(program.modules)
  if len(asked) < len(trees):
    trees, memory = {role: trees[role] for role in asked}, ()
  return jax.tree_util.Partial(Asked(program), trees, memory)


@dataclasses.dataclass(frozen=True)
class Settings:
  """`config.eval.adversarial`, checked.

  Attributes:
    attacks: names that `adversarial.named` knows.
    norm: "linf" or "l2".
    eps: radii, in pixels of [0, 1].
    images: how many test images, of every class as many; 0: all.
    analysis: whether to measure what the numbers rest on.
  """

  attacks: tuple[str, ...]
  norm: str
  eps: tuple[float, ...]
  images: int
  analysis: bool

  def __post_init__(self):
    check_range("config.eval.adversarial.images", self.images, 0, 10**9)
    if self.eps and not self.attacks:
      raise UserError(
        "config.eval.adversarial.eps names radii, but config.eval.adversarial.attacks no attack. "
        "Name one, as pgd-20, or no radius."
      )
    for eps in self.eps:
      ball.check(self.norm, eps)
      if not eps > 0:
        raise UserError(
          f"config.eval.adversarial.eps has {eps:g}, which changes nothing: the accuracy without "
          "an attack stands in every report. Name radii above 0."
        )
      for name in self.attacks:
        named.make(name, self.norm, eps)


class Trial:
  """The images, and whoever is attacked on them.

  Attributes:
    rows: int[n], which test images: class-balanced, since a folder's are sorted by class; the same
      with every seed.
    records: what each attack cost, for the manifest.
  """

  def __init__(
    self, settings: Settings, mesh: jax.sharding.Mesh, images: lazy.Images, labels: np.ndarray,
    seed: int, batch: int, folder: pathlib.Path,
  ):  # fmt: skip
    """Args:
    images, labels: of the test part, in order.
    seed: of the run: the draws.
    batch: images at once.
    folder: where an attack that takes long keeps what it has.
    """
    count = min(settings.images or len(labels), len(labels))
    self.settings, self.mesh, self.folder, self.seed = settings, mesh, folder, seed
    draw = seeds.fold(0, "attacked")
    self.rows = splits.balanced(labels, count, int(labels.max()) + 1, draw)
    self.labels = labels[self.rows].astype(np.int32)
    self.questions = Questions(mesh, images.take(self.rows, axis=0), min(batch, count))
    self.records: list[dict[str, Any]] = []
    self._made: dict[str, tuple[Any, dict[float, list[jax.Array]]]] = {}  # of the teachers

  def __call__(self, name: str, apply: Any, teacher: str | None) -> tuple[Arrays, Arrays]:
    """What a network says under each attack, {"<attack>/<norm>/<eps>": int32[n]}, and what the
    analysis measures, {"<metric>/<attack>/<norm>/<eps>": float32[n]}.

    Args:
      name: of the network, for messages and files.
      apply: the network.
      teacher: the name of its teacher, asked before; None for a network without.
    """
    own, said, made = self.settings, {}, {}
    for attack in own.attacks:
      for eps in own.eps:
        changed = self._attacked(name, apply, attack, eps)
        said[self._key(attack, eps)] = self._said(apply, changed)
        if attack == own.attacks[0]:
          made[eps] = changed
    if not own.analysis:
      return said, {}
    for attack, eps in ((MORE, max(own.eps)), (own.attacks[0], self.huge)):
      said[self._key(attack, eps)] = self._said(apply, self._attacked(name, apply, attack, eps))
    self._made[name] = apply, made
    if teacher:
      for eps, changed in self._made[teacher][1].items():
        said[self._key(f"transfer-{own.attacks[0]}", eps)] = self._said(apply, changed)
    return said, self._measured(
      apply, made[self.middle], self._made[teacher][0] if teacher else None
    )

  @property
  def huge(self) -> float:
    """A radius in which nearly every image can be made any other: whoever withstands it hides its
    gradients."""
    size = 1.0 if self.settings.norm == "linf" else float(np.prod(self.questions.images.shape[1:]))
    return float(f"{0.5 * size**0.5:.3g}")

  @property
  def middle(self) -> float:
    """The radius that is analysed."""
    return sorted(self.settings.eps)[len(self.settings.eps) // 2]

  def _key(self, attack: str, eps: float) -> str:
    return f"{attack}/{self.settings.norm}/{eps:g}"

  def _batches(self) -> Iterator[tuple[jax.Array, jax.Array, jax.Array]]:
    """(images, labels, keys) of every batch; the last is filled up with the last image."""
    key = jax.random.key(seeds.fold(self.seed, "attack"))
    index = padded(len(self.rows), self.questions.batch)
    for images, own in zip(self.questions.batches(), index, strict=True):
      own = np.minimum(own, len(self.rows) - 1).astype(np.int32)
      keys = jax.vmap(jax.random.fold_in, (None, 0))(key, self.rows[own].astype(np.int32))
      yield images, jnp.asarray(self.labels[own]), keys

  def _attacked(self, name: str, apply: Any, attack: str, eps: float) -> list[jax.Array]:
    """The changed images, by batch."""
    began, made = time.monotonic(), named.make(attack, self.settings.norm, eps)
    if isinstance(made, autoattack.AutoAttack):
      changed, cost = self._composed(name, apply, made, eps)
    else:
      found = [made.counted(apply, *batch) for batch in self._batches()]
      changed = [images for images, _, _ in found]
      cost = {"forward": sum(f for _, f, _ in found), "backward": sum(b for _, _, b in found)}
    jax.block_until_ready(changed)
    how = {"seed": self.seed, "network": name, "attack": attack, "norm": self.settings.norm}
    self.records.append({**how, "eps": eps, **cost, "seconds": time.monotonic() - began})
    return changed

  def _composed(
    self, name: str, apply: Any, attack: autoattack.AutoAttack, eps: float
  ) -> tuple[list[jax.Array], dict[str, Any]]:
    """The same of attacks that only try who is left, and are gone on from after a kill."""
    batches = list(self._batches())
    images, labels = (
      np.concatenate([np.asarray(jax.device_get(b[part])) for b in batches])[: len(self.rows)]
      for part in (0, 1)
    )
    keys = jnp.concatenate([batch[2] for batch in batches])[: len(self.rows)]
    kind = type(attack).__name__ + getattr(attack, "kind", "")
    file = f"seed{self.seed}-{name.replace('/', '-')}-{kind}-{attack.norm}-{eps:g}.npz"
    size = self.questions.batch
    found = autoattack.run(
      attack, apply, images, labels, keys, batch=size, resume=self.folder / file
    )
    cost = {way: sum(stage[way] for stage in found.stages) for way in ("forward", "backward")}
    whole = [np.resize(np.arange(k, min(k + size, len(images))), size) for k in self._starts()]
    changed = [jnp.asarray(found.images[rows]) for rows in whole]
    return changed, {**cost, "stages": found.stages, "warnings": found.warnings}

  def _starts(self) -> range:
    return range(0, len(self.rows), self.questions.batch)

  def _said(self, apply: Any, changed: Sequence[jax.Array]) -> np.ndarray:
    said = [_classes(apply, images) for images in changed]
    return self._whole(said)

  def _whole(self, parts: Sequence[Any]) -> np.ndarray:
    return np.concatenate(jax.device_get(list(parts)))[: len(self.rows)]

  def _measured(self, apply: Any, changed: Sequence[jax.Array], teacher: Any) -> Arrays:
    """One number an image of each term, at the middle radius; those of a gradient gap only where
    there is a teacher."""
    norm, eps = self.settings.norm, self.middle
    found: dict[str, list[Any]] = {}

    def keep(metric: str, attack: str, value: Any) -> None:
      found.setdefault(f"{metric}/{attack}", []).append(value)

    for (images, labels, keys), moved in zip(self._batches(), changed, strict=True):
      keep(
        "adv_loss", self._key(self.settings.attacks[0], eps), analysis.loss(apply, moved, labels)
      )
      radius = analysis.certified_radius(apply, images, labels, keys, sigma=SIGMA)
      keep("certified_radius", f"smoothing/l2/{SIGMA:g}", radius)
      how = {"eps": eps, "norm": norm}
      if teacher is None:
        bend = analysis.local_linearity(apply, images, labels, keys, **how)
      else:
        terms = analysis.bound(apply, teacher, images, labels, keys, **how)
        keep("loss_bound", self._key("bound", eps), terms.total)
        keep("alignment_residual", self._key("gradient", eps), terms.residual / eps)
        bend = terms.linearity
      keep("local_linearity", self._key("tangent", eps), bend)
    return {key: self._whole(parts).astype(np.float32) for key, parts in found.items()}


@jax.jit
def _classes(apply: Any, images: jax.Array) -> jax.Array:
  return apply(images).argmax(-1).astype(jnp.int32)
