"""No trigger is known. Nothing is triggered, so nothing is said of any."""

from flax import struct

from rkd_jax.backdoors import base


@struct.dataclass(kw_only=True)
class Backdoor(base.Backdoor):
  """Leaves every image as it is and has no victims: each rate that needs a trigger is null, and the
  verdict is "unknown". For teachers that others made (`config.teacher.checkpoint`)."""

  def trigger(self, images, keys, mode):
    return images

  def relabel(self, labels):
    return labels

  def victims(self, labels):
    return labels != labels
