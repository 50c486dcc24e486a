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
_LABEL, _GAP = 24, 16  # characters of a label, units between two


Interval = tuple[float, float] | None


@dataclasses.dataclass(frozen=True)
class Series:
  """One network in the ACC-ASR plane: (acc, asr, acc's interval, asr's interval) per seed."""

  name: str
  points: Sequence[tuple[float, float, Interval, Interval]]


@dataclasses.dataclass(frozen=True)
class Line:
  """One seed's curve. `dashed`: of a clean teacher's student."""

  name: str
  points: Sequence[tuple[float, float]]
  dashed: bool = False


def marker(index: int) -> Markup:
  """The mark of the series `index` as a path around (0, 0)."""
  shape = _SHAPES[(index + index // COLOURS) % len(_SHAPES)]
  return Markup('<path class="c{}" d="{}"/>').format(index % COLOURS, shape)


def plane(series: Sequence[Series], threshold: float) -> Markup:
  """Accuracy to the right, attack success upwards; `threshold` is drawn across."""
  accs = [acc for one in series for acc, *_ in one.points]
  low = min(math.floor(20 * min(accs) - 0.4) / 20, 0.95) if accs else 0.0
  x, y = _scale(max(low, 0.0), 1.0, 44, 284), _scale(0.0, 1.0, 264, 16)
  body = _axes(x, y, max(low, 0.0), threshold)
  at = _spread([y(_centre(one)[1]) for one in series], 16, 268)
  for index, (one, label) in enumerate(zip(series, at, strict=True)):
    body += _series(index, one, label, x, y)
  name = "Accuracy against attack success rate of every network and seed"
  head = Markup('<svg class="plane" viewBox="0 0 460 310" role="img" aria-label="{}">').format(name)
  return head + body + Markup("</svg>")


def curves(lines: Sequence[Line], name: str, share: bool) -> Markup:
  """Lines over steps. `share`: the values are proportions, up to 1 and printed as percent."""
  points = [p for line in lines for p in line.points]
  low, high = min(v for _, v in points), 1.0 if share else max(v for _, v in points)
  low = math.floor(10 * low) / 10 if share else min(low, 0.0)
  last = max(step for step, _ in points)
  x, y = _scale(0, last or 1, 40, 212), _scale(low, max(high, low + 1e-9), 84, 10)
  body = Markup("")
  for value in (low, high):
    body += _tick_y(y(value), f"{100 * value:.0f}\u202f%" if share else f"{value:.3g}", 40, 212)
  body += Markup('<text class="end" x="212" y="100">{} steps</text>').format(f"{last:,.0f}")
  for index, line in enumerate(lines):
    path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in _thin(line.points))
    look = "line dashed" if line.dashed else "line"
    form = '<polyline class="{} c{}" points="{}"><title>{}</title></polyline>'
    body += Markup(form).format(look, index % COLOURS, path, line.name)
  head = Markup('<svg viewBox="0 0 220 106" role="img" aria-label="{}">').format(name)
  return head + body + Markup("</svg>")


def _axes(x: Callable, y: Callable, low: float, threshold: float) -> Markup:
  body = Markup("")
  for tick in (0, 0.25, 0.5, 0.75, 1):
    body += _tick_y(y(tick), f"{100 * tick:.0f}", 44, 284)
  for tick in (low, (low + 1) / 2, 1.0):
    text = f"{100 * tick:.1f}".removesuffix(".0")
    body += Markup('<text class="mid" x="{:.1f}" y="281">{}</text>').format(x(tick), text)
  body += Markup('<line class="limit" x1="44" x2="284" y1="{0:.1f}" y2="{0:.1f}"/>').format(
    y(threshold)
  )
  body += Markup('<text class="mid" x="164" y="302">ACC (%)</text>')
  return body + Markup('<text class="mid" transform="translate(11 140) rotate(-90)">ASR (%)</text>')


def _series(index: int, one: Series, label: float, x: Callable, y: Callable) -> Markup:
  centre = _centre(one)
  body = Markup('<g class="c{}"><title>{}</title>').format(index % COLOURS, one.name)
  form = '<path class="lead" d="M{:.1f},{:.1f}L296,{:.1f}H304"/>'
  body += Markup(form).format(x(centre[0]), y(centre[1]), label)
  for acc, asr, across, up in one.points:
    (left, right), (low, high) = across or (acc, acc), up or (asr, asr)
    form = '<path class="error" d="M{:.1f},{:.1f}H{:.1f}M{:.1f},{:.1f}V{:.1f}"/>'
    body += Markup(form).format(max(x(left), 44), y(asr), x(right), x(acc), y(low), y(high))
    mark = Markup('<g transform="translate({:.1f} {:.1f})">{}</g>')
    body += mark.format(x(acc), y(asr), marker(index))
  text = one.name if len(one.name) <= _LABEL else one.name[: _LABEL - 1] + "…"
  mark = Markup('<g transform="translate(311 {:.1f})">{}</g><text x="320" y="{:.1f}">{}</text>')
  return body + mark.format(label, marker(index), label + 4, text) + Markup("</g>")


def _tick_y(y: float, text: str, left: float, right: float) -> Markup:
  form = (
    '<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
    '<text class="end" x="{text_x}" y="{text_y:.1f}">{text}</text>'
  )
  fields = {"left": left, "right": right, "y": y, "text_x": left - 5, "text_y": y + 4, "text": text}
  return Markup(form).format(**fields)


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
  return lambda value: start + (value - low) / (high - low) * (end - start)


def _centre(one: Series) -> tuple[float, float]:
  n = len(one.points)
  return sum(p[0] for p in one.points) / n, sum(p[1] for p in one.points) / n


def _spread(wanted: Sequence[float], top: float, bottom: float) -> list[float]:
  """Places near the wanted ones, `_GAP` apart, so that labels do not cover each other."""
  order = sorted(range(len(wanted)), key=lambda i: wanted[i])
  placed = dict.fromkeys(order, 0.0)
  floor = top
  for i in order:
    placed[i] = floor = max(wanted[i], floor)
    floor += _GAP
  ceiling = bottom
  for i in reversed(order):
    placed[i] = ceiling = min(placed[i], ceiling)
    ceiling -= _GAP
  return [placed[i] for i in range(len(wanted))]


def _thin(points: Sequence[tuple[float, float]], most: int = 300) -> Sequence[tuple[float, float]]:
  stride = -(-len(points) // most)
  return points if stride <= 1 else [*points[:-1:stride], points[-1]]
