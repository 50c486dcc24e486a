"""What synthetic.npz shows: images made without data, the suspicious ones, their divergences."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from rkd_jax.reporting.arrays import Arrays, opened
from rkd_jax.reporting.formats import percent
from rkd_jax.reporting.inside import label
from rkd_jax.reporting.pictures import data_uri
from rkd_jax.reporting.svg import scale

SHOWN, BINS = 16, 24


def read(path: pathlib.Path) -> dict[str, Any] | None:
  """{"copies": shuffled teachers, "networks": [...]} for the page; None without the file."""
  with opened(path) as arrays:
    if not arrays:
      return None
    names = [key.removesuffix(":images") for key in arrays if key.endswith(":images")]
    logs = [arrays[f"{name}:log10"] for name in names if f"{name}:log10" in arrays]
    edges = np.histogram_bin_edges(np.concatenate([np.zeros(0), *logs]), BINS)
    return {
      "copies": int(arrays["copies"]),
      "networks": [_network(arrays, name, edges) for name in names],
    }


def _network(arrays: Arrays, name: str, edges: np.ndarray) -> dict[str, Any]:
  images = arrays[f"{name}:images"]
  shown = {
    "label": label(name),
    "count": len(images),
    "classes": len(np.unique(arrays[f"{name}:answers"])),
    "images": [data_uri(image) for image in images[:SHOWN]],
  }
  if f"{name}:log10" not in arrays:
    return shown
  mask, logs = arrays[f"{name}:suspicious"], arrays[f"{name}:log10"]
  counts = [np.histogram(logs[mask == kind], edges)[0] for kind in (True, False)]
  return {
    **shown,
    "share": percent(float(mask.mean())),
    "suspicious": [data_uri(image) for image in images[mask][:SHOWN]],
    "histogram": histogram(counts, edges, f"Divergence under shuffling, {label(name)}"),
  }


def histogram(counts: Sequence[np.ndarray], edges: np.ndarray, title: str) -> Markup:
  """Two stacked counts a bin: suspicious images beneath, the others above.

  Args:
    counts: int[n] each.
    edges: float[n + 1], powers of ten.
    title: what it shows, for who cannot see it.
  """
  below, above = counts
  most = max(1, int((below + above).max()))
  x, y = scale(edges[0], edges[-1], 8, 312), scale(0, most, 104, 8)
  head = Markup('<svg viewBox="0 0 320 126" role="img" aria-label="{}">').format(title)
  body = Markup('<line class="grid" x1="8" x2="312" y1="104" y2="104"/>')
  for colour, low, high in ((0, 0 * below, below), (1, below, below + above)):
    bars = "".join(
      f"M{x(a):.1f},{y(t):.1f}H{x(b) - 0.8:.1f}V{y(s):.1f}H{x(a):.1f}z"
      for a, b, s, t in zip(edges[:-1], edges[1:], low, high, strict=True)
      if t > s
    )
    body += Markup('<path class="c{}" d="{}"/>').format(colour, bars)
  for end, edge in (("start", edges[0]), ("end", edges[-1])):
    form = '<text{} x="{:.0f}" y="120">10^{:.1f}</text>'
    body += Markup(form).format(Markup(' class="end"') if end == "end" else "", x(edge), edge)
  return head + body + Markup("</svg>")
