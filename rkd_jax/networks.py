"""The architectures that a config names, made for its data when a method asks for them."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp

from rkd_jax import lookup
from rkd_jax.data.sources import Dataset
from rkd_jax.errors import UserError, nearest
from rkd_jax.models.network import Network
from rkd_jax.phases import Config

NOT_IN_NAMES = ("parent", "name", "classes", "dtype", "bn_group")
WRITTEN = {  # how a field's value is written in a network's name, by the type of its default
  int: (r"\d+", "a whole number"),
  float: (r"\d+(\.\d+)?", "a number"),
  str: (r"\w+", "a word"),
}


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
  """The architecture "file-a-b-field=c" for this data: the file's first fields are a and b.

  `normalisation`: (mean, std) of its pixels; None: the data's.
  """
  dtype, group = jnp.dtype(config.dtype).type, config.bn_group or None
  made = module(name, classes=dataset.classes, dtype=dtype, bn_group=group)
  mean, std = normalisation or (dataset.mean, dataset.std)
  if len(mean) != dataset.image_shape[-1]:
    raise UserError(
      f"The teacher was trained on images of {len(mean)} channels; {dataset.name!r} has "
      f"{dataset.image_shape[-1]}."
    )
  return Network(made, dataset.image_shape, tuple(mean), tuple(std))


def module(name: str, **common: Any) -> Any:
  """The Flax module of this name, with what names do not say ("classes", ...) if it has such."""
  kind = name.split("-")[0]
  part = lookup.load("models", kind)
  known = {f.name: f.default for f in dataclasses.fields(part) if f.init}
  own = {f: default for f, default in known.items() if f not in NOT_IN_NAMES}
  fields = _fields(name, own) | common
  return lookup.build("models", kind, {f: value for f, value in fields.items() if f in known})


def _fields(name: str, own: Mapping[str, Any]) -> dict[str, Any]:
  """What a name says of a file's fields, whose defaults are `own`."""
  fields: dict[str, Any] = {}
  for place, text in enumerate(name.split("-")[1:]):
    field, named, value = text.rpartition("=")
    in_order = place < len(own) and list(fields) == list(own)[:place]
    if not named and not (in_order and re.match("[0-9]", value)):
      raise UserError(
        f"Cannot read the network {name!r}: after the file's name come numbers for its fields "
        f"{', '.join(own)}, in this order, as in wideresnet-16-2, then any as field=value."
      )
    field = field if named else list(own)[place]
    if field not in own or field in fields:
      problem = "is there twice" if field in fields else "is none of its fields"
      raise UserError(
        f"Cannot read the network {name!r}: {field!r} {problem}. {nearest(field, own)}"
      )
    fields[field] = _value(name, field, value, own[field])
  return fields


def _value(name: str, field: str, text: str, default: Any) -> Any:
  """The text as a value of the default's type."""
  kind = type(default)
  if kind not in WRITTEN:  # a module of the user's own need not give defaults
    kind = int if re.fullmatch("[0-9]+", text) else str
  pattern, expected = WRITTEN[kind]
  if not re.fullmatch(pattern, text, re.ASCII):
    raise UserError(
      f"Cannot read the network {name!r}: its field {field} takes {expected}, not {text!r}."
    )
  return kind(text)
