"""Folders and zip files of images: one sub-folder per class, or images without labels.

`<root>/<split>/<class>/<file>`, or `<root>/<class>/<file>` for a data set that has no test part of
its own; a class's images may lie in further folders. A single folder around all of it is looked
into. `data/files.py` says what is passed over, `data/decode.py` what becomes of the pixels.
"""

import os
import pathlib
from typing import NamedTuple

import numpy as np

from rkd_jax.data import reading, zipped
from rkd_jax.data.catalogue import Catalogue
from rkd_jax.data.files import SUFFIXES, Directory, Store, Tree, shown
from rkd_jax.data.lazy import Images
from rkd_jax.data.reading import Options, Read
from rkd_jax.errors import UserError, nearest

# What the parts are called, in capitals or not; the first that is there counts, of test parts the
# first with class folders (ImageNet's images in `test` have no labels).
TRAINS = ("train", "training")
TESTS = ("test", "testing", "val", "validation", "valid")
KINDS = f"can read {', '.join(SUFFIXES)} (convert HEIC, TIFF, AVIF or GIF to one of these)"
LAYOUT = "<split>/<class>/<image> or <class>/<image>"

Arrays = tuple[Images, np.ndarray]  # images uint8[N, H, W, C], labels int32[N]


class Found(NamedTuple):
  """A data set: train, test or None, K class names (sorted, numbers as numbers), "file: reason" for
  every image that was left out (one line for all those beside the class folders, or in a test
  folder without them), and the real paths of the folders that hold the parts (in a zip file: below
  the file's)."""

  train: Arrays
  test: Arrays | None
  names: tuple[str, ...]
  skipped: tuple[str, ...]
  used: tuple[str, ...]


class Listed(NamedTuple):
  """The files of one split, by class and then by path, and their labels int32[N]."""

  store: Store
  labels: np.ndarray


def read(path: str, data_dir: str | None, options: Options = Options()) -> Found:  # noqa: B008
  """Reads a folder or a zip file of labelled images.

  Args:
    path: of the folder or zip file; one that is not absolute starts at `data_dir`.
    data_dir: None: where the program runs.
    options: size, memory, what to do with images that cannot be read.

  Raises:
    UserError: if there is no such folder or zip file, no class, no image, a class of one image, a
      class that only the test part has, or what `reading.read` raises.
  """
  with Catalogue(_tree(path, data_dir, LAYOUT)) as found:
    first, second, passed = _splits(found)
    roots = [first] if second is None else [first, second]
    names = _classes(found, first)
    lists = [_listed(found, root, names) for root in roots]
    loose = [*_loose(found, *roots), *passed]
  place, where = found.tree.where, _place(found, first)
  _check_counts(lists[0].labels, names, where)
  parts = reading.read([listed.store for listed in lists], options)
  arrays = [(one.images, _labels(one, listed)) for one, listed in zip(parts, lists, strict=True)]
  _check_counts(arrays[0][1], names, where)
  skipped = (*loose, *(line for one in parts for line in one.skipped))
  shown_names = tuple(shown(name) for name in names)
  used = tuple(os.path.realpath(os.path.join(place, os.fsdecode(root))) for root in roots)
  return Found(arrays[0], arrays[1] if len(arrays) > 1 else None, shown_names, skipped, used)


def unlabelled(
  path: str,
  data_dir: str | None,
  shape: tuple[int, int, int],
  options: Options = Options(),  # noqa: B008
) -> tuple[Images, tuple[str, ...]]:
  """Reads all images of a folder or a zip file, wherever in it they lie, by path.

  Args:
    path, data_dir: as for `read`.
    shape: (H, W, C) of the data set: they are resized, cropped and turned grey or RGB to fit it.
    options: memory (theirs alone), skip_corrupt.

  Returns:
    uint8[N, H, W, C], and "file: reason" for every image that was left out.

  Raises:
    UserError: if there is no such folder or zip file, no image, or one that cannot be read.
  """
  with Catalogue(_tree(path, data_dir, "images")) as found:
    store, _ = found.store([b""])
  if not len(store):
    raise UserError(f"{found.tree.where} holds no images; {KINDS}.")
  (one,) = reading.read([store], options, shape)
  return one.images, one.skipped


def located(path: str, data_dir: str | None) -> pathlib.Path:
  """Where a folder or zip file lies, as `read` takes its arguments."""
  return pathlib.Path(data_dir or ".").expanduser() / pathlib.Path(path).expanduser()


def _tree(path: str, data_dir: str | None, layout: str) -> Tree:
  root = located(path, data_dir)
  if path and root.is_dir():
    return Directory(str(root))
  if path and root.is_file():
    return zipped.Zip(str(root))
  raise UserError(
    f"'folder:{path}' is no folder and no zip file: looked at {root.absolute()}. Write 'folder:' "
    f"and the path of one that holds {layout}."
  )


def _place(found: Catalogue, path: bytes) -> str:
  return f"{found.tree.where}/{shown(path)}" if path else found.tree.where


def _splits(found: Catalogue) -> tuple[bytes, bytes | None, list[str]]:
  """(the folder of training classes, that of test classes or None, a line for each folder that was
  passed over for the latter)."""
  root = _unwrapped(found)
  there = found.folders(root)
  called = {_called(name): name for name in there}
  train = next((called[name] for name in TRAINS if name in called), None)
  # A class may be called "train" too; then it holds images, and there are other classes.
  inside = train is not None and found.folders(_join(root, train))
  if not there or not (called.keys() <= {*TRAINS, *TESTS} or inside):
    return root, None, []
  if train is None:
    names = ", ".join(map(shown, there))
    raise UserError(f"{_place(found, root)} has {names}, but no folder 'train'.")
  tests = [_join(root, called[name]) for name in TESTS if name in called]
  return _join(root, train), *_test_part(found, tests)


def _test_part(found: Catalogue, tests: list[bytes]) -> tuple[bytes | None, list[str]]:
  """The last two of `_splits`."""
  if not tests:
    return None, []
  test = next((path for path in tests if found.folders(path)), tests[0])
  why = f"has no class folders, so {shown(test)} is the test part"
  return test, [f"{shown(path)}: {why}" for path in tests[: tests.index(test)]]


def _called(name: bytes) -> str:
  return name.decode(errors="replace").casefold()


def _unwrapped(found: Catalogue) -> bytes:
  """The folder that holds splits or classes: archives often have one folder around everything."""
  root = b""
  while True:
    there = found.folders(root)
    inside = _join(root, there[0]) if len(there) == 1 else b""
    if not inside or not found.folders(inside) or found.has_files(root) or found.has_files(inside):
      return root
    if _called(there[0]) in (*TRAINS, *TESTS):
      return root
    root = inside


def _join(root: bytes, name: bytes) -> bytes:
  return root + b"/" + name if root else name


def _classes(found: Catalogue, root: bytes) -> list[bytes]:
  """A split's class folders; "10" comes after "9", and both before "a"."""

  def place(name: bytes) -> tuple[bool, int, bytes, bytes]:
    digits = name.lstrip(b"0") if name.isdigit() else b""  # Python's numbers end at 4,300 digits
    return not name.isdigit(), len(digits), digits, name

  names = sorted(found.folders(root), key=place)
  if not names:
    raise UserError(
      f"{_place(found, root)} has no class folders; images lie in <class>/<file>. Images without "
      "labels are given as --config.data.unlabelled=<folder>."
    )
  return names


def _loose(found: Catalogue, *roots: bytes) -> list[str]:
  """A line for every split with images that lie in no class folder."""
  lines = []
  for root in roots:
    count, first = found.files(root)
    if count:
      more = f" and {count - 1:,} more" if count > 1 else ""
      lines.append(f"{shown(first)}{more}: beside the class folders, so of no class")
  return lines


def _listed(found: Catalogue, root: bytes, names: list[bytes]) -> Listed:
  own = _classes(found, root)
  known = {name: label for label, name in enumerate(names)}
  for name in own:
    if name not in known:
      raise UserError(
        f"The class {shown(name)!r} of {_place(found, root)} is none of the training part's. "
        f"{nearest(shown(name), map(shown, names))}"
      )
  store, place = found.store([_join(root, name) for name in own])
  empty = np.flatnonzero(np.bincount(place, minlength=len(own)) == 0)
  if empty.size:
    where = _place(found, _join(root, own[empty[0]]))
    raise UserError(f"{where} holds no images; {KINDS}. Put some there, or remove it.")
  return Listed(store, np.array([known[name] for name in own], np.int32)[place])


def _labels(one: Read, listed: Listed) -> np.ndarray:
  return np.asarray(listed.labels[one.kept])


def _check_counts(labels: np.ndarray, names: list[bytes], where: str) -> None:
  """Raises a `UserError` for classes of the training part with fewer than two images."""
  counts = np.bincount(labels, minlength=len(names))
  few = np.flatnonzero(counts < 2)
  if few.size:
    some = ", ".join(f"{shown(names[k])!r} ({counts[k]})" for k in few[:10].tolist())
    more = f" and {few.size - 10:,} more" if few.size > 10 else ""
    raise UserError(
      f"{where} has classes with fewer than two images that can be read: {some}{more}. Training, "
      "the hold-out and, where the data set has none, the test part each need some of every class: "
      "add images, or remove the class."
    )
