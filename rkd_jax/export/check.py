"""Whether an exported network answers as JAX does, on real images; and what it answers."""

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np

from rkd_jax.errors import UserError

Answer = Callable[[np.ndarray], np.ndarray]  # images float32[B, H, W, C] -> logits float32[B, K]
TOLERANCE = 1e-3  # of the largest logit: sums in another order differ by 1e-6, errors by far more
LEAST = 0.9  # of images on which int8 must agree with float32


@dataclasses.dataclass
class Compared:
  """What two networks say of the same images.

  Attributes:
    here, there: int32[N] each, the class that JAX and the exported network give them.
    difference: the largest of |logit there - logit here|; infinite where one is not a number.
    largest: the largest |logit here|.
  """

  here: np.ndarray
  there: np.ndarray
  difference: float
  largest: float

  @property
  def agreement(self) -> float:
    """The share of images that get the same class."""
    return float(np.mean(self.here == self.there))


def compare(here: Answer, there: Answer, batches: Iterable[np.ndarray], count: int) -> Compared:
  """Asks both about the first `count` images of the batches; what fills up the last is left out."""
  said: list[tuple[np.ndarray, np.ndarray]] = []
  difference, largest, left = 0.0, 0.0, count
  for images in batches:
    a, b = (np.asarray(ask(images), np.float32)[:left] for ask in (here, there))
    if a.shape != b.shape:
      raise UserError(f"The exported network answers {list(b.shape)}, JAX {list(a.shape)}.")
    apart = np.abs(b - a)
    difference = max(difference, float(apart.max()) if np.isfinite(apart).all() else np.inf)
    largest = max(largest, float(np.abs(a).max()))
    said.append((a.argmax(1), b.argmax(1)))
    left -= len(a)
  ours, theirs = (np.concatenate(parts).astype(np.int32) for parts in zip(*said, strict=True))
  return Compared(ours, theirs, difference, largest)


def require(
  what: str, compared: Iterable[Compared], tolerance: float | None, least: float | None
) -> None:
  """Raises a `UserError` where the exported network is another one.

  Args:
    what: is exported, for people.
    tolerance: of the largest logit that the difference may have; None: any.
    least: of images that must get the same class; None: any.
  """
  for one in compared:
    if not np.isfinite(one.difference):
      raise UserError(f"{what}: it answers numbers that are not finite. It was not written.")
    if tolerance is not None and one.difference > tolerance * max(one.largest, 1e-6):
      raise UserError(
        f"{what} does not answer as JAX does: logits differ by {one.difference:.3g}, where the "
        f"largest is {one.largest:.3g}, and {tolerance:g} of that is tolerated. It was not "
        "written. Please report it, with the network's name; --format stablehlo is JAX's own way."
      )
    if least is not None and one.agreement < least:
      raise UserError(
        f"{what} agrees with JAX on {one.agreement:.1%} of {len(one.here)} images; at least "
        f"{least:.0%} is asked for. It was not written. Another --calibration may round better; "
        "--least-agreement says what is enough."
      )
