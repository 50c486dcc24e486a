"""About how long a run still takes, from what its phases took so far."""

import re
from collections.abc import Iterable, Mapping

Work = tuple[str, int]  # a phase's title and its steps


class Plan:
  """The phases of a run, known before it begins, and what those that are done have cost.

  A step is as long as the steps of phases of that name and method so far, else of that name, else
  of any. So it is an estimate, and none before anything was measured.
  """

  def __init__(self, expected: Iterable[Work] = ()):
    self._ahead = list(expected)
    self.total, self.finished = len(self._ahead), 0
    self._measured: dict[str, tuple[int, float]] = {}  # name -> steps, seconds

  def begin(self, title: str) -> None:
    """A phase is no longer ahead: it runs, or it was found."""
    ahead = next((work for work in self._ahead if work[0] == title), None)
    if ahead:
      self._ahead.remove(ahead)
    elif self.total:  # two strengths that are chosen together make a student nobody could foresee
      self.total += 1

  def end(self, title: str, steps: int = 0, seconds: float = 0.0) -> None:
    """A phase is done, of which this process made some steps."""
    self.finished += 1
    for name in _names(title) if steps else ():
      before = self._measured.get(name, (0, 0.0))
      self._measured[name] = before[0] + steps, before[1] + seconds

  def ahead(self, title: str = "", rate: float | None = None) -> float | None:
    """Seconds that the phases ahead take; None where nothing is known of one of them.

    Args:
      title: of the phase that runs now.
      rate: its seconds for each step, so far.
    """
    running = dict.fromkeys(_names(title), rate) if title and rate is not None else {}
    total = 0.0
    for other, steps in self._ahead:
      seconds = self._rate(other, running)
      if seconds is None:
        return None
      total += steps * seconds
    return total

  def _rate(self, title: str, running: Mapping[str, float]) -> float | None:
    for name in _names(title):
      if name in self._measured:
        steps, seconds = self._measured[name]
        return seconds / steps
      if name in running:
        return running[name]
    return None


def about(seconds: float | None) -> str:
  """A duration as one says it when it is not known better: "about 2:30"."""
  if seconds is None:
    return ""
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  days, hours = divmod(hours, 24)
  if days:
    return f"about {days} d {hours} h"
  return f"about {hours}:{minutes:02}:{rest:02}" if hours else f"about {minutes}:{rest:02}"


def _names(title: str) -> list[str]:
  """What a phase is like, from "seed 0  student: kd": the same of other seeds, and ever less."""
  alike = re.sub(r"^seed \d+\s+", "", title)
  return [alike, alike.partition(":")[0], ""]
