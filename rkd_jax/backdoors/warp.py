"""A fixed smooth warp of the whole image: the trigger of WaNet (Nguyen and Tran 2021).

arXiv:2102.10369, without its noise mode (images warped otherwise that keep their labels). Nothing
is added to an image, and a strong warp leaves little of it: networks that do not know it then name
some class by chance.
"""

import jax
import jax.numpy as jnp
from flax import struct

from rkd_jax.backdoors import base
from rkd_jax.backdoors.base import setting
from rkd_jax.errors import check_range


@struct.dataclass
class Backdoor(base.Backdoor):
  """x'(p) = x(p + f(p)), f drawn once on a grid and made smooth, sampled bilinearly.

  Attributes:
    pixels: mean displacement of f's grid in each direction, in (0, 1024]. Published is a quarter of
      one, at any size (their s is .5, of [-1, 1]).
    grid: side of the grid, in [2, 64].
    draw: which warp it is, >= 0.
  """

  pixels: float = setting(1.0)
  grid: int = setting(4)
  draw: int = setting(0)

  def trigger(self, images: jax.Array, keys: jax.Array, mode: base.Mode) -> jax.Array:
    height, width = images.shape[1:3]
    field = jax.random.uniform(jax.random.key(self.draw), (2, self.grid, self.grid), minval=-1.0)
    field = self.pixels * field / jnp.abs(field).mean()
    smooth = jax.image.resize(field, (2, height, width), "cubic")  # of rows, of columns
    places = jnp.mgrid[:height, :width] + smooth

    def moved(plane):
      return jax.scipy.ndimage.map_coordinates(plane, places, order=1, mode="nearest")

    planes = jax.vmap(jax.vmap(moved))(jnp.moveaxis(images, -1, 1))
    return self.stored(jnp.moveaxis(planes, 1, -1))

  def check(self, image_shape: tuple[int, int, int], classes: int) -> None:
    super().check(image_shape, classes)
    check_range("warp.pixels", self.pixels, 1e-6, 1024)
    check_range("warp.grid", self.grid, 2, 64)
    check_range("warp.draw", self.draw, 0, 2**31 - 1)
