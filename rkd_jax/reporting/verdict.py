"""The sentences on top of a report: was the backdoor carried over, and was it removed?"""

import dataclasses
from collections.abc import Sequence

from rkd_jax.reporting.formats import interval, percent
from rkd_jax.reporting.table import Row

# removed = worst ASR at most this, and worst carried ASR (where known) at most that
REMOVED_ASR, REMOVED_CARRIED = 0.10, 0.05
LOST = 0.5  # ... and in no seed a target ACC below that much of the undefended student's
_UNKNOWN = "unknown"  # the backdoor of a teacher whose trigger nobody knows
NO_TEACHER = "none"  # the control that was trained without one


@dataclasses.dataclass(frozen=True)
class Verdict:
  """`outcome`: removed, class lost, not removed, unknown; nothing to remove; carried over, not
  carried over; and without a backdoor, of robustness: transferred, not transferred.
  `accuracy`: the mean, of a student that was cured."""

  label: str
  outcome: str
  sentence: str
  accuracy: float | None = None


def verdicts(table: Sequence[Row], target: str) -> list[Verdict]:
  """One verdict per student that had a teacher, undefended ones first. `target`: in words."""
  students = [row for row in table if row.method not in (None, NO_TEACHER)]
  undefended = _undefended(students)
  alone = next((row.mean("acc") for row in table if row.method == NO_TEACHER), None)
  teacher = next((row for row in table if row.method is None), None)
  first = [_undefended_verdict(row, teacher, target) for row in undefended]
  defended = [row for row in students if row not in undefended]
  asleep = follows(teacher) is False
  references = [_reference(row, undefended) for row in defended]
  there = [False if other is None and asleep else carries(other) for other in references]
  return first + [
    _defended_verdict(row, came, alone, other)
    for row, came, other in zip(defended, there, references, strict=True)
  ]


def undefended(table: Sequence[Row]) -> list[Row]:
  """The students of plain distillation, which others are compared with."""
  return _undefended([row for row in table if row.method not in (None, NO_TEACHER)])


def best(table: Sequence[Row]) -> Row | None:
  """The defended student of the lowest worst ASR, then of the highest accuracy: who is drawn. One
  that lost the target class comes last.

  It is picked with the test set, so it says nothing of how well a defence does.
  """
  plain = undefended(table)
  rest = [r for r in table if r.method not in (None, NO_TEACHER) and r not in plain]
  known = [row for row in rest if row.worst("asr") is not None]

  def rank(row: Row) -> tuple[bool, float, float]:
    return bool(_lost(row, _reference(row, plain))), row.worst("asr") or 0, -(row.mean("acc") or 0)

  return min(known, key=rank, default=None)


def follows(row: Row | None) -> bool | None:
  """Whether a backdoor shows in the network, by the thresholds; None where that is not known."""
  asr = row.worst("asr") if row else None
  if row is None or asr is None:
    return None
  return asr > REMOVED_ASR or (row.highest("carried_asr") or 0) > REMOVED_CARRIED


def carries(row: Row | None) -> bool | None:
  """Whether the teacher put it there: by carried ASR where that tells, else by ASR.

  One seed in which it came over is enough; that it did not takes all of them.

  None where the ASR alone does not tell: a trigger that fools a network which never met the teacher
  as often may have come over or not.
  """
  if row and (row.highest("carried_asr") or 0) > REMOVED_CARRIED:
    return True
  if row and row.worst("carried_asr") is not None:
    return False
  return None if row and follows(row) and _fools_anyone(row) else follows(row)


def _fools_anyone(row: Row) -> bool:
  """Whether in no seed the ASR is above the natural rate by more than `REMOVED_CARRIED`."""
  natural = {(c.seed, c.teacher_seed): c.value for c in row.of("natural_rate")}
  pairs = [(c.value, natural.get((c.seed, c.teacher_seed))) for c in row.of("asr")]
  above = [None if a is None or b is None else a - b for a, b in pairs]
  return bool(above) and all(a is not None and a <= REMOVED_CARRIED for a in above)


def _undefended(students: Sequence[Row]) -> list[Row]:
  bases = {row.base for row in students if row.base != row.method} | {"kd"}
  return [row for row in students if row.method in bases]


def _reference(row: Row, undefended: Sequence[Row]) -> Row | None:
  """The undefended row of the same base; a method that names no base is compared with kd's."""
  return next((other for other in undefended if other.method == (row.base or "kd")), None)


def _undefended_verdict(row: Row, teacher: Row | None, target: str) -> Verdict:
  who, carried = f"Undefended distillation ({row.label})", carries(row)
  if row.worst("asr") is None:
    return _unknown(row, who)
  asr = f"{_worst(row)} of triggered images go to {target} ({_who(row)})"
  at = f"at {_accuracy(row)}"
  if carried is None:
    text = f"{who}: {asr}, {at}{_natural(row)}. Only a clean teacher's student would tell whether"
    return Verdict(row.label, "unknown", f"{text} the backdoor came over.")
  if carried:
    text = f"{who} carried the backdoor over: {asr}, {at}."
    if row.highest("natural_rate") is None and row.highest("carried_asr") is None:
      text += " No network that never met the teacher was asked how far the trigger fools anyone."
    return Verdict(row.label, "carried over", text)
  text = f"{who} carried nothing over: {asr}, {at}{_natural(row)}."
  if teacher and follows(teacher) is False:
    text += f" The teacher itself hardly follows the trigger: ASR {_worst(teacher)}."
  return Verdict(row.label, "not carried over", text)


def _defended_verdict(
  row: Row, there: bool | None, alone: float | None, reference: Row | None
) -> Verdict:
  """`there`: whether undefended distillation (`reference`) carries the backdoor over; None: not
  known."""
  shows = follows(row)
  if shows is None:
    return _unknown(row, row.label)
  facts = f"{_worst(row)} ({_who(row)}) at {_accuracy(row)}"
  facts += _cost(row, alone)
  if shows:
    text = f"{row.label} did not remove the backdoor: ASR {facts}{_natural(row)}."
    return Verdict(row.label, "not removed", text)
  if there is False:
    text = f"{row.label}: ASR {facts}. There was nothing to remove, so this is no cure."
    return Verdict(row.label, "nothing to remove", text)
  if there is None:
    text = f"{row.label}: ASR {facts}, so no backdoor shows in it. Whether undefended distillation"
    return Verdict(row.label, "unknown", f"{text} would have carried it is unknown.")
  if lost := _lost(row, reference):
    text = f"{row.label} lost the target class along with the backdoor: ASR {facts}."
    return Verdict(row.label, "class lost", f"{text} {lost}")
  text = f"{row.label} removed the backdoor: ASR {facts}{_reaches(row)}."
  return Verdict(row.label, "removed", text, row.mean("acc"))


def _unknown(row: Row, who: str) -> Verdict:
  nobody = any(cell.backdoor == _UNKNOWN for cell in row.cells)
  why = "No trigger is known" if nobody else "The trigger's success was not measured for every seed"
  at = "" if row.mean("acc") is None else f", at {_accuracy(row)}"
  return Verdict(row.label, "unknown", f"{who}: unknown{at}. {why}.")


def _worst(row: Row) -> str:
  worst = row.worst("asr")
  cell = next(c for c in row.of("asr") if c.value == worst)
  return " ".join(filter(None, (percent(worst), interval("asr", cell.ci95))))


def _accuracy(row: Row) -> str:
  kind = "mean accuracy" if len(row.of("acc")) > 1 else "accuracy"
  return f"{percent(row.mean('acc'))} {kind}"


def _who(row: Row) -> str:
  cells = row.of("asr")
  teachers = {c.seed if c.teacher_seed is None else c.teacher_seed for c in cells}
  if len(cells) == 1:
    return "one teacher"
  if len(teachers) == 1:
    return f"worst of {len(cells)} students of one teacher"
  students = "" if len(cells) == len(teachers) else f", {len(cells)} students"
  return f"worst of {len(teachers)} teachers{students}"


def _reaches(row: Row) -> str:
  """Whether chance alone might explain that it is below the limit."""
  highest = max((c.ci95[1] for c in row.of("asr") if c.ci95), default=0.0)
  return f"; an interval reaches to {percent(highest)}" if highest > REMOVED_ASR else ""


def _lost(row: Row, reference: Row | None) -> str:
  """How a student that forgot the target class does there; empty where none did."""
  there = {(c.seed, c.teacher_seed): c for c in reference.of("target_acc")} if reference else {}
  pairs = [(c, there.get((c.seed, c.teacher_seed))) for c in row.of("target_acc")]
  known = [(a.value, b.value) for a, b in pairs if b]
  known = [(own, other) for own, other in known if own is not None and other is not None]
  lost = [(own, other) for own, other in known if own < LOST * other]
  if not lost or not reference:
    return ""
  own, other = min(lost)
  where = f" (the worst of {len(lost)} such students of {len(known)})" if len(known) > 1 else ""
  return (
    f"It gets {percent(own)} of clean images of that class right, {reference.label} "
    f"{percent(other)}{where}: a student that does not know a class follows no trigger into it."
  )


def _natural(row: Row) -> str:
  """A high ASR that a clean teacher's student shares is the trigger's doing, not the teacher's."""
  carried, natural = row.worst("carried_asr"), row.worst("natural_rate")
  if carried is None and (some := row.highest("carried_asr") or 0) > REMOVED_CARRIED:
    return f"; carried ASR {percent(some)} in one of the seeds that have a clean teacher"
  if carried is None and _fools_anyone(row) and (row.worst("asr") or 0) > REMOVED_ASR:
    return f"; a network that never met the teacher follows it as often ({percent(natural)})"
  if carried is None:
    return ""
  if carried > REMOVED_CARRIED or (row.worst("asr") or 0) <= REMOVED_ASR:
    return f"; carried ASR {percent(carried)}"
  return (
    f"; a clean teacher's student follows the trigger as often (carried ASR {percent(carried)})"
  )


def _cost(row: Row, alone: float | None) -> str:
  acc = row.mean("acc")
  if acc is None or alone is None or acc > alone:
    return ""
  return f", no better than without any teacher ({percent(alone)})"
