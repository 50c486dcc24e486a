"""The architectures that a config names, made for its data when a method asks for them."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp

from rkd_jax import lookup
from rkd_jax.data.sources import Dataset
from rkd_jax.errors import UserError
from rkd_jax.models.network import Network
from rkd_jax.phases import Config


class Networks(Mapping[str, Network]):
  """{role: Network}, by name; remembers what it was asked for: a phase depends on nothing else.

  Attributes:
    asked: {role: name} of the networks that were taken.
  """

  def __init__(
    self,
    config: Config,
    dataset: Dataset,
    names: Mapping[str, str],
    normalisation: Mapping[str, Any] | None = None,
  ):
    """Args:
    names: {role: architecture}.
    normalisation: {role: (mean, std)} of pixels, where they are not the data's.
    """
    self._config, self._dataset, self._names = config, dataset, names
    self._normalisation = normalisation or {}
    self.asked: dict[str, str] = {}

  def __getitem__(self, role: str) -> Network:
    self.asked[role] = self._names[role]
    return build(self._config, self._names[role], self._dataset, self._normalisation.get(role))

  @property
  def normalisation(self) -> dict[str, tuple[tuple[float, ...], tuple[float, ...]]]:
    """{role: (mean, std)} of the networks that were taken."""
    return {role: (self[role].mean, self[role].std) for role in tuple(self.asked)}

  def __iter__(self) -> Iterator[str]:
    return iter(self._names)

  def __len__(self) -> int:
    return len(self._names)

  def __contains__(self, role: object) -> bool:
    return role in self._names


def build(config: Config, name: str, dataset: Dataset, normalisation: Any = None) -> Network:
  """The architecture "file-a-b" for this data: the file's first fields are a and b.

  `normalisation`: (mean, std) of its pixels; None: the data's.
  """
  kind, *numbers = name.split("-")
  part = lookup.load("models", kind)
  known = [f.name for f in dataclasses.fields(part) if f.init and f.name not in ("parent", "name")]
  own = [field for field in known if field not in ("classes", "dtype", "bn_group")]
  if len(numbers) > len(own) or not all(number.isdigit() for number in numbers):
    raise UserError(
      f"Cannot read the network {name!r}: after the file's name come whole numbers for its fields "
      f"{', '.join(own)}, as in wideresnet-16-2."
    )
  fields: dict[str, Any] = {own[i]: int(number) for i, number in enumerate(numbers)}
  fields |= {"classes": dataset.classes, "dtype": jnp.dtype(config.dtype).type}
  fields |= {"bn_group": config.bn_group or None}
  fields = {field: value for field, value in fields.items() if field in known}
  module = lookup.build("models", kind, fields)
  mean, std = normalisation or (dataset.mean, dataset.std)
  if len(mean) != dataset.image_shape[-1]:
    raise UserError(
      f"The teacher was trained on images of {len(mean)} channels; {dataset.name!r} has "
      f"{dataset.image_shape[-1]}."
    )
  return Network(module, dataset.image_shape, tuple(mean), tuple(std))
