"""Whose state dicts are known: one file per family, which says what each calls our layers."""

from rkd_jax.interop.families import mobile, pyramid, residual, shuffle, vgg, vit, wide
from rkd_jax.interop.families.base import Family, Normalisation

ALL: tuple[Family, ...] = (
  *residual.FAMILIES,
  *wide.FAMILIES,
  *pyramid.FAMILIES,
  *vgg.FAMILIES,
  *mobile.FAMILIES,
  *shuffle.FAMILIES,
  *vit.FAMILIES,
)

__all__ = ["ALL", "Family", "Normalisation"]
