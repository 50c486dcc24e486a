"""Vision transformers: timm (DeiT's and DINO's names too), torchvision, Hugging Face, jeonsworld.

Compared with published lists of the tensors of vit_b_16, vit_h_14 and timm's models, with Hugging
Face's modeling_vit.py and with jeonsworld/ViT-pytorch, whose names chenyaofo has too. The first two
join queries, keys and values in this order; the others have them apart. The number of heads is in
no tensor: one per 64 of the width, as all of theirs but ViT-H have it (16). timm's and Hugging
Face's were trained with several normalisations, so one is asked for.
"""

import re
from collections.abc import Sequence

from rkd_jax.interop.families import base
from rkd_jax.interop.families.base import AND, IMAGENET, Family, Rules, Shapes

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
DEEPEST = 64  # blocks; the largest that are known have 48
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


def apart(
  embedding: str, patches: str, block: str, attention: Sequence[str], norms: Sequence[str],
  dense: Sequence[str], head: Sequence[str],
) -> Rules:  # fmt: skip
  """Names where queries, keys, values are apart: `attention` has those of the three and of what
  comes after them; `norms` and `dense` those of a block's two; `head`: the last norm and layer."""
  return (
    ("class_token", f"{embedding}.cls_token"),
    ("place", f"{embedding}.position_embeddings"),
    ("embed", patches),
    ("norm", head[0]),
    ("stage{s}_block{b}/qkv", AND.join(f"{block}.{name}" for name in attention[:3])),
    ("stage{s}_block{b}/out", f"{block}.{attention[3]}"),
    *((f"stage{{s}}_block{{b}}/norm{i + 1}", f"{block}.{name}") for i, name in enumerate(norms)),
    *((f"stage{{s}}_block{{b}}/dense{i + 1}", f"{block}.{name}") for i, name in enumerate(dense)),
    ("head", head[1]),
  )


QKV = ("query", "key", "value")
JEONSWORLD = apart(
  "transformer.embeddings", "transformer.embeddings.patch_embeddings",
  "transformer.encoder.layer.{n}", [f"attn.{name}" for name in (*QKV, "out")],
  ("attention_norm", "ffn_norm"), ("ffn.fc1", "ffn.fc2"),
  ("transformer.encoder.encoder_norm", "head"),
)  # fmt: skip
HUGGINGFACE = apart(
  "vit.embeddings", "vit.embeddings.patch_embeddings.projection", "vit.encoder.layer.{n}",
  [*(f"attention.attention.{name}" for name in QKV), "attention.output.dense"],
  ("layernorm_before", "layernorm_after"), ("intermediate.dense", "output.dense"),
  ("vit.layernorm", "classifier"),
)  # fmt: skip
TRANSFORMERS5 = apart(  # what Hugging Face's code calls them since its version 5
  "vit.embeddings", "vit.embeddings.patch_embeddings.projection", "vit.layers.{n}",
  [f"attention.{name}_proj" for name in "qkvo"], ("layernorm_before", "layernorm_after"),
  ("mlp.fc1", "mlp.fc2"), ("vit.layernorm", "classifier"),
)  # fmt: skip


def name(shapes: Shapes, stem: str, pattern: str) -> list[str]:
  depth = len({met for met in map(base.matcher(pattern), shapes) if met})
  width, patch = (base.size(shapes, f"{stem}.weight", axis) for axis in (0, 2))
  heads = {"heads": 16} if width == 1280 else {}
  return base.named("vit", width, depth, patch, **heads) if depth <= DEEPEST else []


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


def guess_apart(rules: Rules):
  """Tells one of those by its first block."""
  known = dict(rules)
  patches, block = known["embed"], known["stage{s}_block{b}/out"]
  pattern = re.escape(block).replace(r"\{n\}", r"(\d+)")

  def guess(shapes: Shapes) -> list[str]:
    there = f"{block.format(n=0)}.weight" in shapes and f"{patches}.weight" in shapes
    return name(shapes, patches, pattern) if there else []

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
  *(Family(
    whose, guess_apart(rules), rules, dict(rules)["head"], stem=dict(rules)["embed"],
    side=side(dict(rules)["embed"], dict(rules)["place"]),
  ) for whose, rules in (
    ("jeonsworld's or chenyaofo's ViT", JEONSWORLD),
    ("Hugging Face's ViT", HUGGINGFACE),
    ("Hugging Face's ViT", TRANSFORMERS5),
  )),
)  # fmt: skip
