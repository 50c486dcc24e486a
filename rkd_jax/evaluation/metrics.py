"""From predicted classes to proportions, composites of them, and their intervals.

Pure numpy. Definitions as in BackdoorBench (Wu et al., 2022): the target class is left out of ASR
and RA, for an image of that class says nothing when it is put there.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats

Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution
_CHUNK = 1 << 20  # resampled entries held at once by the bootstrap


@dataclasses.dataclass(frozen=True)
class Proportion:
  """`count` hits out of `n` examples. With n = 0 nothing is known: value and interval are None."""

  count: int
  n: int

  def __post_init__(self):
    if not 0 <= self.count <= self.n:
      raise ValueError(f"count is {self.count}; it must lie between 0 and n = {self.n}.")

  @property
  def value(self) -> float | None:
    """count / n in [0, 1]."""
    return self.count / self.n if self.n else None

  @property
  def ci95(self) -> tuple[float, float] | None:
    """The Wilson score interval at 95 % (Wilson, 1927), inside [0, 1]."""
    if not self.n:
      return None
    p, n, z2 = self.count / self.n, self.n, Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # at the ends the formula is exact but for rounding: 0 hits start at 0, n hits end at 1
    low = 0.0 if self.count == 0 else centre - half
    return low, 1.0 if self.count == n else centre + half

  def fields(self) -> dict[str, Any]:
    """The four fields of a cell of results.json that a proportion fills."""
    return {"count": self.count, "n": self.n, "value": self.value, "ci95": self.ci95}


def accuracy(predicted: np.ndarray, labels: np.ndarray) -> Proportion:
  """ACC: how many of `predicted` int[N] equal `labels` int[N]."""
  predicted, labels = _classes(predicted, labels)
  return _among(predicted == labels)


def attack_success(
  predicted: np.ndarray, labels: np.ndarray, target: int | np.ndarray
) -> Proportion:
  """ASR: how many triggered images go to the target, among those that do not belong there.

  Args:
    predicted: int[N], predictions on triggered images.
    labels: int[N], the true classes.
    target: the target class, or int[N], each image's (a backdoor's `relabel(labels)`, which also
      covers all-to-all and source-specific attacks).
  """
  predicted, labels = _classes(predicted, labels)
  return _among(predicted == target, labels != target)


def robust_accuracy(
  predicted: np.ndarray, labels: np.ndarray, target: int | np.ndarray
) -> Proportion:
  """RA: how many triggered images keep their true class, among the same ones as ASR's."""
  predicted, labels = _classes(predicted, labels)
  return _among(predicted == labels, labels != target)


def target_accuracy(
  predicted: np.ndarray, labels: np.ndarray, target: int | np.ndarray
) -> Proportion:
  """Target ACC: how many clean images that belong where a trigger leads others go there.

  A student that forgot the class follows no trigger, so a low ASR says little without it. Nothing
  is known where no image is led away (no trigger is known), or where each class is led to another.
  """
  predicted, labels = _classes(predicted, labels)
  goals = np.broadcast_to(target, labels.shape)
  return _among(predicted == labels, (labels == goals) & np.isin(labels, goals[labels != goals]))


def fidelity(a: np.ndarray, b: np.ndarray) -> Proportion:
  """How often two networks' predictions int[N] agree, right or wrong."""
  a, b = _classes(a, b)
  return _among(a == b)


def der(acc0: Any, asr0: Any, acc: Any, asr: Any) -> Any:
  """Defence effectiveness rating in [0, 1]; 0.5 = did nothing (Zhu et al., FT-SAM, 2023, eq. 7).

  [max(0, ASR0 - ASR) - max(0, ACC0 - ACC) + 1] / 2, with 0 the undefended network. Floats, or
  arrays (as in a bootstrap); None where one of them is None.
  """
  return _rating(acc0, acc, asr0, asr)


def rir(acc0: Any, ra0: Any, acc: Any, ra: Any) -> Any:
  """Robustness improvement rating in [0, 1]: `der` with RA's gain in place of ASR's fall."""
  return _rating(acc0, acc, ra, ra0)


def carried(asr_poisoned: Any, asr_clean: Any) -> Any:
  """Carried ASR in [-1, 1]: what the poisoned teacher's student has over the clean teacher's."""
  return None if asr_poisoned is None or asr_clean is None else asr_poisoned - asr_clean


def transfer_ratio(asr_student: Any, asr_teacher: Any) -> Any:
  """ASR of the student over its teacher's; None where the teacher's is 0 (NaN inside arrays)."""
  if asr_student is None or asr_teacher is None:
    return None
  if np.ndim(asr_teacher) == 0:
    return None if asr_teacher == 0 else asr_student / asr_teacher
  return np.divide(asr_student, np.where(asr_teacher == 0, np.nan, asr_teacher))


def share(hits: np.ndarray, members: np.ndarray | None = None) -> np.ndarray:
  """Mean of `hits` [..., N] over the last axis, of `members` [..., N] only; NaN if there are none.

  The building block of a bootstrap's statistic: `share(to_target, labels != target)` is an ASR.
  """
  if members is None:
    return np.mean(hits, -1)
  total = np.sum(members, -1, dtype=float)
  return np.sum(hits * members, -1, dtype=float) / np.where(total == 0, np.nan, total)


def paired_bootstrap(
  statistic: Callable[..., Any], *arrays: np.ndarray, seed: int, resamples: int = 2000
) -> tuple[float, float] | None:
  """A 95 % percentile interval of a statistic of several measurements of the same examples.

  Args:
    statistic: takes the arrays, each [R, N], and reduces their last axis: float[R].
    *arrays: each [N], row i of all of them about example i; they are resampled together.
    seed: makes the interval reproducible.
    resamples: how many times N examples are drawn.

  Returns:
    (low, high); None without examples or where the statistic is never finite. Resamples in which it
    is not (a ratio over 0) are left out.
  """
  n = {len(a) for a in arrays}
  if len(n) != 1:
    raise ValueError(f"The arrays must be of one length; they have {sorted(n)}.")
  if not (size := n.pop()):
    return None
  rng, values = np.random.default_rng(seed), []
  rows = max(1, _CHUNK // size)
  for start in range(0, resamples, rows):
    index = rng.integers(0, size, (min(rows, resamples - start), size))
    values.append(np.asarray(statistic(*(a[index] for a in arrays)), float))
  finite = np.concatenate(values)
  finite = finite[np.isfinite(finite)]
  if not len(finite):
    return None
  low, high = np.percentile(finite, (2.5, 97.5))
  return float(low), float(high)


def t_interval(
  values: Sequence[float], limits: tuple[float, float] = (0.0, 1.0)
) -> tuple[float, float] | None:
  """A 95 % Student interval of a mean over seeds, clipped to `limits`; None for fewer than two."""
  if len(values) < 2:
    return None
  mean = float(np.mean(values))
  half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
  return max(limits[0], mean - half), min(limits[1], mean + half)


def _classes(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  a, b = np.asarray(a), np.asarray(b)
  if a.ndim != 1 or a.shape != b.shape:
    raise ValueError(f"Two int[N] are expected; their shapes are {a.shape} and {b.shape}.")
  for classes in (a, b):
    if classes.size and not np.issubdtype(classes.dtype, np.integer):
      raise ValueError(f"Classes are integers; these are {classes.dtype}. Are they logits?")
  return a, b


def _among(hits: np.ndarray, members: np.ndarray | None = None) -> Proportion:
  if members is None:
    return Proportion(int(hits.sum()), hits.size)
  return Proportion(int((hits & members).sum()), int(members.sum()))


def _rating(acc0: Any, acc: Any, before: Any, after: Any) -> Any:
  if any(x is None for x in (acc0, acc, before, after)):
    return None
  return (np.maximum(0, before - after) - np.maximum(0, acc0 - acc) + 1) / 2
