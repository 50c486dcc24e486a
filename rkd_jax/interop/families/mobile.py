"""MobileNetV2s. The strides of torchvision's and chenyaofo's differ, their tensors do not.

Compared with the sources of torchvision (models/mobilenetv2.py), chenyaofo, kuangliu and
RepDistiller; timm's names with published lists of its tensors. weiaicunzai's is another network
(biases, a padded 1x1 stem, a convolution as its head): it is not converted.
"""

import itertools

from rkd_jax.interop.families import base
from rkd_jax.interop.families.base import CIFAR10, CIFAR100, IMAGENET, Family, Rules, Shapes

ROWS = (1, 2, 3, 4, 3, 3, 1)  # blocks of the paper's table 2
WIDTHS = tuple(sorted((n / 20 for n in range(1, 61)), key=lambda w: (w * 4 % 1 > 0, abs(w - 1))))

TORCHVISION: Rules = (
  ("conv", "features.0.0"),
  ("norm", "features.0.1"),
  ("stage4_last", "features.18.0"),
  ("stage4_last_norm", "features.18.1"),
  ("stage1_block0/depthwise", "features.1.conv.0.0"),  # the first block expands nothing
  ("stage1_block0/depthwise_norm", "features.1.conv.0.1"),
  ("stage1_block0/project", "features.1.conv.1"),
  ("stage1_block0/project_norm", "features.1.conv.2"),
  ("stage{s}_block{b}/expand", "features.{n1}.conv.0.0"),
  ("stage{s}_block{b}/expand_norm", "features.{n1}.conv.0.1"),
  ("stage{s}_block{b}/depthwise", "features.{n1}.conv.1.0"),
  ("stage{s}_block{b}/depthwise_norm", "features.{n1}.conv.1.1"),
  ("stage{s}_block{b}/project", "features.{n1}.conv.2"),
  ("stage{s}_block{b}/project_norm", "features.{n1}.conv.3"),
  ("head", "classifier.1"),
)
KUANGLIU: Rules = (
  ("conv", "conv1"),
  ("norm", "bn1"),
  ("stage4_last", "conv2"),
  ("stage4_last_norm", "bn2"),
  ("stage{s}_block{b}/expand", "layers.{n}.conv1"),
  ("stage{s}_block{b}/expand_norm", "layers.{n}.bn1"),
  ("stage{s}_block{b}/depthwise", "layers.{n}.conv2"),
  ("stage{s}_block{b}/depthwise_norm", "layers.{n}.bn2"),
  ("stage{s}_block{b}/project", "layers.{n}.conv3"),
  ("stage{s}_block{b}/project_norm", "layers.{n}.bn3"),
  ("stage{s}_block{b}/shortcut", "layers.{n}.shortcut.0"),
  ("stage{s}_block{b}/shortcut_norm", "layers.{n}.shortcut.1"),
  ("head", "linear"),
)
REPDISTILLER: Rules = (
  ("conv", "conv1.0"),
  ("norm", "conv1.1"),
  ("stage4_last", "conv2.0"),
  ("stage4_last_norm", "conv2.1"),
  ("stage{s}_block{b}/expand", "blocks.{row}.{i}.conv.0"),
  ("stage{s}_block{b}/expand_norm", "blocks.{row}.{i}.conv.1"),
  ("stage{s}_block{b}/depthwise", "blocks.{row}.{i}.conv.3"),
  ("stage{s}_block{b}/depthwise_norm", "blocks.{row}.{i}.conv.4"),
  ("stage{s}_block{b}/project", "blocks.{row}.{i}.conv.6"),
  ("stage{s}_block{b}/project_norm", "blocks.{row}.{i}.conv.7"),
  ("head", "classifier.0"),
)
TIMM: Rules = (
  ("conv", "conv_stem"),
  ("norm", "bn1"),
  ("stage4_last", "conv_head"),
  ("stage4_last_norm", "bn2"),
  ("stage1_block0/depthwise", "blocks.0.0.conv_dw"),
  ("stage1_block0/depthwise_norm", "blocks.0.0.bn1"),
  ("stage1_block0/project", "blocks.0.0.conv_pw"),
  ("stage1_block0/project_norm", "blocks.0.0.bn2"),
  ("stage{s}_block{b}/expand", "blocks.{row}.{i}.conv_pw"),
  ("stage{s}_block{b}/expand_norm", "blocks.{row}.{i}.bn1"),
  ("stage{s}_block{b}/depthwise", "blocks.{row}.{i}.conv_dw"),
  ("stage{s}_block{b}/depthwise_norm", "blocks.{row}.{i}.bn2"),
  ("stage{s}_block{b}/project", "blocks.{row}.{i}.conv_pwl"),
  ("stage{s}_block{b}/project_norm", "blocks.{row}.{i}.bn3"),
  ("head", "classifier"),
)


def row(n: int) -> dict[str, int]:
  """The row of the table that the network's n-th block is in, and its place there."""
  before = next(r for r, end in enumerate(itertools.accumulate(ROWS)) if n < end)
  return {"row": before, "i": n - sum(ROWS[:before])}


def rounded(channels: float, step: int) -> int:
  """As the paper's code rounds them; a step of 1 cuts the fraction off."""
  if step == 1:
    return int(channels)
  near = max(step, int(channels + step / 2) // step * step)
  return near if near >= 0.9 * channels else near + step


def widths(shapes: Shapes, wide: dict[str, int], step: int = 8) -> float:
  """The width that has these channels: {a tensor: its channels at width 1}; else about that."""
  found = {name: base.size(shapes, name, 0) for name in wide}
  exact = [w for w in WIDTHS if all(rounded(wide[n] * w, step) == found[n] for n in wide)]
  return exact[0] if exact else 1.0


def names(width: float, *variants: str) -> list[str]:
  """The network's names, one for each way of striding that its tensors allow."""
  return [
    name
    for variant in variants
    for name in base.named("mobilenet_v2", *([width] if width != 1 else []), variant=variant)
  ]


def torchvision(shapes: Shapes) -> list[str]:
  if not any(name.startswith("features.18.") for name in shapes):
    return []
  wide = {"features.0.0.weight": 32, "features.7.conv.2.weight": 64}
  width = widths(shapes, wide | {"features.17.conv.2.weight": 320})
  small = base.size(shapes, "classifier.1.weight", 0) in (10, 100)
  return names(width, *(("cifar", "imagenet") if small else ("imagenet", "cifar")))


def kuangliu(shapes: Shapes) -> list[str]:
  known = "layers.0.conv3.weight" in shapes and "layers.2.conv1.weight" in shapes
  return names(1.0, "kuangliu") if known else []


def repdistiller(shapes: Shapes) -> list[str]:
  if "blocks.0.0.conv.6.weight" not in shapes:
    return []
  wide = {"conv1.0.weight": 32, "blocks.3.0.conv.6.weight": 64, "blocks.6.0.conv.6.weight": 320}
  return names(widths(shapes, wide, step=1), "distiller")


def timm(shapes: Shapes) -> list[str]:
  if "conv_stem.weight" not in shapes or "blocks.1.0.conv_pwl.weight" not in shapes:
    return []
  wide = {"conv_stem.weight": 32, "blocks.3.0.conv_pwl.weight": 64}
  return names(widths(shapes, wide | {"blocks.6.0.conv_pwl.weight": 320}), "imagenet")


FAMILIES = (
  Family(
    "torchvision's or chenyaofo's MobileNetV2", torchvision, TORCHVISION, "classifier.1",
    stem="features.0.0", trained={1000: IMAGENET, 10: CIFAR10, 100: CIFAR100},
  ),
  Family("kuangliu's MobileNetV2", kuangliu, KUANGLIU, "linear", trained={10: CIFAR10}),
  Family(
    "RepDistiller's or mdistiller's MobileNetV2", repdistiller, REPDISTILLER, "classifier.0",
    stem="conv1.0", trained={100: CIFAR100}, place=row,
  ),
  Family(
    "timm's MobileNetV2", timm, TIMM, "classifier", stem="conv_stem", trained={1000: IMAGENET},
    place=row,
  ),
)  # fmt: skip
