"""OOD: the student learns on patches of one photograph, none of which shows a class.

Distillation from a single image (Asano & Saeed 2023, arXiv:2112.00725), as ABD's experiments have
it: windows of one picture at random places and scales, mirrored at random, pieces of them exchanged
(CutMix, Yun et al. 2019). The pictures are scikit-learn's. Nothing is trained to find the teacher's
backdoor, and yet a student picks up what the teacher says of such patches.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from rkd_jax import losses
from rkd_jax.errors import UserError, check_range
from rkd_jax.methods import base, datafree, views

PICTURES = ("china", "flower")


@dataclasses.dataclass(frozen=True)
class Method(datafree.DataFree):
  """KL(T || S) on patches; published: temperature 8, mean over the classes too, no factor T^2.

  Attributes:
    picture: "china" or "flower".
    zoom: the largest window's side over an image's, >= 1; a window is shrunk to the image's size.
    cutmix: largest share of an image that shows a piece of another (their area: uniform up to
      this; published: Beta(.25, .25)).
    rate: learning rate of Adam.
  """

  temperature: float = 8.0
  reduction: str = "mean"
  picture: str = "china"
  zoom: float = 4.0
  cutmix: float = 1.0
  rate: float = 1e-3
  delivers: ClassVar = {"student": "student"}

  def __post_init__(self):
    super().__post_init__()
    if self.picture not in PICTURES:
      raise UserError(f"ood.picture is {self.picture!r}; choose {' or '.join(PICTURES)}.")
    check_range("ood.zoom", self.zoom, 1, 1e3)
    check_range("ood.cutmix", self.cutmix, 0, 1)

  def roles(self, networks):
    roles = super().roles(networks)
    shape = roles["teacher"].module.image_shape
    pixels = photograph(self.picture, shape[-1])
    check_window(pixels.shape[:2], shape[:2], self.zoom)
    adam = {"name": "adam", "learning_rate": self.rate, "weight_decay": 0.0}
    adam |= {"schedule": "step", "milestones": (0.5,), "factor": 0.5}
    roles["student"] = dataclasses.replace(roles["student"], optimizer=adam)
    return {**roles, "picture": base.Role(init=lambda key, made, example: jnp.asarray(pixels))}

  def looks_back(self, target_logits, logits):
    """T^2 KL in nats, whatever the reduction (as in the code)."""
    return losses.kl_divergence(target_logits, logits, self.temperature)

  def init_state(self, key, variables, example):
    return {"row": jnp.arange(example.batch["image"].shape[0])}

  def batch(self, key, variables, state, batch, step):
    return {"image": self.invent(key, variables, state, len(state["row"]))}, state

  def shared(self, player, variables, state, batch, targets, key, step):
    answer = variables["teacher"](batch["image"], train=False)[0].logits
    return {**batch, "answer": answer}

  def loss(self, player, variables, state, batch, targets, key, step):
    outputs, stats = variables["student"](batch["image"], train=True, key=key)
    value = self.divergence(batch["answer"], outputs.logits)
    agree = (outputs.logits.argmax(-1) == batch["answer"].argmax(-1)).astype(value.dtype)
    aux = base.Aux(batch_stats={"student": stats}, metrics={"agreement": agree})
    return {"kl": (value, jnp.ones_like(value))}, aux

  def invent(self, key, variables, state, count):
    windows, mix = jax.random.split(key)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(windows, jnp.arange(count))
    shape = variables["teacher"].module.image_shape
    found = jax.vmap(lambda k: window(k, variables["picture"], shape[:2], self.zoom))(keys)
    return views.occlude(mix, found, self.cutmix)


def photograph(name: str, channels: int) -> np.ndarray:
  """float32[h, w, channels] in [0, 1]: the picture in colour, or its mean over colours."""
  from sklearn.datasets import load_sample_image

  pixels = load_sample_image(f"{name}.jpg").astype(np.float32) / 255
  return pixels if channels == 3 else np.repeat(pixels.mean(-1, keepdims=True), channels, -1)


def check_window(picture: tuple[int, ...], image: tuple[int, ...], zoom: float) -> None:
  """Raises a `UserError` where the largest window does not fit into the picture."""
  if any(zoom * side > whole for side, whole in zip(image, picture, strict=True)):
    raise UserError(
      f"ood takes windows of up to {zoom:g} times {image[0]}x{image[1]} from a picture of only "
      f"{picture[0]}x{picture[1]} pixels. Lower ood.zoom (>= 1), or use smaller images."
    )


def window(key: jax.Array, picture: jax.Array, sides: tuple[int, int], zoom: float) -> jax.Array:
  """float[H, W, C]: a square-pixelled window at a random place, between 1 and `zoom` times the
  sides, brought to them by linear interpolation and mirrored half of the time."""
  size, down, right, flip = jax.random.uniform(key, (4,))
  scale = 1 + (zoom - 1) * size
  spans = [scale * (side - 1) for side in sides]
  free = [whole - 1 - span for whole, span in zip(picture.shape[:2], spans, strict=True)]
  rows = down * free[0] + scale * jnp.arange(sides[0])
  columns = right * free[1] + scale * jnp.arange(sides[1])
  columns = jnp.where(flip < 0.5, columns, columns[::-1])
  grid = jnp.meshgrid(rows, columns, indexing="ij")
  take = lambda plane: jax.scipy.ndimage.map_coordinates(plane, grid, order=1)  # noqa: E731
  return jax.vmap(take, in_axes=-1, out_axes=-1)(picture)
