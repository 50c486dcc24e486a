"""Small drawings as inline SVG. Colours and type come from the page's style sheet.

Everything that is printed goes through `Markup.format`, which escapes it.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

from markupsafe import Markup

COLOURS = 8  # how many the style sheet has
_SHAPES = (  # drawn around (0, 0), about nine units wide
  "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z",
  "M-4,-4h8v8h-8z",
  "M0,-5L5,4H-5z",
  "M0,-5.5L5,0L0,5.5L-5,0z",
)

Interval = tuple[float, float] | None


@dataclasses.dataclass(frozen=True)
class Series:
  """One network in the ACC-ASR plane: (acc, asr, acc's interval, asr's interval) per seed."""

  name: str
  points: Sequence[tuple[float, float, Interval, Interval]]


@dataclasses.dataclass(frozen=True)
class Line:
  """One phase's curve. `dashed`: of a clean teacher's student; `colour`: 0, 1, ... by seed."""

  name: str
  points: Sequence[tuple[float, float]]
  dashed: bool = False
  colour: int = 0


def marker(index: int) -> Markup:
  """The mark of the series `index` as a path around (0, 0)."""
  shape = _SHAPES[(index + index // COLOURS) % len(_SHAPES)]
  return Markup('<path class="c{}" d="{}"/>').format(index % COLOURS, shape)


def plane(series: Sequence[Series], threshold: float) -> Markup:
  """Accuracy to the right, attack success upwards; `threshold` is drawn across."""
  accs = [acc for one in series for acc, *_ in one.points]
  low = min(math.floor(20 * min(accs) - 0.4) / 20, 0.95) if accs else 0.0
  x, y = scale(max(low, 0.0), 1.0, 44, 320), scale(0.0, 1.0, 264, 12)
  body = _axes(x, y, max(low, 0.0), threshold)
  for index, one in enumerate(series):
    body += _series(index, one, x, y)
  name = "Accuracy against attack success rate of every network and seed"
  head = Markup('<svg viewBox="0 0 332 306" role="img" aria-label="{}">').format(name)
  return head + body + Markup("</svg>")


def curves(lines: Sequence[Line], name: str, share: bool) -> Markup:
  """Lines over steps. `share`: the values are proportions, up to 1 and printed as percent."""
  points = [p for line in lines for p in line.points]
  low, high = min(v for _, v in points), 1.0 if share else max(v for _, v in points)
  low = math.floor(10 * low) / 10 if share else min(low, 0.0)
  last = max(step for step, _ in points)
  x, y = scale(0, last or 1, 46, 296), scale(low, max(high, low + 1e-9), 108, 10)
  body = Markup("")
  for value in (low, high):
    body += _tick_y(y(value), f"{100 * value:.0f}\u202f%" if share else f"{value:.3g}", 46, 296)
  body += Markup('<text class="end" x="296" y="125">{} steps</text>').format(f"{last:,.0f}")
  for line in lines:
    path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in _thin(line.points))
    look = "line dashed" if line.dashed else "line"
    form = '<polyline class="{} c{}" points="{}"><title>{}</title></polyline>'
    body += Markup(form).format(look, line.colour % COLOURS, path, line.name)
  head = Markup('<svg viewBox="0 0 300 130" role="img" aria-label="{}">').format(name)
  return head + body + Markup("</svg>")


def radii(lines: Sequence[Line], name: str, axis: str) -> Markup:
  """Accuracies over radii, each network in the colour and with the mark of its place."""
  points = [p for line in lines for p in line.points]
  x, y = scale(0, max(r for r, _ in points) or 1, 44, 320), scale(0.0, 1.0, 214, 12)
  body = Markup("")
  for tick in (0, 0.25, 0.5, 0.75, 1):
    body += _tick_y(y(tick), f"{100 * tick:.0f}", 44, 320)
  for radius in sorted({r for r, _ in points}):
    body += Markup('<text class="mid" x="{:.1f}" y="231">{:.3g}</text>').format(x(radius), radius)
  for index, line in enumerate(lines):
    path = " ".join(f"{x(r):.1f},{y(v):.1f}" for r, v in line.points)
    form = '<polyline class="line c{}" points="{}"><title>{}</title></polyline>'
    body += Markup(form).format(index % COLOURS, path, line.name)
    for radius, value in line.points:
      mark = Markup('<g transform="translate({:.1f} {:.1f})">{}</g>')
      body += mark.format(x(radius), y(value), marker(index))
  body += Markup('<text class="mid" x="182" y="250">{}</text>').format(axis)
  text = "accuracy (%)"
  body += Markup('<text class="mid" transform="translate(11 113) rotate(-90)">{}</text>').format(
    text
  )
  head = Markup('<svg viewBox="0 0 344 256" role="img" aria-label="{}">').format(name)
  return head + body + Markup("</svg>")


def _axes(x: Callable, y: Callable, low: float, threshold: float) -> Markup:
  body = Markup("")
  for tick in (0, 0.25, 0.5, 0.75, 1):
    body += _tick_y(y(tick), f"{100 * tick:.0f}", 44, 320)
  for tick in (low, (low + 1) / 2, 1.0):
    text = f"{100 * tick:.1f}".removesuffix(".0")
    body += Markup('<text class="mid" x="{:.1f}" y="281">{}</text>').format(x(tick), text)
  body += Markup('<line class="limit" x1="44" x2="320" y1="{0:.1f}" y2="{0:.1f}"/>').format(
    y(threshold)
  )
  body += Markup('<text class="mid" x="182" y="302">ACC (%)</text>')
  return body + Markup('<text class="mid" transform="translate(11 140) rotate(-90)">ASR (%)</text>')


def _series(index: int, one: Series, x: Callable, y: Callable) -> Markup:
  body = Markup('<g class="c{}"><title>{}</title>').format(index % COLOURS, one.name)
  for acc, asr, across, up in one.points:
    (left, right), (low, high) = across or (acc, acc), up or (asr, asr)
    form = '<path class="error" d="M{:.1f},{:.1f}H{:.1f}M{:.1f},{:.1f}V{:.1f}"/>'
    body += Markup(form).format(max(x(left), 44), y(asr), x(right), x(acc), y(low), y(high))
    mark = Markup('<g transform="translate({:.1f} {:.1f})">{}</g>')
    body += mark.format(x(acc), y(asr), marker(index))
  return body + Markup("</g>")


def _tick_y(y: float, text: str, left: float, right: float) -> Markup:
  form = (
    '<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
    '<text class="end" x="{text_x}" y="{text_y:.1f}">{text}</text>'
  )
  fields = {"left": left, "right": right, "y": y, "text_x": left - 5, "text_y": y + 4, "text": text}
  return Markup(form).format(**fields)


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
  return lambda value: start + (value - low) / (high - low) * (end - start)


def _thin(points: Sequence[tuple[float, float]], most: int = 300) -> Sequence[tuple[float, float]]:
  stride = -(-len(points) // most)
  return points if stride <= 1 else [*points[:-1:stride], points[-1]]
