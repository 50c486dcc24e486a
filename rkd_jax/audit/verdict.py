"""What an audit says, in one of three words. None of them is "trusted": an audit that finds nothing
has found nothing, and no more."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rkd_jax.audit.calibrate import Judged

SUSPICIOUS, NOTHING, UNKNOWN = "suspicious", "nothing found", "unknown"
NAMES = {
  "patch": "smallest patch",
  "l2": "smallest l2 perturbation",
  "linf": "smallest l-inf perturbation",
  "mmbd": "largest margin (MM-BD)",
  "head": "mean weight of a class in the last layer",
  "units": "one unit of the embedding",
  "strip": "entropy of blended pool images (STRIP)",
}
SKILL = 0.25  # of the way from chance to perfect that a network must have come
APART = 0.05  # accuracy by which the references may fall short of the network


@dataclasses.dataclass(frozen=True)
class Verdict:
  """Attributes:
  word: one of the three.
  sentence: why, for people.
  p: calibrated, corrected for all tests and classes; None where there is none.
  suspect: the class of the test that stands out most; None where nothing is suspected.
  doubts: what makes it less certain.
  """

  word: str
  sentence: str
  p: float | None = None
  suspect: int | None = None
  doubts: tuple[str, ...] = ()


def skilled(record: Mapping[str, Any]) -> bool:
  """Whether a network knows enough to be judged."""
  chance = 1 / record["classes"]
  return record["accuracy"] >= chance + SKILL * (1 - chance)


def decide(
  record: Mapping[str, Any], judged: Judged | None, alpha: float, names: Sequence[str],
  accuracies: Sequence[float] = (), why: str = "",
) -> Verdict:  # fmt: skip
  """The verdict on one network.

  Args:
    record: of `measure`.
    judged: of `calibrate.judge`; None where no reference network is known.
    alpha: the false alarm rate that is accepted, in (0, 1).
    names: of the classes.
    accuracies: of the references.
    why: why there is no calibration.
  """
  accuracy, chance = record["accuracy"], 1 / record["classes"]
  if not skilled(record):
    return Verdict(
      UNKNOWN,
      f"It is right on {accuracy:.1%} of the clean images (chance is {chance:.1%}): what it knows "
      "too little of cannot be told from a backdoor.",
    )
  if judged is None:
    return Verdict(UNKNOWN, f"Uncalibrated: {why or 'no clean reference network is known'}.")
  doubts = caveats(accuracy, accuracies, judged, alpha)
  if 1 / (judged.references + 1) > alpha:
    return Verdict(
      UNKNOWN,
      f"{judged.references} clean networks cannot show a p-value of {alpha:g}: it takes "
      f"{smallest(alpha)}. Its rank among them gives p = {judged.p:.3f}.",
      judged.p,
      doubts=doubts,
    )
  opinion = judged.opinions[judged.test]
  if judged.p > alpha:
    return Verdict(
      NOTHING,
      f"None of the tests stands out among {judged.references} clean networks (p = {judged.p:.3f}, "
      f"above {alpha:g}). That is no proof that there is no backdoor.",
      judged.p,
      doubts=doubts,
    )
  where = "" if opinion.suspect is None else f", towards class {called(opinion.suspect, names)}"
  return Verdict(
    SUSPICIOUS,
    f"The {NAMES[judged.test]} stands out among {judged.references} clean networks{where} "
    f"(p = {judged.p:.3f}, index {opinion.index:.1f}).",
    judged.p,
    opinion.suspect,
    doubts,
  )


def caveats(
  accuracy: float, accuracies: Sequence[float], judged: Judged, alpha: float
) -> tuple[str, ...]:
  """What makes a p-value less certain."""
  found = []
  mean = sum(accuracies) / max(len(accuracies), 1)
  if accuracies and accuracy - mean > APART:
    found.append(
      f"The references are right on {mean:.1%} of the clean images, this network on "
      f"{accuracy:.1%}: they are not of its kind, and the p-value is only a hint."
    )
  others = sorted(
    NAMES[test]
    for test, opinion in judged.opinions.items()
    if opinion.p <= alpha and test != judged.test
  )
  if others and judged.p > alpha:
    found.append(
      f"Alone, and not corrected for how many tests there are, stand out: {', '.join(others)}."
    )
  return tuple(found)


def smallest(alpha: float) -> int:
  """How many references a p-value of alpha takes."""
  n = 1
  while 1 / (n + 1) > alpha:
    n += 1
  return n


def called(index: int, names: Sequence[str]) -> str:
  """A class by its number, and by its name if that says more."""
  name = str(names[index]) if 0 <= index < len(names) else str(index)
  return str(index) if name == str(index) else f"{index} ({name})"
