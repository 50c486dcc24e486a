"""Vision transformers (Dosovitskiy et al., 2021, arXiv:2010.11929), as timm has them."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from rkd_jax.errors import UserError
from rkd_jax.models import layers
from rkd_jax.models.network import Edit, Outputs

SMALL = nn.initializers.truncated_normal(0.02)


class Model(nn.Module):
  """ViT: `vit-192` is ViT-Ti/16, `vit-384` ViT-S/16, `vit-768` ViT-B/16; `vit-192-12-4` has 4x4.

  The blocks are four stages (fewer where there are fewer blocks). A stage's feature is what leaves
  it at the patches, after any edit, without the class token; no ReLU follows, so `pre_relu` is the
  same and no norm gives a margin. The head reads the class token alone: an edit of the last stage
  changes no logits.

  Attributes:
    width: of a token, a multiple of the heads.
    depth: blocks.
    patch: pixels of a patch's side; divides the images' sides.
    heads: of the attention; 0: one per 64 of the width.
    classes: K.
    dtype: of the activations; parameters, embedding and logits are float32.
  """

  width: int = 192
  depth: int = 12
  patch: int = 16
  heads: int = 0
  classes: int = 1000
  dtype: Dtype = jnp.float32

  def __post_init__(self):
    if self.width < 1 or self.depth < 1 or self.patch < 1:
      raise UserError(f"A ViT has width, depth and patch of at least 1, not {self!r}.")
    if self.width % (self.heads or max(1, self.width // 64)):
      raise UserError(
        f"A ViT of width {self.width} cannot have {self.heads or self.width // 64} heads: the "
        "width must be a multiple of them. Add heads=, as in vit-96-heads=3."
      )
    super().__post_init__()

  @property
  def stages(self) -> tuple[str, ...]:
    return tuple(f"stage{i + 1}" for i in range(min(4, self.depth)))

  @property
  def margin_bn(self) -> dict[str, tuple[str, ...]]:
    return {}

  @property
  def blocks(self) -> dict[str, int]:
    """{stage: its number of blocks}, the first ones having what is left over."""
    count = len(self.stages)
    return {s: self.depth // count + (i < self.depth % count) for i, s in enumerate(self.stages)}

  @nn.compact
  def __call__(self, images: jax.Array, train: bool, edit: Edit | None = None) -> Outputs:
    """Normalised images [B, H, W, C] -> Outputs (`bn` left empty); `train` changes nothing."""
    features, (x, grid) = {}, self._tokens(images)
    heads = self.heads or max(1, self.width // 64)
    for stage, count in self.blocks.items():
      for i in range(count):
        x = Block(heads, self.dtype, name=f"{stage}_block{i}")(x)
      seen = features[stage] = layers.edited(edit, stage, x[:, 1:].reshape(grid))
      x = x if edit is None else jnp.concatenate([x[:, :1], seen.reshape(x[:, 1:].shape)], 1)
    embedding = _norm(self.dtype, "norm")(x[:, 0]).astype(jnp.float32)
    logits = nn.Dense(self.classes, kernel_init=SMALL, name="head")(embedding)
    return Outputs(logits, features, dict(features), embedding)

  def _tokens(self, images: jax.Array) -> tuple[jax.Array, tuple[int, ...]]:
    """(class token and patches [B, 1 + h w, D] with their places added, (B, h, w, D))."""
    if images.shape[1] % self.patch or images.shape[2] % self.patch:
      raise UserError(
        f"Images of {images.shape[1]} x {images.shape[2]} cannot be cut into patches of "
        f"{self.patch}. Choose a patch that divides both, as in vit-192-12-4."
      )
    embed = layers.conv(
      self.width, self.patch, self.patch, padding=0, use_bias=True, dtype=self.dtype, name="embed",
      kernel_init=nn.initializers.lecun_normal(),
    )  # fmt: skip
    x = embed(images)
    grid, x = x.shape, x.reshape(x.shape[0], -1, self.width)
    first = self.param("class_token", nn.initializers.normal(1e-6), (1, 1, self.width))
    place = self.param("place", SMALL, (1, x.shape[1] + 1, self.width))
    first = jnp.broadcast_to(first, (x.shape[0], 1, self.width)).astype(x.dtype)
    return jnp.concatenate([first, x], 1) + place.astype(x.dtype), grid


class Block(nn.Module):
  """norm, attention, norm, two layers with a GELU; each pair beside a shortcut."""

  heads: int
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [B, N, D] -> the same shape."""
    dense = functools.partial(nn.Dense, kernel_init=SMALL, dtype=self.dtype)
    width = x.shape[-1]
    y = dense(3 * width, name="qkv")(_norm(self.dtype, "norm1")(x))
    x = x + dense(width, name="out")(attention(y, self.heads))
    y = dense(4 * width, name="dense1")(_norm(self.dtype, "norm2")(x))
    return x + dense(width, name="dense2")(nn.gelu(y, approximate=False))


def attention(joint: jax.Array, heads: int) -> jax.Array:
  """Queries, keys and values, one after the other, [B, N, 3 D] -> [B, N, D]; softmax in float32."""
  apart = (*joint.shape[:2], heads, joint.shape[-1] // (3 * heads))
  query, key, value = (x.reshape(apart) for x in jnp.split(joint, 3, -1))
  scores = jnp.einsum("bqhd,bkhd->bhqk", query, key).astype(jnp.float32) * apart[-1] ** -0.5
  weights = nn.softmax(scores).astype(value.dtype)
  return jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(*apart[:2], -1)


def _norm(dtype: Dtype, name: str) -> nn.LayerNorm:
  return nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, dtype=dtype, name=name)
