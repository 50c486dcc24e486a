"""A stranger's state dict as one of our networks: told by names and shapes, whole or not at all."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rkd_jax.errors import UserError
from rkd_jax.interop import flax_tree
from rkd_jax.interop.checkpoint import Checkpoint
from rkd_jax.interop.converted import Converted, Difference
from rkd_jax.interop.families import ALL, Family, Normalisation, base
from rkd_jax.interop.wrappers import Group, groups

Shape = tuple[int, ...]
OWN = (
  "Name a module of your own that says which tensor is which, as "
  "--config.teacher.network=my_package.my_model (docs/adding-an-architecture.md)"
)
BACKDOORBENCH = {  # what it normalises by, where its container says that a file is its own
  10: base.CIFAR10_PIXELS,
  43: base.NONE,
  100: ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
  200: ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
}


class Match(NamedTuple):
  """One reading of a file: as which networks, from where, and what does not fit."""

  family: Family
  group: Group
  networks: tuple[str, ...]
  names: Mapping[str, str]  # {our leaf: its name in the file}
  wanted: Mapping[str, Shape]  # {our leaf: its shape}
  classes: int
  channels: int
  side: int | None
  difference: Difference


def convert(
  checkpoint: Checkpoint, network: str = "", side: int = 32, channels: int = 3
) -> Converted:
  """The network that a checkpoint holds.

  Args:
    checkpoint: as `read` returns it.
    network: a module of the user's own, with a dot in its name, which defines `KEYS`; or which of
      several networks with the same tensors is meant; "": the likeliest. Of variables that Flax
      saved: the network that they are of.
    side, channels: of the images, for a module of the user's own, and for Flax's variables.

  Raises:
    UserError: it is none that is known: which is nearest, and the difference. Nothing is ever
      loaded in part.
  """
  if flax_tree.root(checkpoint) is not None:
    return flax_tree.convert(checkpoint, network, side, channels)
  if "." in network.partition("-")[0]:
    from rkd_jax.interop import mapped

    return mapped.convert(checkpoint, network, side, channels)
  if checkpoint.kind == "phase":
    raise UserError(f"{checkpoint.path} is a phase of this package: it needs no conversion.")
  found = best(checkpoint)
  if found is None or len(found.difference):
    raise UserError(unknown(checkpoint.path, found))
  from rkd_jax.interop import layout

  return Converted(
    **described(found, checkpoint.metadata, network),
    variables=layout.variables(found.names, found.wanted, found.group.tensors),
  )


def described(match: Match, metadata: Mapping[str, Any], network: str = "") -> dict[str, Any]:
  """The fields of `Converted`, but the arrays."""
  networks = match.networks
  if network not in networks and backdoorbench(
    match, metadata
  ):  # it takes torchvision's as they are
    network = next((name for name in networks if name.endswith("=imagenet")), "")
  name = network if network in networks else networks[0]
  return {
    "network": name,
    "classes": match.classes,
    "channels": match.channels,
    "side": match.side,
    "normalisation": normalisation(match, metadata),
    "family": match.family.name,
    "place": match.group.place,
    "others": tuple(other for other in networks if other != name),
  }


def normalisation(match: Match, metadata: Mapping[str, Any]) -> Normalisation | None:
  """That of its training, where the family's authors have one; None: not known, or grey images."""
  known = BACKDOORBENCH if backdoorbench(match, metadata) else match.family.trained
  return known.get(match.classes) if match.channels == 3 else None


def backdoorbench(match: Match, metadata: Mapping[str, Any]) -> bool:
  """Whether the file's container is BackdoorBench's."""
  return {"model_name", "num_classes"} <= metadata.keys() and match.group.container == "model"


def best(checkpoint: Checkpoint) -> Match | None:
  """The first reading that fits, or else the nearest; None: the file resembles nothing known."""
  nearest = None
  for match in matches(checkpoint):
    if not len(match.difference):
      return match
    if nearest is None or len(match.difference) < len(nearest.difference):
      nearest = match
  return nearest


def matches(checkpoint: Checkpoint) -> Iterator[Match]:
  """What the file's groups of tensors could be, as families guess; a file that could be many deep
  networks is not held against all of them."""
  traced = 0
  for group in groups(checkpoint.tensors):
    shapes = {name: tuple(array.shape) for name, array in group.tensors.items()}
    for family in ALL:
      if traced > base.TRACED:
        return
      if networks := list(family.guess(shapes)):
        for match in _held(family, group, shapes, networks):
          traced += len(match.wanted)
          yield match


def _held(
  family: Family, group: Group, shapes: Mapping[str, Shape], networks: Sequence[str]
) -> Iterator[Match]:
  """The guess held against the tensors; nothing where there is no such network."""
  from rkd_jax.interop import layout

  classes = base.size(shapes, f"{family.head}.weight", 0)
  channels, side = base.size(shapes, f"{family.stem}.weight", 1) or 3, family.side(shapes)
  if not 0 < classes <= base.LARGEST or not channels <= base.LARGEST >= side > 0:
    return
  try:
    wanted = layout.expected(networks[0], classes, channels, side)
  except (UserError, ValueError, TypeError, ZeroDivisionError):  # Flax's own, for odd shapes
    return
  paths = base.tensors(family, map(layout.path_of, wanted))
  names = {leaf: paths[layout.path_of(leaf)] for leaf in wanted}
  difference = layout.compare(networks[0], family.name, names, wanted, shapes)
  fixed = side if any(leaf.endswith("params/place") for leaf in wanted) else None
  yield Match(family, group, tuple(networks), names, wanted, classes, channels, fixed, difference)


def unknown(path: str, nearest: Match | None) -> str:
  """What is said of a file that is no known network."""
  if nearest is None:
    names = "; ".join(dict.fromkeys(family.name for family in ALL))
    return f"{path}: no known network has tensors of such names. Known are {names}. {OWN}."
  difference = nearest.difference
  return (
    f"{path} is no network that is known. The nearest is {difference.network} "
    f"({difference.family}), found {nearest.group.place}: {difference}. Nothing is loaded in part. "
    f"{OWN}."
  )
