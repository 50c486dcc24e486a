"""A network of the user's own, whose module says what a file calls its layers. Imports JAX.

The map stands in the module, as `KEYS`, and not in a file of its own: who names the network has
named both, and a phase's key, which hashes the module's source, changes with either.
"""

import importlib
from collections.abc import Iterable, Mapping

from rkd_jax import lookup
from rkd_jax.errors import UserError, nearest
from rkd_jax.interop import layout
from rkd_jax.interop.checkpoint import Checkpoint
from rkd_jax.interop.converted import Converted
from rkd_jax.interop.families.base import LEAVES
from rkd_jax.interop.wrappers import Group, groups

HEAD = "head"


def convert(checkpoint: Checkpoint, network: str, side: int, channels: int) -> Converted:
  """The checkpoint as a module of the user's own.

  The module defines `Model`, as every architecture, with a last layer called "head", and `KEYS`,
  {a layer's name in the file: its path in ours}, as {"conv1.0": "conv1", "fc2": "head"}; a tensor
  that belongs to no layer is named alone, with its whole path. Kernels are turned as PyTorch's are.

  Raises:
    UserError: no such module, no `KEYS`, or tensors that do not fit.
  """
  keys = keys_of(network)
  wanted_head = [name for name, path in keys.items() if path == HEAD]
  if not wanted_head:
    raise UserError(f"{network}.KEYS names no layer {HEAD!r}: the last one, which has the classes.")
  errors = []
  for group in groups(checkpoint.tensors):
    shapes = {name: tuple(array.shape) for name, array in group.tensors.items()}
    classes = shapes.get(f"{wanted_head[0]}.weight", (0,))[0]
    if not classes:
      continue
    wanted = layout.expected(network, classes, channels, side)
    names = {leaf: _name(keys, leaf, network) for leaf in wanted}
    difference = layout.compare(network, f"{network}.KEYS", names, wanted, shapes)
    if not len(difference):
      return _converted(network, names, wanted, group, classes, channels, side)
    errors.append(f"{group.place}: {difference}")
  found = "; ".join(errors) or f"no tensor is called '{wanted_head[0]}.weight'"
  raise UserError(
    f"{checkpoint.path} does not fit {network} ({found}). Change the module or its KEYS; "
    f"python -m rkd_jax.commands.inspect {checkpoint.path} --all shows the file's tensors."
  )


def keys_of(network: str) -> Mapping[str, str]:
  """The map that the module defines."""
  name = network.partition("-")[0]
  lookup.load("models", name)
  keys = getattr(importlib.import_module(name), "KEYS", None)
  if not isinstance(keys, Mapping):
    raise UserError(
      f"{name} defines no KEYS: expected a dict of what the file calls our layers, as "
      '{"conv1.0": "conv1", "fc2": "head"}.'
    )
  return keys


def _name(keys: Mapping[str, str], leaf: str, network: str) -> str:
  """What the file calls our leaf."""
  path = layout.path_of(leaf)
  layer, _, last = path.rpartition("/")
  whole = _first(name for name, ours in keys.items() if ours == path)
  named = whole or _first(name for name, ours in keys.items() if ours == layer)
  if not named:
    raise UserError(f"{network}.KEYS has nothing for {path!r}. {nearest(layer, keys.values())}")
  return whole or f"{named}.{LEAVES.get(last, last)}"


def _first(names: Iterable[str]) -> str:
  return next(iter(names), "")


def _converted(
  network: str,
  names: Mapping[str, str],
  wanted: Mapping[str, layout.Shape],
  group: Group,
  classes: int,
  channels: int,
  side: int,
) -> Converted:
  return Converted(
    network=network,
    variables=layout.variables(names, wanted, group.tensors),
    classes=classes,
    channels=channels,
    side=side,
    normalisation=None,
    family="your own module",
    place=group.place,
  )
