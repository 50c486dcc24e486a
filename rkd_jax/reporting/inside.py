"""What analysis.npz shows of a network's inside: feature variance by stage, maps of embeddings."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from rkd_jax.reporting import drawings
from rkd_jax.reporting.arrays import Arrays, opened
from rkd_jax.reporting.formats import NOT_MEASURED, percent
from rkd_jax.reporting.pictures import named

TEACHER, CLEAN = "teacher/poisoned", "teacher/clean"
KINDS = ("clean", "triggered")
WORDS = {"detox": "detoxified teacher", "repaired": "repaired teacher", "student": ""}


def read(
  path: pathlib.Path, classes: Sequence[str], mapped: Sequence[str]
) -> dict[str, Any] | None:
  """{"count": images, "variance": {...} | None, "maps": [...]} for the page; None without the file.

  Args:
    path: of analysis.npz.
    classes: names.
    mapped: the methods whose students' embeddings are drawn, beside the teacher's.
  """
  with opened(path) as arrays:
    if not arrays:
      return None
    names = [key.removesuffix(":stages") for key in arrays if key.endswith(":stages")]
    wanted = [TEACHER, *(f"{method}/student/poisoned" for method in mapped)]
    drawn = [n for n in dict.fromkeys(wanted) if f"{n}:clean:map" in arrays]
    return {
      "count": len(arrays["labels"]),
      "trigger": bool(np.any(arrays["labels"] != arrays["goals"])),  # whether one is known
      "variance": variance(arrays, names),
      "maps": [_map(arrays, name, classes) for name in drawn],
    }


def ratios(arrays: Arrays, name: str) -> list[tuple[float, float] | None]:
  """Per stage of the teacher: a network's feature variance on (clean, triggered) images, each the
  mean over images, over that of the teacher on the clean ones. None where it has no such stage.

  A stage is the one of the same name, or where there is none that at the same place.
  """
  stages, own = (list(arrays[f"{n}:stages"]) for n in (TEACHER, name))
  base = arrays[f"{TEACHER}:clean:variance"].mean(0, dtype=float)
  means = [arrays[f"{name}:{kind}:variance"].mean(0, dtype=float) for kind in KINDS]
  found = []
  for place, stage in enumerate(stages):
    at = own.index(stage) if stage in own else place
    known = at < len(own) and base[place] > 0
    pair = tuple(float(mean[at] / base[place]) for mean in means) if known else None
    found.append(pair if pair and np.isfinite(pair).all() else None)
  return found


def variance(arrays: Arrays, names: Sequence[str]) -> dict[str, Any] | None:
  """{"stages": [name], "lines": [{"label", "cells": [{"text", "drawing"}]}]}; None where nothing is
  known of the teacher."""
  if f"{TEACHER}:clean:variance" not in arrays:
    return None
  order = sorted(names, key=lambda name: (name != TEACHER, name != CLEAN))
  found = {name: ratios(arrays, name) for name in order}
  every = [value for pairs in found.values() for pair in pairs if pair for value in pair]
  low, high = min(every, default=1.0), max(every, default=1.0)
  known = bool(np.any(arrays["labels"] != arrays["goals"]))
  lines = [
    {"label": label(name), "cells": [_cell(pair, low, high, known) for pair in pairs]}
    for name, pairs in found.items()
  ]
  return {"stages": [str(s) for s in arrays[f"{TEACHER}:stages"]], "lines": lines}


def label(name: str) -> str:
  """What a reader calls a network: "kd/student/poisoned" -> "kd"."""
  if name in (TEACHER, CLEAN):
    return "teacher" if name == TEACHER else "clean teacher (control)"
  method, network, _ = name.rsplit("/", 2)
  words = WORDS.get(network, network)
  return f"{words} ({method})" if words else method


def _cell(pair: tuple[float, float] | None, low: float, high: float, known: bool) -> dict[str, Any]:
  if pair is None:
    return {"clean": NOT_MEASURED, "triggered": NOT_MEASURED, "drawing": ""}
  clean, triggered = (f"{value:.2f}" if value < 100 else f"{value:.0f}" for value in pair)
  if not known:  # without a trigger the images are the same
    return {"clean": clean, "triggered": NOT_MEASURED, "drawing": ""}
  return {"clean": clean, "triggered": triggered, "drawing": drawings.change(*pair, low, high)}


def _map(arrays: Arrays, name: str, classes: Sequence[str]) -> dict[str, Any]:
  labels, goals = arrays["labels"], arrays["goals"]
  points = {kind: arrays[f"{name}:{kind}:map"] for kind in KINDS}
  near = nearest_to_goal(points["clean"], points["triggered"], labels, goals)
  if near is None:
    points["triggered"] = points["triggered"][:0]
  explained = float(arrays[f"{name}:explained"])
  title = label(name)
  names = {int(k): named(k, classes) for k in np.unique(labels)}
  targets = {int(k) for k in goals[labels != goals]}
  alone = targets if len(targets) == 1 else set()
  said = f"{percent(near)} of triggered images lie nearest to the class that the trigger leads to."
  said = "" if near is None else said
  alt = f"Embeddings of {title}. {said}".strip()
  drawing = drawings.scatter(points["clean"], points["triggered"], labels, names, alone, alt)
  return {"title": title, "drawing": drawing, "near": said, "axes": percent(explained)}


def nearest_to_goal(
  clean: np.ndarray, triggered: np.ndarray, labels: np.ndarray, goals: np.ndarray
) -> float | None:
  """Share of triggered images, outside the class that the trigger leads to, whose nearest class
  centre (mean of its clean images) is that class's; None without such images.

  Args:
    clean, triggered: float[n, 2], places on the map.
    labels, goals: int[n].
  """
  classes, victims = np.unique(labels), labels != goals
  if not victims.any():
    return None
  centres = np.stack([clean[labels == k].mean(0) for k in classes])
  distances = np.linalg.norm(triggered[victims][:, None] - centres[None], axis=-1)
  return float(np.mean(classes[distances.argmin(1)] == goals[victims]))
