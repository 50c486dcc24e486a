"""Images that are read when they are asked for. (The contract; the reading is being written.)"""

from collections.abc import Sequence
from typing import Any

import numpy as np

Images = Any  # uint8[N, H, W, C]: an array, or what behaves as one when rows are taken


def concatenate(parts: Sequence[Images]) -> Images:
  """The parts behind each other."""
  return np.concatenate(parts)


def cropped(
  images: Images, rows: np.ndarray, draws: Sequence[np.random.Generator], scale: float, size: int
) -> np.ndarray:
  """uint8[n, size, size, C]: a random-resized-crop of each row, drawn from its own generator."""
  raise NotImplementedError
