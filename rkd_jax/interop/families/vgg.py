"""VGGs: layers by their place in a list, ReLUs and pools counted, or by block and place.

Compared with the sources of torchvision (models/vgg.py), timm (the hidden layers are convolutions),
kuangliu, chenyaofo (its hidden layers have 512 units), weiaicunzai (4096), and RepDistiller's and
mdistiller's vgg.py (blocks, three pools for images of 32 pixels; for 64 they have four: say so, as
in vgg-13-pools=4).
"""

import itertools
import math
from collections.abc import Iterable

from rkd_jax.interop.families import base
from rkd_jax.interop.families.base import CIFAR10, CIFAR100, IMAGENET, Family, Shapes

CONVS = {  # of the five stages
  8: (1, 1, 1, 1, 1),
  11: (1, 1, 2, 2, 2),
  13: (2, 2, 2, 2, 2),
  16: (2, 2, 3, 3, 3),
  19: (2, 2, 4, 4, 4),
}
LISTED = ("classifier.0", "classifier.3", "classifier.6")
TIMM = ("pre_logits.fc1", "pre_logits.fc2", "head.fc")


def body(layers: Iterable[str]) -> list[tuple[int, int, str, str]]:
  """(stage, i, its convolution, its norm or "") in forward order."""
  known = set(layers)
  found = []
  for stage, i in itertools.product(range(1, 6), range(4)):
    conv, norm = f"stage{stage}_conv{i}", f"stage{stage}_norm{i}"
    if conv in known:
      found.append((stage, i, conv, norm if norm in known else ""))
  return found


def features(layers: Iterable[str]) -> dict[str, str]:
  """torchvision's "features.7", up to the dense layers."""
  layers = list(layers)
  names, place, before = {}, 0, 1
  for stage, _, conv, norm in body(layers):
    place += stage != before  # the pool between
    before = stage
    names[conv] = f"features.{place}"
    if norm:
      names[norm] = f"features.{place + 1}"
    place += 3 if norm else 2
  return names


def listed(*dense: str):
  """Those, and what the dense layers are called: the head, or two hidden ones and the head."""

  def names(layers: Iterable[str]) -> dict[str, str]:
    hidden = {f"stage5_dense{i}": name for i, name in enumerate(dense[:-1])}
    return features(layers) | hidden | {"head": dense[-1]}

  return names


def blocked(layers: Iterable[str]) -> dict[str, str]:
  """RepDistiller's "block2.3"."""
  names = {"head": "classifier"}
  for stage, i, conv, norm in body(layers):
    place = i * (3 if norm else 2)
    names |= {conv: f"block{stage - 1}.{place}"}
    names |= {norm: f"block{stage - 1}.{place + 1}"} if norm else {}
  return names


def depth(shapes: Shapes, prefix: str) -> int:
  """The number of layers that is nearest to the number of convolutions."""
  convs = sum(n.startswith(prefix) and len(shape) == 4 for n, shape in shapes.items())
  return min(CONVS, key=lambda layers: abs(layers - 3 - convs))


def common(shapes: Shapes, prefix: str, first: str) -> tuple[list[int], dict[str, int]]:
  """What a name begins with, the depth and whether there are norms, and the width if odd."""
  norms = any(n.startswith(prefix) and n.endswith(".running_mean") for n in shapes)
  width = base.size(shapes, f"{first}.weight", 0)
  return [depth(shapes, prefix), int(norms)], {"width": width} if width != 64 else {}


def guess_listed(*dense: str, pools: Iterable[int] = range(base.LARGEST)):
  """Tells a VGG whose dense layers are called so; `pools`: what the maps may be averaged to."""

  def guess(shapes: Shapes) -> list[str]:
    first = shapes.get("features.0.weight", ())
    if len(first) != 4 or not {f"{name}.weight" for name in dense} <= shapes.keys():
      return []
    (layers, norms), fields = common(shapes, "features.", "features.0")
    if len(dense) == 1:
      return base.named("vgg", layers, **({} if norms else {"norm": 0}), **fields)
    hidden, *inputs = shapes[f"{dense[0]}.weight"] or (0,)
    pool = round((math.prod(inputs) / max(8 * first[0], 1)) ** 0.5)
    fields = {"norm": norms, "hidden": hidden, "pool": pool} | fields
    return base.named("vgg", layers, **fields) if pool in pools else []

  return guess


def guess_blocked(shapes: Shapes) -> list[str]:
  if "block0.0.weight" not in shapes:
    return []
  (layers, norms), fields = common(shapes, "block", "block0.0")
  fields = ({} if norms else {"norm": 0}) | fields
  return [
    name for pools in (3, 4) for name in base.named("vgg", layers, **{"pools": pools} | fields)
  ]


FAMILIES = (
  Family(
    "chenyaofo's or weiaicunzai's VGG", guess_listed(*LISTED, pools=(1,)), listed(*LISTED),
    LISTED[-1], stem="features.0", trained={10: CIFAR10, 100: CIFAR100},
  ),
  Family(
    "torchvision's VGG", guess_listed(*LISTED), listed(*LISTED), LISTED[-1], stem="features.0",
    trained={1000: IMAGENET},
  ),
  Family(
    "timm's VGG", guess_listed(*TIMM), listed(*TIMM), TIMM[-1], stem="features.0",
    trained={1000: IMAGENET},
  ),
  Family(
    "kuangliu's VGG", guess_listed("classifier"), listed("classifier"), "classifier",
    stem="features.0", trained={10: CIFAR10},
  ),
  Family(
    "timm's VGG without hidden layers", guess_listed("head.fc"), listed("head.fc"), "head.fc",
    stem="features.0",
  ),
  Family(
    "RepDistiller's or mdistiller's VGG", guess_blocked, blocked, "classifier", stem="block0.0",
    trained={100: CIFAR100},
  ),
)  # fmt: skip
