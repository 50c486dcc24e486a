"""What the report draws: the plane, the training curves, the example images."""

import base64
import io
import pathlib
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from rkd_jax.errors import UserError
from rkd_jax.reporting import svg
from rkd_jax.reporting.table import Row
from rkd_jax.reporting.verdict import REMOVED_ASR
from rkd_jax.reporting.writer import read_lines

MOST_EXAMPLES = 8


def plane(table: Sequence[Row]) -> str | None:
  """Every network and seed whose ACC and ASR are both known; None where there is no such."""
  series = [svg.Series(row.label, points) for row in table if (points := _pairs(row))]
  return svg.plane(series, REMOVED_ASR) if series else None


def training(workdir: pathlib.Path, phases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
  """Per method and phase, the curves of its seeds: hold-out accuracy, and loss."""
  groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
  for phase in phases:
    groups.setdefault((str(phase.get("method")), str(phase.get("name"))), []).append(phase)
  figures = []
  for (method, name), group in groups.items():
    logs = [(phase, _log(workdir, phase.get("metrics"))) for phase in group]
    panels = [
      {"title": title, "drawing": svg.curves(lines, f"{title} of {method}, {name}", share)}
      for title, wanted, share in (
        ("Hold-out accuracy", _is_holdout_accuracy, True),
        ("Loss", _is_loss, False),
      )
      if (lines := _lines(logs, wanted))
    ]
    if panels:
      title = method if name == method else f"{method} · {name}"
      figures.append({"title": title, "panels": panels})
  return figures


def examples(path: pathlib.Path, classes: Sequence[str]) -> list[dict[str, Any]]:
  """Clean and triggered images as data URIs, with what every network says; [] without a file."""
  if not path.exists():
    return []
  try:
    # opened here: numpy leaves a broken archive's file open
    with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
      arrays = {name: file[name] for name in file.files}
    labels = arrays["labels"]
    networks = list(dict.fromkeys(n.split("/", 1)[1].rsplit("/", 1)[0] for n in arrays if "/" in n))
    return [
      {
        "clean": data_uri(arrays["clean"][i]),
        "triggered": data_uri(arrays["triggered"][i]),
        "label": _name(labels[i], classes),
        "rows": [_prediction(arrays, network, i, classes) for network in networks],
      }
      for i in range(min(len(labels), MOST_EXAMPLES))
    ]
  except (OSError, EOFError, LookupError, TypeError, ValueError, zipfile.BadZipFile) as error:
    raise UserError(
      f"{path} is broken ({error}). Delete it and run the same command again."
    ) from error


def data_uri(image: np.ndarray) -> str:
  """A PNG of uint8[H, W, C] as a data URI; C = 1 and 3 as they are, of others the mean over C."""
  if image.dtype != np.uint8 or image.ndim != 3:
    raise ValueError(f"an image must be uint8[H, W, C]; this is {image.dtype}{list(image.shape)}")
  if image.shape[-1] != 3:
    image = image.mean(-1).astype(np.uint8)
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, "PNG")
  return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _pairs(row: Row) -> list[tuple[Any, ...]]:
  asr = {(c.seed, c.teacher_seed): c for c in row.of("asr") if c.value is not None}
  points = []
  for acc in row.of("acc"):
    other = asr.get((acc.seed, acc.teacher_seed))
    if other and acc.value is not None:
      points.append((acc.value, other.value, acc.ci95, other.ci95))
  return points


def _log(workdir: pathlib.Path, name: Any) -> list[dict[str, Any]]:
  """The phase's metrics; none where the phase was run elsewhere (a teacher from the cache)."""
  path = (workdir / str(name)).resolve()
  return read_lines(path) if name and path.is_relative_to(workdir.resolve()) else []


def _lines(
  logs: Sequence[tuple[dict, list[dict]]], wanted: Callable[[str], bool]
) -> list[svg.Line]:
  lines = []
  for phase, log in logs:
    name = next((key for entry in log for key in entry if wanted(key)), None)
    points = [(e["step"], e[name]) for e in log if name and e.get(name) is not None]
    if len(points) > 1:
      teacher = phase.get("teacher")
      title = f"seed {phase.get('seed')}" + (f", {teacher} teacher" if teacher else "")
      lines.append(svg.Line(title, points, dashed=teacher == "clean"))
  return lines


def _is_holdout_accuracy(key: str) -> bool:
  return "hold" in key and "acc" in key


def _is_loss(key: str) -> bool:
  return key.split("/")[-1] == "loss"


def _name(index: Any, classes: Sequence[str]) -> str:
  return str(classes[index]) if 0 <= index < len(classes) else str(index)


def _prediction(arrays: dict, network: str, i: int, classes: Sequence[str]) -> dict[str, Any]:
  clean, triggered = (arrays[f"pred/{network}/{kind}"][i] for kind in ("clean", "triggered"))
  label = arrays["labels"][i]
  return {
    "network": network,
    "clean": _name(clean, classes),
    "triggered": _name(triggered, classes),
    "clean_right": bool(clean == label),
    "triggered_right": bool(triggered == label),
  }
