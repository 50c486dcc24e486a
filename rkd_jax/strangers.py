"""A teacher for this data that was made elsewhere: which network, which pixels, which classes."""

import dataclasses
import functools
import os
import pathlib

from rkd_jax import given, interop
from rkd_jax.data.sources import Dataset
from rkd_jax.errors import UserError
from rkd_jax.given import Given, Normalisation
from rkd_jax.interop.families.base import USUAL
from rkd_jax.phases import Config


def find(wanted: Config, dataset: Dataset) -> Given:
  """The teacher that a config's section `teacher` names a checkpoint of.

  Raises:
    UserError: it cannot be read or is none that is known; it is another than `sha256` says; what
      normalises its pixels, or which of its classes are the data's, is not known; it does not fit
      the data.
  """
  path = pathlib.Path(wanted.checkpoint).expanduser()
  if path.is_file() or (
    path.is_dir() and not (path / "done.json").exists() and any(path.iterdir())
  ):
    found = _file(wanted, dataset)
  else:
    found = given.read(wanted.checkpoint, wanted.sha256)
    if found.network != wanted.network:
      raise UserError(
        f"The teacher in {found.path} is a {found.network}, but config.teacher.network is "
        f"{wanted.network!r}. Say --config.teacher.network={found.network}"
      )
  found = dataclasses.replace(found, classes=classes(found, wanted.classes, dataset))
  if not wanted.mean:
    return found
  norm = tuple(map(float, wanted.mean)), tuple(map(float, wanted.std))
  return dataclasses.replace(found, normalisation=norm, source="as you say")


def _file(wanted: Config, dataset: Dataset) -> Given:
  path, stat = os.fspath(wanted.checkpoint), os.stat(os.path.expanduser(wanted.checkpoint))
  side, _, channels = dataset.image_shape
  changed = stat.st_mtime_ns, stat.st_size
  found = _read(path, wanted.sha256, wanted.network, side, channels, changed)
  _check_images(found, dataset)
  if not wanted.mean and not found.normalisation[0]:
    raise UserError(unknown_normalisation(found))
  return found


@functools.lru_cache(maxsize=8)
def _read(
  path: str, sha256: str, network: str, side: int, channels: int, changed: tuple[int, int]
) -> Given:
  """`changed`: when, and the size: a file that was written anew is read anew."""
  del changed
  checkpoint = interop.read(path, sha256=sha256)
  plain = interop.convert(checkpoint, network, side, channels).plain
  digest, name = checkpoint.sha256, plain["network"]

  def load() -> object:
    return interop.convert(interop.read(path, sha256=digest), name, side, channels).variables

  norm: Normalisation = plain["normalisation"] or ((), ())
  return Given(
    path, name, norm, digest, "file", plain["classes"], (), f"that of {plain['family']}",
    {"kind": checkpoint.kind, **plain}, load,
  )  # fmt: skip


def _check_images(found: Given, dataset: Dataset) -> None:
  height, width, channels = dataset.image_shape
  side = found.about["side"]
  if found.about["channels"] != channels:
    raise UserError(
      f"The teacher in {found.path} sees images of {found.about['channels']} channels; "
      f"{dataset.name!r} has {channels}."
    )
  if side and (height, width) != (side, side):
    raise UserError(
      f"The teacher in {found.path} sees images of {side} x {side} pixels; {dataset.name!r} has "
      f"{height} x {width}. Say --config.data.size={side}."
    )


def unknown_normalisation(found: Given) -> str:
  """Asks for it, and shows what is usual."""
  usual = "\n".join(f"  {name}: {flags(*norm)}" for name, norm in USUAL.items())
  return (
    f"The teacher in {found.path} ({found.network}, {found.about['family']}, {found.count} "
    "classes) does not say how its pixels were normalised, and for this family it is not known. "
    "Look where it was published, and say so. Usual are:\n"
    f"{usual}\nThe accuracy on the clean hold-out, which is shown first, tells if it was right."
  )


def flags(mean: tuple[float, ...], std: tuple[float, ...]) -> str:
  """A normalisation as it is said on the command line."""
  values = [",".join(f"{value:g}" for value in part) for part in (mean, std)]
  return f"--config.teacher.mean={values[0]} --config.teacher.std={values[1]}"


def classes(found: Given, wanted: tuple[int, ...], dataset: Dataset) -> tuple[int, ...]:
  """The class map: `wanted`, if it can be.

  Raises:
    UserError: the numbers of classes differ and there is no map, or it is none.
  """
  say = "as --config.teacher.classes=3,0,... : the first number is the index of your class 0 there"
  count, mine = found.count, dataset.classes
  if not wanted:
    if count is not None and count != mine:
      raise UserError(
        f"The teacher in {found.path} knows {count} classes; {dataset.name!r} has {mine}. Say "
        f"which of its classes each of yours is, {say}."
      )
    return ()
  if len(wanted) != mine or len(set(wanted)) != mine:
    raise UserError(
      f"config.teacher.classes has {len(wanted)} indices, {len(set(wanted))} of them distinct, but "
      f"{dataset.name!r} has {mine} classes: give one for each, {say}."
    )
  if not all(isinstance(k, int) and 0 <= k < (count or 10**6) for k in wanted):
    raise UserError(
      f"config.teacher.classes is {wanted}: the teacher in {found.path} has the classes 0 to "
      f"{(count or 10**6) - 1}."
    )
  return tuple(wanted) if tuple(wanted) != tuple(range(count or 0)) else ()
