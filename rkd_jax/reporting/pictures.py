"""The report's test images: clean, triggered, their difference, and what networks say of them."""

import base64
import io
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from rkd_jax.reporting.arrays import Arrays, opened

MOST, SIDE = 8, 128  # images; pixels of a side: larger ones are shrunk, the page stays small


def examples(path: pathlib.Path, classes: Sequence[str]) -> dict[str, Any] | None:
  """What `template` shows of examples.npz; None without the file or without an image.

  Returns:
    {"factor": by which differences are amplified, 0 where no image differs,
     "shrunk": whether they are shown smaller than they are,
     "images": [{"clean", "triggered", "difference": data URIs, "label", "rows": [...]}]}.
  """
  with opened(path) as arrays:
    if not arrays or not len(arrays["labels"]):
      return None
    count = min(len(arrays["labels"]), MOST)
    clean, triggered = (arrays[kind][:count].astype(np.int16) for kind in ("clean", "triggered"))
    factor = amplification(clean, triggered)
    differences = (abs(triggered - clean) * factor).astype(np.uint8)
    networks = [n.split("/", 1)[1].rsplit("/", 1)[0] for n in arrays if "/" in n]
    images = [
      {
        "clean": data_uri(arrays["clean"][i]),
        "triggered": data_uri(arrays["triggered"][i]),
        "difference": data_uri(differences[i]),
        "label": named(arrays["labels"][i], classes),
        "rows": [_said(arrays, network, i, classes) for network in dict.fromkeys(networks)],
      }
      for i in range(count)
    ]
    return {"factor": factor, "shrunk": max(clean.shape[1:3]) > SIDE, "images": images}


def amplification(clean: np.ndarray, triggered: np.ndarray) -> int:
  """The whole factor, at most 64, that brings the largest difference nearest to white; 0: none."""
  largest = int(abs(triggered - clean).max(initial=0))
  return min(64, 255 // largest) if largest else 0


def data_uri(image: np.ndarray) -> str:
  """A PNG of uint8[H, W, C] as a data URI; C = 1 and 3 as they are, of others the mean over C."""
  if image.dtype != np.uint8 or image.ndim != 3:
    raise ValueError(f"an image must be uint8[H, W, C]; this is {image.dtype}{list(image.shape)}")
  if image.shape[-1] != 3:
    image = image.mean(-1).astype(np.uint8)
  picture, buffer = Image.fromarray(image), io.BytesIO()
  picture.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
  picture.save(buffer, "PNG", optimize=True)
  return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def named(index: Any, classes: Sequence[str]) -> str:
  """A class by its name, or by its number where it has none."""
  return str(classes[index]) if 0 <= index < len(classes) else str(index)


def _said(arrays: Arrays, network: str, i: int, classes: Sequence[str]) -> dict[str, Any]:
  clean, triggered = (arrays[f"pred/{network}/{kind}"][i] for kind in ("clean", "triggered"))
  label = arrays["labels"][i]
  return {
    "network": network,
    "clean": named(clean, classes),
    "triggered": named(triggered, classes),
    "clean_right": bool(clean == label),
    "triggered_right": bool(triggered == label),
  }
