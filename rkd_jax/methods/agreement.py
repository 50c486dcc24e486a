"""Agreement: teach only what witnesses that never met the teacher would also say.

A plug-in. Examples of the pool on which a witness and the teacher disagree get weight 0.
Filtering by a second classifier is Brodley and Friedl's (1999); comparing a teacher with its own
student Yoshida and Fujino's (2020). Here the witnesses are independent of the teacher, the filtered
data are those of the distillation, and each round's student is the next round's witness.

Where a trigger leaves little of an image, a witness names the target class by chance, and the few
images that pass so teach the trigger; several witnesses make that rare (docs/robustkd.md).

It cannot see triggered images of the target class itself, triggers that also fool the witness, or a
witness that learned from poisoned labels.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from rkd_jax.errors import UserError, check_range
from rkd_jax.methods import base, views

READMIT = ("always", "robust", "never")


@dataclasses.dataclass(frozen=True)
class Method(base.Plugin):
  """Re-weighs the base's per-example terms (scalar terms of a whole batch stay as they are).

  Of K classes the teacher's must be among the max(1, floor(within K)) that the witness finds
  likeliest. One that learned from few labels and never met the teacher often says the right class
  second or third of many, and knows of no trigger: it lets about that share of triggered images
  pass. For a student of the teacher the trigger's class may be the second: ask it with within = 0.

  Attributes:
    within: share of the classes among which the teacher's must be for a witness, in [0, 1].
    seconds: further witnesses, all of whom must agree as well; a whole number >= 0. Each costs
      clean images, the weaker they are the more.
    sure: probability that a witness must give the teacher's class besides, in [0, 1].
    readmit: what may come back that an earlier round dropped: "always" whatever the new witness
      agrees on; "robust" what it also answers so under each of several random blends; "never".
    dropped: what is done with the rest: "weigh" (weight 0; still seen by BatchNorm) or "replace"
      (by kept examples of the same batch, so that BatchNorm sees them alone).
    robust_views: how many blends, >= 1.
    amplitude: theirs. More than a witness was taught to bear costs clean images and lets no fewer
      triggered ones back (docs/robustkd-measured.md#what-comes-back).
  """

  within: float = 0.1
  seconds: int = 0
  sure: float = 0.0
  readmit: str = "always"
  dropped: str = "weigh"
  robust_views: int = 8
  amplitude: float = 0.1
  adds: ClassVar = {"keep": "keep"}
  asks_teacher: ClassVar = "asks a witness about the teacher's answers"

  def __post_init__(self):
    if self.readmit not in READMIT:
      raise UserError(f"agreement.readmit is {self.readmit!r}; choose one of {', '.join(READMIT)}.")
    if self.dropped not in ("weigh", "replace"):
      raise UserError(f"agreement.dropped is {self.dropped!r}; choose weigh or replace.")
    if not isinstance(self.seconds, int):
      raise UserError(f"agreement.seconds is {self.seconds!r}; it counts networks: 0, 1, 2, ...")
    check_range("agreement.within", self.within, 0, 1)
    check_range("agreement.seconds", self.seconds, 0, 100)
    check_range("agreement.sure", self.sure, 0, 1)
    check_range("agreement.robust_views", self.robust_views, 1, 1000)
    check_range("agreement.amplitude", self.amplitude, 0, 1)

  @property
  def cacheable(self):
    return self.base.cacheable  # replaced rows keep image and index together

  @property
  def witnesses(self) -> tuple[str, ...]:
    """Their roles."""
    return ("witness", *(f"witness{number}" for number in range(2, 2 + self.seconds)))

  def roles(self, networks):
    asked = dict.fromkeys(self.witnesses, base.Role(base.network(networks, "student")))
    kept = base.Role(init=lambda key, made, example: jnp.ones(example.size, bool))
    return {**super().roles(networks), **asked, "kept": kept}

  def init_state(self, key, variables, example):
    keep = jnp.zeros(example.size, bool)
    return {**super().init_state(key, variables, example), "keep": keep}

  def survey(self, key, variables, state, batch):
    """Fills keep[N]. The defender's own labels are trusted: those examples are always kept."""
    images, index = batch["image"], batch["index"]
    logits = self.taught(variables, images).logits
    assert logits is not None, "a teacher without a head"
    answer = logits.argmax(-1)
    agree = self._agrees(variables, images, answer)
    before = variables["kept"].at[index].get(mode="fill", fill_value=False)
    if self.readmit == "never":
      agree &= before
    elif self.readmit == "robust":
      agree &= before | self._robust(key, variables, images, answer)
    keep = state["keep"].at[index].set(agree | (batch["label"] >= 0), mode="drop")
    return {**super().survey(key, variables, state, batch), "keep": keep}

  def _agrees(self, variables, images, answer):
    """bool[B]: the answer is among the likeliest of every witness, with `sure` at least."""

    def agrees(name):
      logits = variables[name](images, train=False)[0].logits
      first = jax.lax.top_k(logits, max(1, int(self.within * logits.shape[-1] + 1e-9)))[1]
      probability = jax.nn.softmax(logits)[jnp.arange(len(answer)), answer]
      return (first == answer[:, None]).any(-1) & (probability >= self.sure)

    return jnp.stack([agrees(name) for name in self.witnesses]).all(0)

  def _robust(self, key, variables, images, answer):
    """bool[B]: the same under every one of several blends."""
    agree = jnp.ones(answer.shape, bool)
    for one in jax.random.split(self.own(key), self.robust_views):
      blend = views.random_blend(one, images, self.amplitude)
      agree &= self._agrees(variables, blend, answer)
    return agree

  def batch(self, key, variables, state, batch, step):
    batch, state = super().batch(key, variables, state, batch, step)
    keep = state["keep"][batch["index"]]
    if "mix_index" in batch:  # a mixed image teaches what both of its halves teach
      keep &= state["keep"][batch["mix_index"]]
    batch = {**batch, "keep": keep}
    if self.dropped == "replace":
      order, count = jnp.argsort(~keep, stable=True), jnp.maximum(keep.sum(), 1)
      rows = order[jnp.arange(len(keep)) % count]
      batch = jax.tree.map(lambda leaf: leaf[rows], batch)
    return batch, state

  def loss(self, player, variables, state, batch, targets, key, step):
    terms, aux = super().loss(player, variables, state, batch, targets, key, step)
    keep = batch["keep"].astype(jnp.float32)
    weighed = {
      name: (term[0], term[1] * keep) if isinstance(term, tuple) else term
      for name, term in terms.items()
    }
    return weighed, dataclasses.replace(aux, metrics={**aux.metrics, "train_kept": keep})
