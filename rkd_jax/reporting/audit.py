"""What audit.json says, for the page: verdicts, every test, and the triggers that were inverted."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rkd_jax.reporting.arrays import Arrays, opened
from rkd_jax.reporting.files import read_json
from rkd_jax.reporting.formats import NOT_MEASURED, percent
from rkd_jax.reporting.page import mapping, mappings
from rkd_jax.reporting.pictures import data_uri, named
from rkd_jax.reporting.verdict import Verdict

TESTS = {  # as they stand in audit.json -> as a reader is told them
  "patch": "Smallest patch",
  "l2": "Smallest l2 perturbation",
  "linf": "Smallest l-inf perturbation",
  "mmbd": "Largest margin, without data",
  "head": "Weights of the last layer",
  "units": "One unit of the embedding",
  "strip": "Entropy of blended pool images",
}
LOOKS = {"suspicious": "not-removed", "nothing found": "unknown", "unknown": "unknown"}
SHOWN = 6  # networks whose inverted triggers are drawn
KINDS = ("patch", "l2", "linf")


def read(workdir: pathlib.Path, classes: Sequence[str]) -> dict[str, Any] | None:
  """What the template shows of a folder's audit.json; None where there is none.

  Returns:
    {"networks": [{"name", "word", "look", "sentence", "doubts"}], "lines": of the table,
     "pictures": [{"name", "kinds": [{"image", "title", "alt"}]}], "alpha", "calibrations",
     "partial": whether it was interrupted}.
  """
  path = workdir / "audit.json"
  if not path.exists():
    return None
  found = mapping(read_json(path))
  networks = mappings(found.get("networks"))
  drawn = [_pictures(workdir, one, classes) for one in networks[:SHOWN]]
  return {
    "networks": [_verdict(one) for one in networks],
    "lines": [line for one in networks for line in _lines(one, classes)],
    "pictures": [one for one in drawn if one["kinds"]],
    "alpha": percent(_number(found.get("alpha"))),
    "calibrations": [_calibration(one) for one in mappings(found.get("calibrations"))],
    "partial": not found.get("complete"),
  }


def saw(verdicts: Sequence[Verdict], found: Mapping[str, Any] | None) -> list[Verdict]:
  """The verdicts, those that are unknown with what the audit saw of the same student."""
  said: dict[str, list[str]] = {}
  for one in found["networks"] if found else []:
    said.setdefault(one["name"].partition("/")[2], []).append(one["word"])

  def told(verdict: Verdict) -> Verdict:
    words = said.get(verdict.label) if verdict.outcome == "unknown" else None
    if not words:
      return verdict
    text = " / ".join(dict.fromkeys(words))
    return dataclasses.replace(verdict, sentence=f"{verdict.sentence} The audit: {text}.")

  return [told(verdict) for verdict in verdicts]


def _verdict(one: Mapping[str, Any]) -> dict[str, Any]:
  word = str(one.get("verdict") or "unknown")
  doubts = one.get("doubts")
  return {
    "name": str(one.get("name")),
    "word": word,
    "look": LOOKS.get(word, "unknown"),
    "sentence": str(one.get("sentence") or ""),
    "doubts": [str(doubt) for doubt in doubts] if isinstance(doubts, list) else [],
  }


def _lines(one: Mapping[str, Any], classes: Sequence[str]) -> list[dict[str, str]]:
  """A line for every test of a network."""
  found = []
  for test, said in mapping(one.get("tests")).items():
    said = mapping(said)
    values = [x for x in map(_number, _list(said.get("values"))) if x is not None]
    suspect = said.get("suspect")
    if not isinstance(suspect, int):
      suspect = int(np.argmax(values)) if len(values) > 1 else None
    found.append(
      {
        "network": str(one.get("name")),
        "test": TESTS.get(str(test), str(test)),
        "suspect": NOT_MEASURED if suspect is None else named(suspect, classes),
        "size": _size(said, suspect),
        "index": _shown(said.get("index"), 1),
        "p": _shown(said.get("p"), 3),
      }
    )
  return found


def _size(said: Mapping[str, Any], suspect: int | None) -> str:
  """Of the suspected class, beside the median of all."""
  for key in ("sizes", "margins"):
    sizes = [_number(value) for value in _list(said.get(key))]
    if suspect is not None and suspect < len(sizes) and None not in sizes:
      return f"{sizes[suspect]:.3g} of {np.median(np.array(sizes, float)):.3g}"
  share = _number(said.get("share"))
  return NOT_MEASURED if share is None else percent(share)


def _calibration(one: Mapping[str, Any]) -> str:
  """How a kind of network was calibrated, as a sentence."""
  network, count = str(one.get("network")), one.get("count")
  network += f" ({one['method']})" if one.get("method") else ""
  if not count:
    return f"{network}: not calibrated."
  right = " to ".join(percent(_number(value)) for value in _list(one.get("accuracy")))
  trained = mapping(one.get("trained")).get("part")
  known = {"clean": "all training images", "labelled+holdout": "the defender’s labelled images"}
  taught = f"trained on {known.get(str(trained), 'other data')}"
  if one.get("method"):
    both = "taught labels or distilled from clean teachers, in turn"
    taught = both if one["method"] == "labels or kd" else "students of clean teachers"
  return f"{network}: {count} clean networks, {taught}, {right} right."


def _pictures(
  workdir: pathlib.Path, one: Mapping[str, Any], classes: Sequence[str]
) -> dict[str, Any]:
  """A network's inverted triggers. Only files of the folder audit/ are opened."""
  name, kinds = str(one.get("name")), []
  file = pathlib.PurePosixPath(str(one.get("triggers") or "")).name
  if file:
    with opened(workdir / "audit" / file) as arrays:
      tests = mapping(one.get("tests"))
      there = [kind for kind in KINDS if len(arrays.get(f"{kind}/classes", ()))]
      kinds = [_picture(arrays, kind, mapping(tests.get(kind)), classes) for kind in there]
  return {"name": name, "kinds": kinds}


def _picture(
  arrays: Arrays, kind: str, said: Mapping[str, Any], classes: Sequence[str]
) -> dict[str, str]:
  """That of the suspected class, if it is kept, else the smallest."""
  kept = [int(k) for k in arrays[f"{kind}/classes"]]
  suspect = said.get("suspect")
  at = kept.index(suspect) if suspect in kept else 0
  mask, pattern = (np.asarray(arrays[f"{kind}/{n}"][at], float) for n in ("mask", "pattern"))
  goal = named(kept[at], classes)
  if kind == "patch":
    shown = mask * pattern + (1 - mask) * 0.5
  else:
    shown = 0.5 + 0.5 * pattern / max(float(np.abs(pattern).max()), 1e-6)
  image = np.round(np.clip(shown, 0, 1) * 255).astype(np.uint8)
  title = f"{TESTS[kind]}, to {goal}"
  alt = f"{TESTS[kind]} that leads images to {goal}; grey is unchanged"
  return {"image": data_uri(image), "title": title, "alt": alt}


def _list(value: Any) -> list[Any]:
  return value if isinstance(value, list) else []


def _number(value: Any) -> float | None:
  known = isinstance(value, (int, float)) and not isinstance(value, bool)
  return float(value) if known and np.isfinite(value) else None


def _shown(value: Any, decimals: int) -> str:
  number = _number(value)
  return NOT_MEASURED if number is None else f"{number:.{decimals}f}"
