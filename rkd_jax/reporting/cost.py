"""What each method's networks cost to train: steps, time, speed, memory."""

from collections.abc import Mapping, Sequence
from typing import Any

from rkd_jax.reporting.formats import NOT_MEASURED

Phase = Mapping[str, Any]
UNITS = ("B", "KB", "MB", "GB", "TB", "PB")


def table(phases: Sequence[Phase], costs: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
  """A line for each method: means over seeds of the sums over its phases, taught by the given
  teacher; the attacker's teacher first.

  A phase that several methods need counts in each, and so do strengths that were only tried. Where
  the manifest does not say which phases a method needed, a line is a phase's.

  Args:
    phases: of the manifest.
    costs: of the manifest, {"seed", "method", "teacher", "phases": [key]}; may be empty.
  """
  teachers = [p for p in phases if p.get("name") == "teacher" and p.get("teacher") == "poisoned"]
  groups = {"teacher": _seeds(teachers)} if teachers else {}
  if costs:
    by_key = {str(p.get("key")): p for p in phases}
    for one in costs:
      if one.get("teacher") == "poisoned":
        own = [by_key[k] for k in map(str, one.get("phases") or ()) if k in by_key]
        groups.setdefault(str(one.get("method")), []).append(own)
  else:
    rest = [p for p in phases if p.get("teacher") != "clean" and p not in teachers]
    for name in dict.fromkeys(_name(p) for p in rest):
      groups[name] = _seeds([p for p in rest if _name(p) == name])
  return [_line(name, seeds) for name, seeds in groups.items() if any(seeds)]


def seconds(phases: Sequence[Phase]) -> float:
  """Of all phases together."""
  return sum(_number(phase.get("seconds")) or 0.0 for phase in phases)


def duration(value: float | None) -> str:
  """Seconds, minutes or hours, whichever reads best."""
  if value is None:
    return NOT_MEASURED
  for limit, size, unit in ((120, 1, "s"), (7200, 60, "min")):
    if value < limit:
      return f"{value / size:.1f}\u202f{unit}"
  return f"{value / 3600:.1f}\u202fh"


def memory(value: Any) -> str:
  """Bytes in the unit that reads best."""
  size = _number(value)
  if size is None:
    return NOT_MEASURED
  power = min(len(UNITS) - 1, max(0, (int(size).bit_length() - 1) // 10))
  return f"{size / 1024**power:.{min(power, 1)}f}\u202f{UNITS[power]}"


def peak(phases: Sequence[Phase], where: str) -> float | None:
  """The largest peak of "device" or "host" memory among phases that recorded it."""
  found = [p.get("peak_memory") for p in phases]
  sizes = [_number(peak.get(where)) for peak in found if isinstance(peak, Mapping)]
  return max((size for size in sizes if size is not None), default=None)


def _line(name: str, seeds: Sequence[Sequence[Phase]]) -> dict[str, str]:
  every = [phase for own in seeds for phase in own]
  time, images = seconds(every), 0.0
  for phase in every:
    images += (_number(phase.get("seconds")) or 0) * (_number(phase.get("images_per_second")) or 0)
  steps = sum(_number(phase.get("steps")) or 0 for phase in every)
  return {
    "method": name,
    "phases": f"{len(every) / len(seeds):.3g}",
    "steps": f"{steps / len(seeds):,.0f}",
    "time": duration(time / len(seeds)),
    "speed": f"{images / time:,.0f}" if time and images else NOT_MEASURED,
    "device": memory(peak(every, "device")),
    "host": memory(peak(every, "host")),
  }


def _seeds(phases: Sequence[Phase]) -> list[list[Phase]]:
  """Phases of each seed."""
  seeds = dict.fromkeys(str(phase.get("seed")) for phase in phases)
  return [[p for p in phases if str(p.get("seed")) == seed] for seed in seeds]


def _name(phase: Phase) -> str:
  method, name = (str(phase.get(key)) for key in ("method", "name"))
  return method if name == method else f"{method}, {name}"


def _number(value: Any) -> float | None:
  return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
