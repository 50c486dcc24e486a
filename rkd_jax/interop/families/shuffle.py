"""ShuffleNetV2s. torchvision's stem differs from chenyaofo's in strides, not in tensors.

Compared with the sources of torchvision (models/shufflenetv2.py), chenyaofo, kuangliu, RepDistiller
and mdistiller. weiaicunzai's is another network (biases, wider first blocks): it is not converted.
Nor are kuangliu's of width 2 (224 channels where the paper has 244) and below 0.5.
"""

from rkd_jax.interop.families import base
from rkd_jax.interop.families.base import CIFAR10, CIFAR100, IMAGENET, Family, Rules, Shapes

WIDTHS = {48: 0.5, 116: 1.0, 176: 1.5, 244: 2.0}  # by the channels of the first stage

TORCHVISION: Rules = (
  ("conv", "conv1.0"),
  ("norm", "conv1.1"),
  ("stage4_last", "conv5.0"),
  ("stage4_last_norm", "conv5.1"),
  ("stage{s}_block{b}/left_depthwise", "stage{s}.{b}.branch1.0"),
  ("stage{s}_block{b}/left_depthwise_norm", "stage{s}.{b}.branch1.1"),
  ("stage{s}_block{b}/left_conv", "stage{s}.{b}.branch1.2"),
  ("stage{s}_block{b}/left_norm", "stage{s}.{b}.branch1.3"),
  ("stage{s}_block{b}/conv1", "stage{s}.{b}.branch2.0"),
  ("stage{s}_block{b}/norm1", "stage{s}.{b}.branch2.1"),
  ("stage{s}_block{b}/depthwise", "stage{s}.{b}.branch2.3"),
  ("stage{s}_block{b}/depthwise_norm", "stage{s}.{b}.branch2.4"),
  ("stage{s}_block{b}/conv2", "stage{s}.{b}.branch2.5"),
  ("stage{s}_block{b}/norm2", "stage{s}.{b}.branch2.6"),
  ("head", "fc"),
)
KUANGLIU: Rules = (
  ("conv", "conv1"),
  ("norm", "bn1"),
  ("stage4_last", "conv2"),
  ("stage4_last_norm", "bn2"),
  ("stage{s}_block0/left_depthwise", "layer{s0}.0.conv1"),
  ("stage{s}_block0/left_depthwise_norm", "layer{s0}.0.bn1"),
  ("stage{s}_block0/left_conv", "layer{s0}.0.conv2"),
  ("stage{s}_block0/left_norm", "layer{s0}.0.bn2"),
  ("stage{s}_block0/conv1", "layer{s0}.0.conv3"),
  ("stage{s}_block0/norm1", "layer{s0}.0.bn3"),
  ("stage{s}_block0/depthwise", "layer{s0}.0.conv4"),
  ("stage{s}_block0/depthwise_norm", "layer{s0}.0.bn4"),
  ("stage{s}_block0/conv2", "layer{s0}.0.conv5"),
  ("stage{s}_block0/norm2", "layer{s0}.0.bn5"),
  ("stage{s}_block{b}/conv1", "layer{s0}.{b}.conv1"),
  ("stage{s}_block{b}/norm1", "layer{s0}.{b}.bn1"),
  ("stage{s}_block{b}/depthwise", "layer{s0}.{b}.conv2"),
  ("stage{s}_block{b}/depthwise_norm", "layer{s0}.{b}.bn2"),
  ("stage{s}_block{b}/conv2", "layer{s0}.{b}.conv3"),
  ("stage{s}_block{b}/norm2", "layer{s0}.{b}.bn3"),
  ("head", "linear"),
)


def names(half: int, *stems: str) -> list[str]:
  """The network's names, by the half of the first stage's channels, for each possible stem."""
  width = WIDTHS.get(2 * half, 1.0)
  return [
    name
    for stem in stems
    for name in base.named("shufflenet_v2", *([width] if width != 1 else []), stem=stem)
  ]


def torchvision(shapes: Shapes) -> list[str]:
  if "stage2.0.branch1.0.weight" not in shapes:
    return []
  small = base.size(shapes, "fc.weight", 0) in (10, 100)
  stems = ("cifar", "imagenet") if small else ("imagenet", "cifar")
  return names(base.size(shapes, "stage2.0.branch1.2.weight", 0), *stems)


def kuangliu(shapes: Shapes) -> list[str]:
  if "layer1.0.conv5.weight" not in shapes:
    return []
  stem = "pointwise" if base.size(shapes, "conv1.weight", 2) == 1 else "cifar"
  return names(base.size(shapes, "layer1.0.conv2.weight", 0), stem)


FAMILIES = (
  Family(
    "torchvision's or chenyaofo's ShuffleNetV2", torchvision, TORCHVISION, "fc", stem="conv1.0",
    trained={1000: IMAGENET, 10: CIFAR10, 100: CIFAR100},
  ),
  Family(
    "kuangliu's or RepDistiller's ShuffleNetV2", kuangliu, KUANGLIU, "linear",
    trained={10: CIFAR10, 100: CIFAR100},
  ),
)  # fmt: skip
