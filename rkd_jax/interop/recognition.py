"""Which architecture a checkpoint's names and shapes belong to."""

from collections.abc import Mapping
from typing import Any

from rkd_jax.interop.checkpoint import Checkpoint
from rkd_jax.interop.conversion import best, described
from rkd_jax.interop.converted import describe


def recognised(checkpoint: Checkpoint) -> dict[str, Any] | None:
  """The fields of `Converted` but its arrays, as JSON has them; None: not known.

  No array is read. JAX is imported only where the names resemble something known.
  """
  if checkpoint.kind == "phase":
    return None
  found = best(checkpoint)
  if found is None or len(found.difference):
    return None
  return described(found, checkpoint.metadata)


def recognise(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
  """One line on the architecture whose parameters have these names and shapes; None: not known.

  Args:
    shapes: {name: shape} of a checkpoint's tensors.
  """
  import numpy as np

  empty = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
  found = recognised(Checkpoint("", "", 0, "", empty))
  return describe(found) if found else None
