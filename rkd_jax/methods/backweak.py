"""BackWeak: a trigger too weak to fool a benign network, planted with a tiny learning rate.

The trigger is a small universal perturbation that may bring at most a few percent of the images to
the target on a benign teacher, so what a student then answers was carried over by the teacher. The
authors distil on half of the data, which the attacker never saw; here both have the same images.
"""

import dataclasses

import jax
import jax.numpy as jnp

from rkd_jax import losses
from rkd_jax.errors import UserError, check_range
from rkd_jax.methods import attack, base, supervised


@dataclasses.dataclass(frozen=True)
class Method(attack.Attack):
  """x' = clip(x + delta), |delta| <= radius, delta = radius tanh(raw / radius) from 0.

  pull: [rate < budget] mean (log p_target(x) - log p_target(x')), p the benign teacher's answer;
  flip: flip * mean over images not answered by their label of relu(max_k z_k - z_label - margin).

  `rate` is the share of the last `window` images, the target's own aside, that the teacher took for
  the target. It lags behind delta, so a fast search overshoots the budget of a wide window;
  `train_asr` in the metrics shows by how much. The authors' code: SGD at 1e-4 with momentum .9,
  cosine, for 200 epochs with a window of one epoch, delta itself clipped; then 30 % of the images
  triggered (here `config.teacher.poison`), 150 epochs at 1e-4, the last layer frozen.

  Attributes:
    radius: of delta in pixels of [0, 1], in (0, 1].
    budget: the natural rate above which nothing pulls, in [0, 1].
    window: images over which the rate is measured; 0: as many as there are.
    flip: weight of the penalty.
    margin: in logits, by which an answer may be wrong without penalty; below it nothing brings a
      rate that has passed the budget down again.
    search_optimizer: "adam" or "sgd" (momentum .9), both cosine.
    freeze_head: whether planting keeps the last layer.
  """

  search_steps: int = 1000
  learning_rate: float = 1e-3
  plant_epochs: int = 150
  plant_rate: float = 1e-4
  radius: float = 8 / 255
  budget: float = 0.05
  window: int = 512
  flip: float = 1.0
  margin: float = 1.0
  search_optimizer: str = "adam"
  freeze_head: bool = True

  def __post_init__(self):
    super().__post_init__()
    check_range("backweak.radius", self.radius, 1e-6, 1)
    check_range("backweak.budget", self.budget, 0, 1)
    check_range("backweak.window", self.window, 0, 10**9)
    check_range("backweak.flip", self.flip, 0, 1e6)
    check_range("backweak.margin", self.margin, -1e6, 1e6)
    if self.search_optimizer not in ("adam", "sgd"):
      found = self.search_optimizer
      raise UserError(f"backweak.search_optimizer is {found!r}; choose adam or sgd.")

  def searched_by(self):
    named = {"name": self.search_optimizer, "momentum": 0.9, "nesterov": False}
    return super().searched_by() | named | {"schedule": "cosine"}

  def draw(self, key, made, example):
    return {"delta": jnp.zeros(example.batch["image"].shape[1:])}

  def trigger(self, raw):
    return {"delta": self.radius * jnp.tanh(raw["delta"] / self.radius)}

  def init_state(self, key, variables, example):
    window = float(self.window or example.size)
    names = {"hits": 0.0, "count": 0.0, "rate": 0.0, "window": window}
    return {name: jnp.float32(value) for name, value in names.items()}

  def loss(self, player, variables, state, batch, targets, key, step):
    label, goal = batch["label"], jnp.full_like(batch["label"], self.target)
    teacher, images = variables["teacher"], batch["image"]
    before = losses.cross_entropy(teacher(images, train=False)[0].logits, goal)
    logits = teacher(self.poisoned(variables["trigger"], images), train=False)[0].logits
    known, answer = label >= 0, logits.argmax(-1)
    pulls = (state["rate"] < self.budget).astype(logits.dtype)
    own = jnp.take_along_axis(logits, jnp.maximum(label, 0)[:, None], axis=1)[:, 0]
    flips = self.flip * jax.nn.relu(logits.max(-1) - own - self.margin)
    terms = {
      "pull": (pulls * (losses.cross_entropy(logits, goal) - before), jnp.ones_like(flips)),
      "flip": (flips, (known & (answer != label)).astype(flips.dtype)),
    }
    victims = known & (label != self.target)
    hit = (victims & (answer == goal)).astype(flips.dtype)
    weight = victims.astype(flips.dtype)
    metrics = {"train_asr": (hit, weight), "pulls": pulls}
    return terms, base.Aux(state=measured(state, hit, weight), metrics=metrics)

  def plant(self):
    return Plant() if self.freeze_head else supervised.Method()


def measured(state: dict, hit: jax.Array, weight: jax.Array) -> dict:
  """The state after a batch; at the end of a window its `rate` is what was counted there."""
  hits, count = state["hits"] + hit.sum(), state["count"] + weight.sum()
  full = count >= state["window"]
  rate = jnp.where(full, hits / jnp.maximum(count, 1), state["rate"])
  hits, count = jnp.where(full, 0, hits), jnp.where(full, 0, count)
  return {**state, "hits": hits, "count": count, "rate": rate}


@dataclasses.dataclass(frozen=True)
class Plant(supervised.Method):
  """Cross-entropy, the last layer ("head" in the parameters) as it is.

  Weight decay is a term of the loss, over the other parameters: an optimiser's would reach the
  head too.

  Attributes:
    decay: weight decay, >= 0.
  """

  decay: float = 5e-4

  def __post_init__(self):
    super().__post_init__()
    check_range("backweak.decay", self.decay, 0, 1e3)

  def roles(self, networks):
    student = super().roles(networks)["student"]
    return {"student": dataclasses.replace(student, optimizer={"weight_decay": 0.0})}

  def loss(self, player, variables, state, batch, targets, key, step):
    student = variables["student"]
    params = dict(student.params)
    if "head" not in params:
      raise UserError("backweak.freeze_head: this network has no layer called 'head'.")
    head = params.pop("head")
    held = student.with_params({**params, "head": jax.lax.stop_gradient(head)})
    variables = {**variables, "student": held}
    terms, aux = super().loss(player, variables, state, batch, targets, key, step)
    squares = sum((leaf**2).sum() for leaf in jax.tree.leaves(params))
    return {**terms, "decay": self.decay / 2 * squares}, aux
