"""What comes out of a conversion, and how a file that is not known is answered."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from rkd_jax.interop.families import Normalisation
from rkd_jax.interop.refusals import shown

FEW = 4  # names of tensors in a message


@dataclasses.dataclass(frozen=True)
class Converted:
  """Attributes:
  network: the name that a config has for it, as "resnet-20".
  variables: {"params": ..., "batch_stats": ...} of float32 arrays.
  classes: K, the rows of its head.
  channels: of its images.
  side: pixels of an image's side, where its tensors depend on that (a ViT's places); else None.
  normalisation: mean and std of the pixels that it was trained on, where they are known.
  family: whose names it has.
  place: where in the file it was, with what was taken off its names.
  others: further networks with the same tensors, which compute something else.
  """

  network: str
  variables: dict[str, Any]
  classes: int
  channels: int
  side: int | None
  normalisation: Normalisation | None
  family: str
  place: str
  others: tuple[str, ...] = ()

  @property
  def plain(self) -> dict[str, Any]:
    """All but its arrays, as JSON has it."""
    found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    return {name: value for name, value in found.items() if name != "variables"}


def describe(plain: Mapping[str, Any]) -> str:
  """One line of `Converted.plain`."""
  norm = plain["normalisation"]
  others = f" (or {', '.join(plain['others'])}: same tensors)" if plain["others"] else ""
  return ", ".join([
    f"{plain['network']}{others}",
    plain["family"],
    f"{plain['classes']} classes",
    f"mean {norm[0]}, std {norm[1]}" if norm else "normalisation not known",
    plain["place"],
  ])  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Difference:
  """How a file's tensors differ from those that a network has, all by their names in the file.

  Attributes:
    network, family: what it was held against.
    missing, unexpected: names.
    shapes: {name: (in the file, expected)}.
  """

  network: str
  family: str
  missing: tuple[str, ...]
  unexpected: tuple[str, ...]
  shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]

  def __len__(self) -> int:
    return len(self.missing) + len(self.unexpected) + len(self.shapes)

  def __str__(self) -> str:
    parts = []
    for word, names in (("missing", self.missing), ("not expected", self.unexpected)):
      parts += [f"{len(names)} {word}: {_few(names)}"] if names else []
    wrong = [f"{shown(n)} is {_sizes(a)}, not {_sizes(b)}" for n, (a, b) in self.shapes.items()]
    parts += [f"{len(wrong)} of another shape: {_few(wrong, str)}"] if wrong else []
    return "; ".join(parts)


def _few(names: Any, show: Any = shown) -> str:
  names = [show(name) for name in names]
  more = f" and {len(names) - FEW} more" if len(names) > FEW else ""
  return ", ".join(names[:FEW]) + more


def _sizes(shape: tuple[int, ...]) -> str:
  return "x".join(map(str, shape)) or "scalar"
