"""Augmentation on the device, inside the step: pixels in [0, 1] before and after.

Only `resized_crop` is made elsewhere: on the host, by the stream, from the image as it was stored.

Every example draws from a key of its own, so its draws are the same whatever the batch, the number
of devices, or the restart.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from rkd_jax.errors import UserError, check_range

# What an example's key is folded with: switching one draw on leaves the others as they were.
FLIP, CROP, CUTOUT, MIXUP = range(4)


@dataclasses.dataclass(frozen=True)
class Augment:
  """What is done to training images, in the order of the fields.

  Attributes:
    resized_crop: smallest share of an image's area that a random crop takes, in [0, 1]; the crop,
      of a side ratio in [3/4, 4/3], is resized to the images' size (Szegedy et al. 2015,
      arXiv:1409.4842; .08 is usual for ImageNet). 0 turns it off. Made on the host, before any
      trigger is put on: elsewhere the trigger is cropped and flipped with its image, here not.
    flip: mirror left and right with probability 1/2.
    crop: pad by this many pixels on every side and crop back at random.
    pad: what the crop pads with: "constant" (black) or "reflect" (without repeating the border).
    cutout: side in pixels of a black square, its centre uniform over the image, clipped at the
      border (DeVries and Taylor 2017, arXiv:1708.04552; there the fill is the mean pixel).
    mixup: alpha of Beta(alpha, alpha); 0 turns it off (Zhang et al. 2018, arXiv:1710.09412).
  """

  resized_crop: float = 0.0
  flip: bool = False
  crop: int = 0
  pad: str = "constant"
  cutout: int = 0
  mixup: float = 0.0

  def __post_init__(self):
    check_range("augment.resized_crop", self.resized_crop, 0, 1)
    check_range("augment.crop", self.crop, 0, 1024)
    check_range("augment.cutout", self.cutout, 0, 1024)
    check_range("augment.mixup", self.mixup, 0.0, 100.0)
    if self.pad not in ("constant", "reflect"):
      raise UserError(f"augment.pad is {self.pad!r}; it must be 'constant' or 'reflect'.")

  @property
  def identity(self) -> bool:
    """Whether nothing is changed."""
    return not (self.resized_crop or self.flip or self.crop or self.cutout or self.mixup)


def apply(augment: Augment, keys: jax.Array, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """Augments a batch; everything in it but the images passes through.

  Args:
    augment: what to do.
    keys: key[B], one an example, a pure function of (seed, epoch, index).
    batch: "image" float[B, H, W, C] in [0, 1], "label" int32[B] (-1: unknown), "index" int32[B].

  Returns:
    The batch with its new images and, with mixup, "mix_label" and "mix_index" int32[B] (the
    partner's) and "mix_weight" float32[B] in [0, 1], the weight of the example's own label. The
    partner is the example before it in the batch, augmented too: it depends on the batch.
  """
  images = batch["image"]
  if augment.flip:
    images = _each(_flip, keys, FLIP, images)
  if augment.crop:
    images = _crop(augment, keys, images)
  if augment.cutout:
    images = _each(lambda k, x: _cutout(k, x, augment.cutout), keys, CUTOUT, images)
  batch = {**batch, "image": images}
  return _mixup(augment.mixup, keys, batch) if augment.mixup else batch


def _each(function, keys, name, images):
  """function(key, image) for every example, with the key's draw called `name`."""
  return jax.vmap(lambda k, x: function(jax.random.fold_in(k, name), x))(keys, images)


def _flip(key, image):
  return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def _crop(augment, keys, images):
  if augment.pad == "reflect" and augment.crop >= min(images.shape[1:3]):
    raise UserError(
      f"augment.crop is {augment.crop}; reflecting needs it smaller than the image, "
      f"{images.shape[1]}x{images.shape[2]}."
    )
  margin = (augment.crop, augment.crop)
  padded = jnp.pad(images, ((0, 0), margin, margin, (0, 0)), mode=augment.pad)

  def crop(key, image):
    row, column = jax.random.randint(key, (2,), 0, 2 * augment.crop + 1)
    return jax.lax.dynamic_slice(image, (row, column, 0), images.shape[1:])

  # A batched dynamic slice: on CPU far faster than one-hot products or a chain of selects.
  return _each(crop, keys, CROP, padded)


def _cutout(key, image, side):
  height, width, _ = image.shape
  centre = jax.random.randint(key, (2,), jnp.zeros(2, int), jnp.array([height, width]))
  low = centre - side // 2
  rows, columns = jnp.arange(height), jnp.arange(width)
  in_rows = (rows >= low[0]) & (rows < low[0] + side)
  in_columns = (columns >= low[1]) & (columns < low[1] + side)
  return jnp.where((in_rows[:, None] & in_columns[None, :])[..., None], 0.0, image)


def _mixup(alpha, keys, batch):
  images = batch["image"]
  uniform = jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, MIXUP)))(keys)
  weight = _symmetric_beta(alpha, uniform)
  own = weight.astype(images.dtype)[:, None, None, None]
  mixed = own * images + (1 - own) * jnp.roll(images, 1, axis=0)
  partner = {f"mix_{name}": jnp.roll(batch[name], 1) for name in ("label", "index")}
  return {**batch, "image": mixed, **partner, "mix_weight": weight}


def _symmetric_beta(alpha, uniform):
  """Beta(alpha, alpha) of uniform draws float32[B], by its quantiles at 4,097 points.

  `jax.random.beta` rejects in a loop: seconds to compile, and a wait for all devices in each round.
  """
  cells = 4096
  quantiles = special.betaincinv(alpha, alpha, np.linspace(0, 1, cells + 1))
  cell = jnp.minimum((uniform * cells).astype(jnp.int32), cells - 1)
  low, high = (jnp.asarray(q, jnp.float32)[cell] for q in (quantiles[:-1], quantiles[1:]))
  return low + (high - low) * (uniform * cells - cell)
