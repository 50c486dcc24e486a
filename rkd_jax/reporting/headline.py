"""The verdicts in the three seconds that a reader has."""

from collections.abc import Sequence
from typing import Any

from rkd_jax.reporting.formats import percent
from rkd_jax.reporting.verdict import Verdict

WORDS = {  # outcome -> how the headline says it
  "removed": ("Removed", " by"),
  "class lost": ("Target class lost with the backdoor", " by"),
  "not removed": ("Not removed", " by"),
  "nothing to remove": ("Nothing to remove", " for"),
  "transferred": ("Robustness taken over", " by"),
  "not transferred": ("Robustness lost", " by"),
  "unknown": ("Unknown", " for"),
  "carried over": ("Carried over", " by undefended"),
  "not carried over": ("Not carried over", " by undefended"),
}
NAMED = 4  # methods of one outcome that the headline names


def make(found: Sequence[Verdict]) -> list[dict[str, Any]]:
  """The verdicts in a few words, defended first: [{"outcome", "word", "rest", "minor"}]."""
  parts = []
  for outcome, (word, link) in WORDS.items():
    who = [_at(v) for v in found if v.outcome == outcome]
    minor = bool(parts) and link.endswith("undefended")
    if who:
      rest = f"{link} {_listed(who)}."
      parts.append({"outcome": outcome, "word": word, "rest": rest, "minor": minor})
  nothing = {"outcome": "unknown", "word": "Nothing to judge", "minor": False}
  nothing |= {"rest": ": no student with a teacher was measured."}
  return parts or [nothing]


def _at(found: Verdict) -> str:
  """A cure is named with the accuracy left: a student that knows nothing has no backdoor."""
  cured = found.outcome == "removed" and found.accuracy is not None
  return f"{found.label} (accuracy {percent(found.accuracy)})" if cured else found.label


def _listed(names: Sequence[str]) -> str:
  if len(names) > NAMED:
    return f"{', '.join(names[: NAMED - 1])} and {len(names) - NAMED + 1} more"
  return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
