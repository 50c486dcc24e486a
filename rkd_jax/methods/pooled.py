"""What methods share that make a batch of images by many steps, then teach from a pool of such.

The pool is a ring of batches in the method's state: with it in the checkpoint a run that was killed
goes on byte for byte, which images in a folder would not give. It is kept small for that reason. A
phase that is given an earlier one's pool goes on filling it.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from rkd_jax.data import augment
from rkd_jax.errors import check_range
from rkd_jax.methods import base, datafree


@dataclasses.dataclass(frozen=True)
class Pooled(datafree.DataFree):
  """A round: steps of the generator that begin anew, the best batch into the pool, then the
  student's steps on batches drawn from all of the pool.

  Attributes:
    searches: steps of the generator a round.
    students: steps of the student a round.
    pool: batches that are kept.
    rate: learning rate of the generator's Adam (betas .5, .999).
    jitter: whether the student sees the pool's images moved and mirrored (code: for CIFAR-10).
  """

  temperature: float = 20.0
  searches: int = 200
  students: int = 400
  pool: int = 64
  rate: float = 1e-3
  jitter: bool = False
  delivers: ClassVar = {"student": "student", "pool": "images"}

  def __post_init__(self):
    super().__post_init__()
    for field in ("searches", "students", "pool"):
      check_range(f"{self.name}.{field}", getattr(self, field), 1, 10**6)

  @property
  def turns(self):  # type: ignore[override]
    return (("generator", self.searches), ("student", self.students))

  def trains(self):
    return {"rounds_per_epoch": 1}  # so that every round begins with a fresh generator

  @property
  def adam(self):
    """The generator's optimiser."""
    rates = {"learning_rate": self.rate, "b1": 0.5, "b2": 0.999}
    return {"name": "adam", "weight_decay": 0.0, "schedule": "constant"} | rates

  def roles(self, networks):
    roles = super().roles(networks)
    datafree.require_norms(self.name, roles["teacher"].module)
    sgd = {"name": "sgd", "learning_rate": 0.1, "weight_decay": 1e-4, "schedule": "cosine"}
    roles["student"] = dataclasses.replace(roles["student"], optimizer=sgd)
    return {**roles, "pool": base.Role(init=self._empty)}

  def _empty(self, key, made, example):
    return jnp.zeros((self.pool, *example.batch["image"].shape))

  def init_state(self, key, variables, example):
    return {**holding(variables["pool"]), "best": jnp.float32(jnp.inf)}

  def given(self, variables, state):
    earlier = {**holding(variables["pool"]), "open": jnp.int32(0)}
    some = earlier["given"] > 0  # else: what there is now
    return variables, state | {k: jnp.where(some, v, state[k]) for k, v in earlier.items()}

  def deliver(self, variables, state):
    """The pool in order, the oldest batch first: whoever goes on filling it drops that one."""
    pool = state["images"]
    full = jnp.abs(pool[-1]).max() > 0
    ordered = jnp.roll(pool, -state["next"] * full, axis=0)
    return super().deliver(variables, {**state, "images": ordered})

  def batch(self, key, variables, state, batch, step):
    size, classes = state["images"].shape[1], variables["teacher"].module.classes
    labels = jax.random.randint(key, (size,), 0, classes)
    best = jnp.full_like(state["best"], jnp.inf)
    return {"label": labels, "slot": jnp.arange(size), "round": step}, {**state, "best": best}

  def kept(self, state: base.Tree, images: jax.Array, value: jax.Array, batch: base.Batch):
    """The state after a step of the generator: the round's slot holds its best batch.

    Args:
      value: the loss of these images, to which a plug-in adds its own as batch["beside"].
    """
    value = jax.lax.stop_gradient(value + batch.get("beside", 0.0))
    pool, better = state["images"], value < state["best"]
    slot = (state["given"] + batch["round"]) % self.pool
    pool = pool.at[slot].set(jnp.where(better, jax.lax.stop_gradient(images), pool[slot]))
    best = jnp.minimum(value, state["best"])
    return {**state, "images": pool, "best": best, "next": (slot + 1) % self.pool}

  def drawn(self, key: jax.Array, state: base.Tree, slots: jax.Array, rounds: Any) -> jax.Array:
    """float[B, H, W, C] of the images in the pool after so many rounds of this phase.

    Args:
      slots: int32[B], 0 to B - 1; where they lie on several devices, so do the images.
    """
    pool = state["images"]
    filled = jnp.minimum(state["given"] + state["open"] * rounds, self.pool) * pool.shape[1]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, slots)
    rows = jax.vmap(lambda k: jax.random.randint(k, (), 0, jnp.maximum(filled, 1)))(keys)
    return pool.reshape(-1, *pool.shape[2:])[rows]

  def images(self, player, variables, state, batch, key):
    if player == "generator":
      return self.made(variables)
    draw, move = jax.random.split(jax.random.fold_in(key, 1))
    images = self.drawn(draw, state, batch["slot"], batch["round"] + 1)
    return jittered(move, images) if self.jitter else images

  def made(self, variables) -> jax.Array:
    """float[B, H, W, C] in [0, 1]: the images that are being made."""
    raise NotImplementedError(f"{type(self)} makes no images")

  def taught_by(self, variables, images: jax.Array, key: jax.Array):
    """The student's loss on images of the pool, and what goes with it."""
    outputs, stats = variables["student"](images, train=True, key=key)
    answer = variables["teacher"](images, train=False)[0].logits
    value = self.divergence(answer, outputs.logits)
    agree = (outputs.logits.argmax(-1) == answer.argmax(-1)).astype(value.dtype)
    aux = base.Aux(batch_stats={"student": stats}, metrics={"agreement": agree})
    return {"kl": (value, jnp.ones_like(value))}, aux

  def invent(self, key, variables, state, count):
    return self.drawn(key, holding(state["images"]), jnp.arange(count), 0)


def holding(pool: jax.Array) -> dict[str, jax.Array]:
  """What a phase's state holds of the pool that it begins with: "images" float[N, B, H, W, C], how
  many of these batches are "given" (all that hold anything), the "next" to be written, and whether
  it is "open", so that batches made since count too; int32[]."""
  given = (jnp.abs(pool).max((1, 2, 3, 4)) > 0).sum().astype(jnp.int32)
  return {"images": pool, "given": given, "next": given % len(pool), "open": jnp.int32(1)}


def jittered(key: jax.Array, images: jax.Array) -> jax.Array:
  """The images moved by up to an eighth of their side, and mirrored half of the time."""
  keys = jax.random.split(key, len(images))
  change = augment.Augment(flip=True, crop=max(1, images.shape[1] // 8))
  index = jnp.arange(len(images))
  return augment.apply(change, keys, {"image": images, "label": index, "index": index})["image"]
