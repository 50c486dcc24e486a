"""Poisons a batch as planned: pure, jittable, the same for every trigger."""

import jax
import jax.numpy as jnp

from rkd_jax.backdoors.base import CLEAN, POISONED, Backdoor, Mode


def apply(
  backdoor: Backdoor,
  images: jax.Array,
  labels: jax.Array,
  kinds: jax.Array,
  keys: jax.Array,
  mode: Mode = "train",
) -> tuple[jax.Array, jax.Array]:
  """Poisoned examples get trigger and label, covers the trigger only, clean ones nothing.

  Args:
    backdoor: the trigger and its label.
    images: float[B, H, W, C] in [0, 1].
    labels: int32[B]; -1, where the defender has none, stays -1.
    kinds: int8[B] of CLEAN, POISONED, COVER.
    keys: key[B], one an example.
    mode: "train" or "test".

  Returns:
    (images, labels), shapes and types as given.
  """
  triggered = backdoor.trigger(images, keys, mode).astype(images.dtype)
  images = jnp.where((kinds != CLEAN)[:, None, None, None], triggered, images)
  relabelled = (kinds == POISONED) & (labels >= 0)
  return images, jnp.where(relabelled, backdoor.relabel(labels), labels)
