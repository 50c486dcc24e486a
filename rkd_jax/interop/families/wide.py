"""Wide ResNets, named as in xternalz/WideResNet-pytorch.

RepDistiller and mdistiller (wrn.py) have the same names. Compared with the sources of the three.
weiaicunzai's is another network (biases, a shortcut before the norm): it is not converted.
"""

from rkd_jax.interop.families import base
from rkd_jax.interop.families.base import CIFAR10_PIXELS, CIFAR100, Family, Shapes

RULES = (
  ("conv", "conv1"),
  ("norm", "bn1"),
  ("stage{s}_block{b}/conv{i}", "block{s}.layer.{b}.conv{i}"),
  ("stage{s}_block{b}/norm{i}", "block{s}.layer.{b}.bn{i}"),
  ("stage{s}_block{b}/shortcut", "block{s}.layer.{b}.convShortcut"),
  ("head", "fc"),
)


def guess(shapes: Shapes) -> list[str]:
  blocks = base.counts(shapes, r"block(\d+)\.layer\.(\d+)\.")
  if len(blocks) != 3:
    return []
  widen = base.size(shapes, "block1.layer.0.conv1.weight", 0) // 16
  return base.named("wideresnet", 6 * blocks[0] + 4, widen)


FAMILIES = (
  Family(
    "xternalz' or RepDistiller's WRN", guess, RULES, "fc",
    trained={10: CIFAR10_PIXELS, 100: CIFAR100},  # RepDistiller's for 100; xternalz' differ by .02
  ),
)  # fmt: skip
