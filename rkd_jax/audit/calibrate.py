"""How unusual a network is among clean ones of its kind: a p-value, whatever the statistic.

Full conformal inference (Vovk et al., "Algorithmic learning in a random world", 2005): the audited
network is put among n clean reference networks, every one of the n + 1 is scored against the other
n by one and the same rule, and p is the share of them that score at least as high. If the audited
network is exchangeable with the references, P(p <= alpha) <= alpha, for any statistic, any number
of tests and any number of classes: there is nothing to correct for afterwards.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rkd_jax.errors import UserError

SHRINK = 0.5  # how much of a class's own variance counts; the rest is the mean of all classes'
FEWEST = 5  # references to speak of a p-value at all
LARGEST = 1e100  # of a value, so that its square is finite
Record = Mapping[str, Any]  # of `measure`


@dataclasses.dataclass(frozen=True)
class Opinion:
  """What one test says of the audited network.

  Attributes:
    index: how far the most suspicious class is above the same class of the references, in their
      standard deviations.
    suspect: that class; None where the test is not about classes.
    p: of this test alone, not corrected for the others.
  """

  index: float
  suspect: int | None
  p: float


@dataclasses.dataclass(frozen=True)
class Judged:
  """What they say together.

  Attributes:
    p: of the largest index, every test's made comparable; corrected for all tests and classes.
    test: which test's that is.
    opinions: {test: Opinion}, of the others too.
    references: how many there were.
  """

  p: float
  test: str
  opinions: dict[str, Opinion]
  references: int


def surprise(values: np.ndarray) -> np.ndarray:
  """float[n, K]: how much higher each network's class k is than that of the n - 1 others.

  Each network's values are first centred by their median over classes: a network that is easier to
  lead astray as a whole is no suspect. Then (C_ik - mean) / (s sqrt(1 + 1/(n-1))), mean and s over
  the others; s^2 is shrunk towards its mean over classes. Rows enter symmetrically: permuting the
  networks permutes the result.

  Args:
    values: float[n, K]; K = 1 is not centred.
  """
  n, K = values.shape
  centred = values - (np.median(values, 1, keepdims=True) if K > 1 else 0)
  mean = (centred.sum(0) - centred) / (n - 1)
  square = ((centred**2).sum(0) - centred**2) / (n - 1)
  variance = np.maximum(square - mean**2, 0) * (n - 1) / max(n - 2, 1)
  variance = SHRINK * variance + (1 - SHRINK) * variance.mean(1, keepdims=True)
  floor = 1e-12 + 1e-6 * np.abs(centred).max(initial=0)
  return (centred - mean) / np.sqrt(np.maximum(variance * (1 + 1 / (n - 1)), floor**2))


def judge(references: Sequence[Record], audited: Record, family: Sequence[str]) -> Judged:
  """Scores a network among clean ones.

  Args:
    references: records of clean networks.
    audited: the record of the network in question.
    family: the tests whose combination gives the p-value, as far as all have them; others only
      have an opinion of their own.

  Raises:
    UserError: fewer than `FEWEST` references, other numbers of classes, no test that all have, or a
      value that has no rank: compared with NaN not even the network itself counts, and p is 0.
  """
  everyone = [*references, audited]
  if len(references) < FEWEST:
    raise UserError(
      f"A calibration by {len(references)} clean networks says nothing; {FEWEST} at the least, 20 "
      "for a p-value below .05."
    )
  common = [t for t in audited["tests"] if all(t in one["tests"] for one in everyone)]
  scores, opinions = {}, {}
  for test in common:
    rows = [one["tests"][test]["values"] for one in everyone]
    if len({len(row) for row in rows}) > 1:
      raise UserError(f"The references have another number of classes in the test {test!r}.")
    values = np.asarray(rows, float)
    if not (np.abs(values) <= LARGEST).all():  # NaN too
      raise UserError(
        f"The test {test!r} has a value that is not finite, or beyond {LARGEST:g}, of one of these "
        "networks, so none can be ranked. Measure them again."
      )
    found = surprise(values)
    highest = found.max(1)
    suspect = int(found[-1].argmax()) if found.shape[1] > 1 else None
    opinions[test] = Opinion(float(highest[-1]), suspect, share(highest))
    scores[test] = surprise(highest[:, None])[:, 0]
  used = [test for test in common if test in family]
  if not used:
    raise UserError(
      f"No test is left for a verdict: of {', '.join(family)} none was made of every network."
    )
  together = np.stack([scores[test] for test in used])
  highest = together.max(0)
  return Judged(share(highest), used[int(together[:, -1].argmax())], opinions, len(references))


def share(scores: np.ndarray) -> float:
  """(1 + how many references score at least as high as the last) / (n + 1)."""
  return float(np.mean(scores >= scores[-1]))


def false_alarms(references: Sequence[Record], family: Sequence[str]) -> list[float]:
  """The p-value of every reference among the others: a share alpha of them is at most alpha."""
  return [
    judge([*references[:i], *references[i + 1 :]], one, family).p
    for i, one in enumerate(references)
  ]
