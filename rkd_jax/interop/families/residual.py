"""ResNets and pre-activation ResNets: who calls the shortcut and the head what.

Names were compared with the authors' sources: torchvision's models/resnet.py (timm's are the same,
and huyvnphan/PyTorch_CIFAR10's, whose 3x3 stem keeps the pool), Hugging Face's modeling_resnet.py,
kuangliu/pytorch-cifar, akamaster/pytorch_resnet_cifar10, chenyaofo/pytorch-cifar-models,
HobbitLong/RepDistiller and megvii-research/mdistiller (resnet.py, resnetv2.py),
weiaicunzai/pytorch-cifar100, SCLBD/BackdoorBench (models/preact_resnet.py). weiaicunzai's
PreActResNet is another network (biases, a norm in the stem, a shortcut before the norm): it is not
converted.
"""

from rkd_jax.interop.families import base
from rkd_jax.interop.families.base import CIFAR10, CIFAR100, IMAGENET, Family, Rules, Shapes

DEPTHS = {  # (blocks of the stages, of three convolutions): layers
  ((2, 2, 2, 2), False): 18,
  ((3, 4, 6, 3), False): 34,
  ((3, 4, 6, 3), True): 50,
  ((3, 4, 23, 3), True): 101,
  ((3, 8, 36, 3), True): 152,
}
STEMS = {7: ("imagenet",), 3: ("cifar", "pooled")}  # those whose first kernel has this size


def rules(shortcut: str, head: str) -> Rules:
  """torchvision's names, but for those two."""
  return (
    ("conv", "conv1"),
    ("norm", "bn1"),
    ("stage{s}_block{b}/conv{i}", "layer{s}.{b}.conv{i}"),
    ("stage{s}_block{b}/norm{i}", "layer{s}.{b}.bn{i}"),
    ("stage{s}_block{b}/shortcut", f"layer{{s}}.{{b}}.{shortcut}.0"),
    ("stage{s}_block{b}/shortcut_norm", f"layer{{s}}.{{b}}.{shortcut}.1"),
    ("head", head),
  )


WEIAICUNZAI: Rules = (  # stages are conv2_x to conv5_x; a block's layers have numbers, ReLUs too
  ("conv", "conv1.0"),
  ("norm", "conv1.1"),
  *((f"stage{s}_block{{b}}/{our}", f"conv{s + 1}_x.{{b}}.{their}")
    for s in range(1, 5)
    for our, their in (
      *((f"conv{i + 1}", f"residual_function.{3 * i}") for i in range(3)),
      *((f"norm{i + 1}", f"residual_function.{3 * i + 1}") for i in range(3)),
      ("shortcut", "shortcut.0"), ("shortcut_norm", "shortcut.1"),
    )),
  ("head", "fc"),
)  # fmt: skip

EMBED = "resnet.embedder.embedder"
LAYERS = "resnet.encoder.stages.{s0}.layers.{b}"
HUGGINGFACE: Rules = (
  ("conv", f"{EMBED}.convolution"),
  ("norm", f"{EMBED}.normalization"),
  *((f"stage{{s}}_block{{b}}/conv{i + 1}", f"{LAYERS}.layer.{i}.convolution") for i in range(3)),
  *((f"stage{{s}}_block{{b}}/norm{i + 1}", f"{LAYERS}.layer.{i}.normalization") for i in range(3)),
  ("stage{s}_block{b}/shortcut", f"{LAYERS}.shortcut.convolution"),
  ("stage{s}_block{b}/shortcut_norm", f"{LAYERS}.shortcut.normalization"),
  ("head", "classifier.1"),
)


def large(shapes: Shapes, blocks: tuple[int, ...], first: str, last: str, stem: str) -> list[str]:
  """A network of four stages. `first` and `last`: the convolutions of its first block, where the
  last is missing but in bottlenecks; `stem`: the first convolution. Several, if stems differ in
  what is no tensor."""
  deep = f"{last}.weight" in shapes
  near = [key for key in DEPTHS if key[1] == deep]
  known = min(near, key=lambda key: sum(abs(a - b) for a, b in zip(key[0], blocks, strict=True)))
  width = base.size(shapes, f"{last if deep else first}.weight", 0) // (4 if deep else 1)
  widen = base.size(shapes, f"{first}.weight", 0) // max(width, 1)
  fields = {"width": width} if width != 64 else {}
  numbers = [DEPTHS[known], *([widen] if widen != 1 else [])]
  return [
    name
    for style in STEMS.get(base.size(shapes, f"{stem}.weight", 2), ("cifar",))
    for name in base.named(
      "imagenet_resnet", *numbers, **fields, **({"stem": style} if style != "imagenet" else {})
    )
  ]


def post(shortcut: str, head: str, stages: int):
  """Tells a ResNet of so many stages; three are those for CIFAR."""

  def guess(shapes: Shapes) -> list[str]:
    blocks = base.counts(shapes, r"layer(\d+)\.(\d+)\.conv1\.")
    mine = any(f".{shortcut}." in name for name in shapes) or not shapes.keys() & other
    if len(blocks) != stages or "bn1.weight" not in shapes or not mine:
      return []
    if any(name.startswith("bn_final.") for name in shapes):
      return []  # a PyramidNet
    if stages == 4:
      found = large(shapes, blocks, "layer1.0.conv1", "layer1.0.conv3", "conv1")
      return found if shortcut == "downsample" else found[:1]  # kuangliu's never have the pool
    projected = any(f".{shortcut}." in name for name in shapes)
    width, stem = (base.size(shapes, f"{x}.weight", 0) for x in ("layer1.0.conv1", "conv1"))
    fields = {"width": width} if width != 16 else {}
    fields |= {"shortcut": "B"} if projected else {}
    fields |= {"stem": stem} if stem != width else {}
    return base.named("resnet", 6 * blocks[0] + 2, **fields)

  other = {f"{'fc' if head == 'linear' else 'linear'}.weight"}
  return guess


def pre(shapes: Shapes) -> list[str]:
  blocks = base.counts(shapes, r"layer(\d+)\.(\d+)\.conv1\.")
  known = [depth for (count, _), depth in DEPTHS.items() if count == blocks]
  deep = "layer1.0.conv3.weight" in shapes
  if len(blocks) != 4 or "bn1.weight" in shapes:
    return []
  depth = DEPTHS.get((blocks, deep), min(known, default=18))
  width = base.size(shapes, "layer1.0.conv1.weight", 0)
  return base.named("preact_resnet", depth, **({"width": width} if width != 64 else {}))


def weiaicunzai(shapes: Shapes) -> list[str]:
  blocks = base.counts(shapes, r"conv(\d+)_x\.(\d+)\.residual_function\.0\.")
  first = "conv2_x.0.residual_function"
  if len(blocks) != 4:
    return []
  return large(shapes, blocks, f"{first}.0", f"{first}.6", "conv1.0")[:1]


def huggingface(shapes: Shapes) -> list[str]:
  blocks = base.counts(shapes, r"resnet\.encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.0\.")
  first = "resnet.encoder.stages.0.layers.0.layer"
  if len(blocks) != 4:
    return []
  return large(
    shapes, blocks, f"{first}.0.convolution", f"{first}.2.convolution", f"{EMBED}.convolution"
  )


NORMS = {10: CIFAR10, 100: CIFAR100}
FAMILIES = (
  Family(
    "torchvision's or timm's ResNet", post("downsample", "fc", 4), rules("downsample", "fc"), "fc",
    trained={1000: IMAGENET},
  ),
  Family(
    "kuangliu's ResNet", post("shortcut", "linear", 4), rules("shortcut", "linear"), "linear",
    trained=NORMS,  # RepDistiller's and mdistiller's "resnetv2", for CIFAR-100, has its names
  ),
  Family(
    "chenyaofo's or RepDistiller's ResNet", post("downsample", "fc", 3), rules("downsample", "fc"),
    "fc", trained=NORMS,
  ),
  Family(
    "akamaster's ResNet", post("shortcut", "linear", 3), rules("shortcut", "linear"), "linear",
    trained={10: IMAGENET},  # so does its trainer.py, though the images are CIFAR-10's
  ),
  Family(
    "kuangliu's or BackdoorBench's PreActResNet", pre, rules("shortcut", "linear"), "linear",
    trained={10: CIFAR10},
  ),
  Family(
    "weiaicunzai's ResNet", weiaicunzai, WEIAICUNZAI, "fc", stem="conv1.0", trained={100: CIFAR100},
  ),
  Family(
    "Hugging Face's ResNet", huggingface, HUGGINGFACE, "classifier.1", stem=f"{EMBED}.convolution",
    trained={1000: IMAGENET},
  ),
)  # fmt: skip
