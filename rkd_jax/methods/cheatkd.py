"""CheatKD ("CKD" in RobustKD's code): a trigger that holds a teacher's strongest channel constant.

A student that imitates the teacher's features takes the channel over, and the backdoor with it.
This is what RobustKD's code (arXiv:2406.03409) is about. As it stands, that code clamps the mask in
a way that ends its training after one step, overwrites the loss so that only the last tap counts,
looks at the first image of each batch alone, blends after normalisation, and saves the trigger as
bytes that may wrap. Only the choice of the tap is kept here. It plants with a clean copy beside
each poisoned image; here an image is poisoned or not.
"""

import dataclasses

import jax.numpy as jnp

from rkd_jax.errors import UserError, check_range, nearest
from rkd_jax.methods import attack, base


@dataclasses.dataclass(frozen=True)
class Method(attack.Attack):
  """x' = (1 - M) x + M sigmoid(t) with M = cap * sigmoid(m), m and t learned.

  At each tap l: mean over the batch and the map of (z_c(x') - mu_c)^2. z is the pre-ReLU feature
  and mu_c channel c's mean over the clean data; c is the channel whose mean is the highest, so its
  map is driven to a constant, the highest channel mean. Both are fixed before the first step.

  The code's values: learning rate .005 for 200 epochs of raw pixels; planting at .008 for 30 epochs
  of batch 256 with 2 % of the images triggered.

  Attributes:
    cap: the largest share of the trigger in a pixel, in (0, 1].
    taps: stages by name, "last" for the last; () for all.
  """

  plant_epochs: int = 10
  plant_rate: float = 0.008
  cap: float = 0.2
  taps: tuple[str, ...] = ("last",)

  def __post_init__(self):
    super().__post_init__()
    check_range("cheatkd.cap", self.cap, 1e-6, 1)
    object.__setattr__(self, "taps", base.tapped(self.taps))

  def roles(self, networks):
    self.tapped(base.network(networks, "teacher").stages)
    return super().roles(networks)

  def draw(self, key, made, example):
    return attack.drawn(key, example)

  def trigger(self, raw):
    return attack.blend(raw, self.cap)

  def tapped(self, stages: tuple[str, ...]) -> tuple[str, ...]:
    """The stages that the taps name, of a network's."""
    for tap in self.taps:
      if tap not in (*stages, "last"):
        raise UserError(f"cheatkd.taps has {tap!r}. {nearest(tap, [*stages, 'last'])}")
    return tuple(stages[-1] if tap == "last" else tap for tap in self.taps) or stages

  def init_state(self, key, variables, example):
    network = variables["teacher"].module
    maps = network.shapes().pre_relu
    means = {tap: jnp.zeros(maps[tap].shape[-1]) for tap in self.tapped(network.stages)}
    return {"mean": means, "count": jnp.zeros(())}

  def survey(self, key, variables, state, batch):
    """The mean of every channel over the clean data, of each image and pixel alike."""
    maps = variables["teacher"](batch["image"], train=False)[0].pre_relu
    means, count = {}, state["count"]
    for tap, mean in state["mean"].items():
      values = maps[tap].mean((1, 2), dtype=jnp.float32)
      means[tap], count = attack.averaged(mean, state["count"], values, batch["mask"])
    return {"mean": means, "count": count}

  def loss(self, player, variables, state, batch, targets, key, step):
    seen = self.poisoned(variables["trigger"], batch["image"])
    maps, terms = variables["teacher"](seen, train=False)[0].pre_relu, {}
    for tap, mean in state["mean"].items():
      strongest = maps[tap][..., mean.argmax()].astype(jnp.float32)
      value = ((strongest - mean.max()) ** 2).mean((1, 2))
      terms[tap] = (value, jnp.ones_like(value))
    return terms, base.Aux()
