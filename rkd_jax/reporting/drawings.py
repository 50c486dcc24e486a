"""Two more drawings as inline SVG: a change of one number, and a map of points."""

import math
from collections.abc import Collection, Mapping

import numpy as np
from markupsafe import Markup

from rkd_jax.reporting.svg import COLOURS, scale

WIDTH, HEIGHT, MARGIN = 320, 300, 14


def change(before: float, after: float, low: float, high: float) -> Markup:
  """From a ring to a dot, on a logarithmic scale from `low` to `high`; a tick stands at 1."""
  low, high = min(low, 1.0), max(high, 1.0)
  floor = max(low, high / 1e3, 1e-9)
  x = scale(math.log(floor), math.log(max(high, 1.01 * floor)), 5, 95)

  def at(value: float) -> str:
    return f"{x(math.log(min(max(value, floor), high))):.1f}"

  # hidden from readers of the text: the numbers stand beside it
  form = (
    '<svg class="change" viewBox="0 0 100 12" aria-hidden="true">'
    '<line class="grid" x1="5" x2="95" y1="6" y2="6"/><path class="tick" d="M{},1v10"/>'
    '<line class="arrow" x1="{a}" x2="{b}" y1="6" y2="6"/>'
    '<circle class="ring" cx="{a}" cy="6" r="3.2"/><circle class="dot" cx="{b}" cy="6" r="3.2"/>'
    "</svg>"
  )
  return Markup(form).format(at(1.0), a=at(before), b=at(after))


def scatter(
  clean: np.ndarray, triggered: np.ndarray, labels: np.ndarray, names: Mapping[int, str],
  targets: Collection[int], title: str,
) -> Markup:  # fmt: skip
  """Clean images as dots and triggered ones as open triangles, a colour per class, its name at the
  centre of its clean images.

  Args:
    clean, triggered: float[n, 2]; triggered may be empty.
    labels: int[n].
    names: {class: name}.
    targets: classes whose name is set in bold.
    title: what it shows, for who cannot see it.
  """
  clean, triggered = _placed(clean, triggered)
  form = '<svg class="map" viewBox="0 0 {} {}" role="img" aria-label="{}">'
  body = Markup(form).format(WIDTH, HEIGHT, title)
  for colour, k in enumerate(names):
    dots = "".join(f"M{x:.0f},{y:.0f}h0" for x, y in clean[labels == k])
    own = triggered[labels == k] if len(triggered) else triggered
    marks = "".join(f"M{x:.0f},{y - 4:.0f}l4,7h-8z" for x, y in own)
    form = '<g class="c{}"><path class="dots" d="{}"/><path class="marks" d="{}"/></g>'
    body += Markup(form).format(colour % COLOURS, dots, marks)
  centres = {k: clean[labels == k].mean(0) for k in names if (labels == k).any()}
  for k, (x, y) in _apart(centres).items():
    form = '<text class="{}" x="{:.0f}" y="{:.0f}">{}</text>'
    name = names[k] if len(names[k]) <= 14 else names[k][:13] + "…"
    half = 4 * len(name)  # so that no name leaves the drawing
    x = min(max(x, half), WIDTH - half)
    body += Markup(form).format("name target" if k in targets else "name", x, y + 4, name)
  return body + Markup("</svg>")


def _placed(*clouds: np.ndarray) -> list[np.ndarray]:
  """Points in the drawing's units, one scale for both axes."""
  every = np.concatenate(clouds)
  low, high = every.min(0), every.max(0)
  room = np.array([WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN])
  factor = (room / np.maximum(high - low, 1e-9)).min()
  middle = np.array([WIDTH, HEIGHT]) / 2
  return [middle + (cloud - (low + high) / 2) * factor * [1, -1] for cloud in clouds]


def _apart(centres: Mapping[int, np.ndarray]) -> dict[int, tuple[float, float]]:
  """Names' places, moved down until no two are printed on each other."""
  placed: dict[int, tuple[float, float]] = {}
  for k, (x, y) in sorted(centres.items(), key=lambda item: item[1][1]):
    while any(abs(x - a) < 26 and abs(y - b) < 13 for a, b in placed.values()):
      y += 3
    placed[k] = (float(x), float(y))
  return placed
