"""Vision transformers: timm's names (DeiT's and DINO's too), and torchvision's.

Compared with published lists of the tensors of vit_b_16, vit_h_14 and timm's models. Both join
queries, keys and values in this order. The number of heads is in no tensor: one per 64 of the
width, as all of theirs but ViT-H have it (16). timm's were trained with several
normalisations, so one is asked for.
"""

from rkd_jax.interop.families import base
from rkd_jax.interop.families.base import IMAGENET, Family, Rules, Shapes

TIMM: Rules = (
  ("class_token", "cls_token"),
  ("place", "pos_embed"),
  ("embed", "patch_embed.proj"),
  ("norm", "norm"),
  ("stage{s}_block{b}/norm{i}", "blocks.{n}.norm{i}"),
  ("stage{s}_block{b}/qkv", "blocks.{n}.attn.qkv"),
  ("stage{s}_block{b}/out", "blocks.{n}.attn.proj"),
  ("stage{s}_block{b}/dense{i}", "blocks.{n}.mlp.fc{i}"),
  ("head", "head"),
)
BLOCK = "encoder.layers.encoder_layer_{n}"


def torchvision(first: str, second: str) -> Rules:
  """The names of the two layers after the attention were others before version 0.13."""
  return (
    ("class_token", "class_token"),
    ("place", "encoder.pos_embedding"),
    ("embed", "conv_proj"),
    ("norm", "encoder.ln"),
    ("stage{s}_block{b}/norm{i}", f"{BLOCK}.ln_{{i}}"),
    ("stage{s}_block{b}/qkv/kernel", f"{BLOCK}.self_attention.in_proj_weight"),
    ("stage{s}_block{b}/qkv/bias", f"{BLOCK}.self_attention.in_proj_bias"),
    ("stage{s}_block{b}/out", f"{BLOCK}.self_attention.out_proj"),
    ("stage{s}_block{b}/dense1", f"{BLOCK}.mlp.{first}"),
    ("stage{s}_block{b}/dense2", f"{BLOCK}.mlp.{second}"),
    ("head", "heads.head"),
  )


def name(shapes: Shapes, stem: str, pattern: str) -> list[str]:
  depth = len({met for met in map(base.matcher(pattern), shapes) if met})
  width, patch = (base.size(shapes, f"{stem}.weight", axis) for axis in (0, 2))
  heads = {"heads": 16} if width == 1280 else {}
  return base.named("vit", width, min(depth, base.BLOCKS), patch, **heads)


def guess_timm(shapes: Shapes) -> list[str]:
  if "patch_embed.proj.weight" not in shapes or "cls_token" not in shapes:
    return []
  return name(shapes, "patch_embed.proj", r"blocks\.(\d+)\.")


def guess_torchvision(layer: str):
  def guess(shapes: Shapes) -> list[str]:
    known = f"encoder.layers.encoder_layer_0.mlp.{layer}.weight" in shapes
    known &= "conv_proj.weight" in shapes
    return name(shapes, "conv_proj", r"encoder\.layers\.encoder_layer_(\d+)\.") if known else []

  return guess


def side(stem: str, place: str):
  """Pixels of an image's side, of its patches' places."""

  def pixels(shapes: Shapes) -> int:
    patches = base.size(shapes, place, 1) - 1
    return round(max(patches, 1) ** 0.5) * base.size(shapes, f"{stem}.weight", 2)

  return pixels


FAMILIES = (
  Family(
    "timm's ViT", guess_timm, TIMM, "head", stem="patch_embed.proj",
    side=side("patch_embed.proj", "pos_embed"),
  ),
  *(Family(
    "torchvision's ViT", guess_torchvision(layers[0]), torchvision(*layers), "heads.head",
    stem="conv_proj", trained={1000: IMAGENET}, side=side("conv_proj", "encoder.pos_embedding"),
  ) for layers in (("0", "3"), ("linear_1", "linear_2"))),
)  # fmt: skip
