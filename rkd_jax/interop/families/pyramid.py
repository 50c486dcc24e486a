"""PyramidNets, named as by their authors (dyhan0920/PyramidNet-PyTorch), whom others copied.

Compared with that source; the normalisation is its train.py's.
"""

from rkd_jax.interop.families import base
from rkd_jax.interop.families.base import CIFAR10_PIXELS, Family, Shapes

RULES = (
  ("conv", "conv1"),
  ("stem_norm", "bn1"),
  ("norm", "bn_final"),
  ("stage{s}_block{b}/conv{i}", "layer{s}.{b}.conv{i}"),
  ("stage{s}_block{b}/norm{i}", "layer{s}.{b}.bn{i}"),
  ("head", "fc"),
)


def guess(shapes: Shapes) -> list[str]:
  blocks = base.counts(shapes, r"layer(\d+)\.(\d+)\.conv1\.")
  if len(blocks) != 3 or "bn_final.weight" not in shapes:
    return []
  deep = "layer1.0.conv3.weight" in shapes
  alpha = base.size(shapes, f"layer3.{blocks[2] - 1}.conv1.weight", 0) - 16
  fields = {"block": "bottleneck"} if deep else {}
  return base.named("pyramidnet", (9 if deep else 6) * blocks[0] + 2, alpha, **fields)


FAMILIES = (
  Family(
    "its authors' PyramidNet", guess, RULES, "fc",
    trained={10: CIFAR10_PIXELS, 100: CIFAR10_PIXELS},
  ),
)  # fmt: skip
