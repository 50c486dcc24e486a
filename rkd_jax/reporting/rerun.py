"""How to make a run again, and what it does not prove."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from rkd_jax.evaluation.metrics import Proportion
from rkd_jax.reporting.formats import percent
from rkd_jax.reporting.results import Cell, select

PROGRAM = "python -m rkd_jax.main"


def again(run: Mapping[str, Any]) -> dict[str, Any]:
  """What the page says of it."""
  versions = run.get("versions")
  python = versions.get("python") if isinstance(versions, Mapping) else None
  return {
    "command": command(run),
    "overrides": overrides(run),
    "install": install(run),
    "python": python or "an unknown version",
  }


def command(run: Mapping[str, Any]) -> str:
  """The command line that made the run; empty where it is not known."""
  first, _, rest = str(run.get("command") or "").partition(" ")
  # one argument a line: a browser breaks lines at hyphens
  rest = re.sub(r" ('?--)", r" \\\n  \1", rest)
  known = first in ("main.py", "rkd") or first.endswith(("/main.py", "/rkd"))
  return f"{PROGRAM} {rest}".strip() if known else f"{first} {rest}".strip()


def overrides(run: Mapping[str, Any]) -> list[str]:
  """What the command line changed in the config."""
  try:
    words = shlex.split(str(run.get("command") or ""))
  except ValueError:  # a quote without its end
    words = str(run.get("command")).split()
  return [w.removeprefix("--config.") for w in words if w.startswith("--config.")]


def install(run: Mapping[str, Any]) -> str:
  """A pip command for the versions that the numbers were made with; empty where none is known."""
  versions = run.get("versions")
  versions = versions if isinstance(versions, Mapping) else {}
  others = {k: v for k, v in versions.items() if k not in ("rkd_jax", "python")}
  pinned = [shlex.quote(f"{name}=={version}") for name, version in others.items()]
  return " ".join(["pip install", *pinned]) if pinned else ""


def flat(config: Any, above: str = "") -> dict[str, str]:
  """{"a.b": value as JSON} of a nested config."""
  if not isinstance(config, Mapping) or not config:
    return {above: json.dumps(config, ensure_ascii=False)} if above else {}
  found: dict[str, str] = {}
  for key, value in config.items():
    found |= flat(value, f"{above}.{key}" if above else str(key))
  return found


def limits(cells: Sequence[Cell], described: bool) -> list[dict[str, str]]:
  """[{"what", "why"}]: what the numbers leave open, as far as the run itself can say.

  Args:
    cells: of the run.
    described: whether the page shows feature variance or maps.
  """
  asked = [c for c in select(cells, metric="asr") if c.teacher in ("poisoned", "given")]
  students = select(asked, network="student")
  triggers = sorted({str(c.backdoor) for c in asked if c.backdoor and c.value is not None})
  tried = f"Only {', '.join(triggers)} was tried" if triggers else "No trigger was tried"
  found = [
    {
      "what": "Other triggers",
      "why": f"{tried}. A student may follow a trigger that nobody put on its test images.",
    },
    {
      "what": "An attacker who knows the defence",
      "why": "It may be met with triggers and images made to get past it; all that were tried are"
      " named on this page.",
    },
    *_numbers(students),
    {
      "what": "Other data, networks and shares of labels",
      "why": "All numbers are of the data set, architectures and settings named on this page.",
    },
  ]
  if not any(c.teacher == "clean" for c in select(cells, network="student")):
    why = "The control, the same student of a clean teacher, was not run: carried ASR is unknown."
    found.append({"what": "That the backdoor came from the teacher", "why": why})
  why = "They describe; a student whose variance or map looks like a clean one’s may be backdoored."
  return found + [{"what": "Feature variance and maps", "why": why}] * described


def _numbers(students: Sequence[Cell]) -> list[dict[str, str]]:
  """What chance leaves open: of images, and of teachers."""
  counts = [c.n for c in students if c.n and c.value is not None]
  if not counts:
    return []
  bound = Proportion(0, min(counts)).ci95
  teachers = len({c.seed if c.teacher_seed is None else c.teacher_seed for c in students})
  rest = f"{teachers} teachers were" if teachers > 1 else "One teacher was"
  most = percent(bound[1] if bound else None)
  why = f"With {min(counts):,} triggered images even 0 hits leave up to {most} (95 %)."
  return [
    {"what": "An ASR of exactly zero", "why": why},
    {"what": "Every teacher", "why": f"{rest} distilled; another one may behave otherwise."},
  ]
