"""Where images come from: one function per data set, found by name.

A source `f(argument, data_dir) -> (train, test or None, class names)` reads everything into memory
as uint8. To add one, write the function and name it in `SOURCES`; splitting, statistics and the
fingerprint are done here for all. A data set is written "digits", "tfds:cifar10", "npz:shapes.npz"
or "folder:data/signs"; a folder alone may stay on disk, and is read by the options.
"""

import dataclasses
import difflib
import hashlib
import math
import os
import pathlib
from typing import Any

import numpy as np

from rkd_jax.data import decode, folder, npz, seeds, splits
from rkd_jax.data.lazy import Images, Lazy
from rkd_jax.data.reading import Options
from rkd_jax.errors import UserError

# Published mean and standard deviation per channel: what other people's networks were trained with.
PUBLISHED = {"tfds:cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))}
CHUNK = 2**26  # pixels summed at a time: their squares need twice their memory
SAMPLE = 10_000  # images that statistics are made from, where they are not in memory


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
  """Images uint8[N, H, W, C], perhaps on disk, and their labels int32[N]."""

  images: Images
  labels: np.ndarray

  def __len__(self) -> int:
    return len(self.labels)

  def take(self, indices: np.ndarray) -> "Split":
    """The examples at `indices`, in that order."""
    return Split(self.images.take(indices, axis=0), self.labels[indices])


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
  """A data set, cut into parts that share no example.

  Attributes:
    name: as it was asked for.
    train: what teachers and students learn from.
    holdout: what may choose among settings; class-balanced.
    test: what is reported, and chooses nothing.
    class_names: K names, by label.
    mean, std: per channel, of the training pixels in [0, 1] (published constants where there are).
    fingerprint: sha256 in hex over names, shapes and bytes of all parts, the unlabelled one too; a
      folder's path is not part of it. Of images on disk it is `Lazy.digest`, so the same files in
      memory have another fingerprint.
    unlabelled: images without labels beside the others, of the same shape, or None.
    skipped: "file: reason" of every image that was left out, if that was asked for.
  """

  name: str
  train: Split
  holdout: Split
  test: Split
  class_names: tuple[str, ...]
  mean: tuple[float, ...]
  std: tuple[float, ...]
  fingerprint: str
  unlabelled: Images | None = None
  skipped: tuple[str, ...] = ()

  @property
  def classes(self) -> int:
    return len(self.class_names)

  @property
  def pool_size(self) -> int:
    """How many images a student may see: for training, and without labels."""
    return len(self.train) + (0 if self.unlabelled is None else len(self.unlabelled))

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """(H, W, C)."""
    height, width, channels = self.train.images.shape[1:]
    return height, width, channels


def load(
  name: str,
  data_dir: str | None,
  split_seed: int,
  holdout: float,
  test: float,
  train: float = 0,
  options: Options = Options(),  # noqa: B008
) -> Dataset:
  """Reads a data set and cuts it into train, hold-out and test.

  Args:
    name: "digits", "tfds:" and a name as TFDS writes it ("tfds:cifar10", "tfds:cifar10:3.0.2"),
      "folder:" and the path of a folder or zip file of images, or "npz:" and a file of arrays.
    data_dir: where prepared data lies, and relative paths start; None: where TFDS puts it by
      default, and where the program runs.
    split_seed: draws the hold-out (and the test part, where the data set has none of its own).
    holdout: how much of the training part is held out, class-balanced: below 1 a fraction, from 1
      on a count.
    test: the same for the test part of a data set that has none of its own; others keep theirs.
    train: how much of what is then left to train on is used, class-balanced; 0: all.
    options: how image files are read, and where unlabelled ones lie. `memory` and `skip_corrupt`
      concern folders and zip files alone.

  Raises:
    UserError: if the data set is unknown, not prepared, or not of equally large labelled images,
      or if a part would be empty.
  """
  kind, _, argument = name.partition(":")
  if kind != "folder" and kind not in SOURCES:
    raise _unknown(name, data_dir)
  whole, official, class_names, skipped, places = _read(kind, argument, data_dir, options)
  classes = len(class_names)
  if classes < 2:
    raise UserError(
      f"{name!r} has one class, {', '.join(class_names)!r}; there must be two to tell apart."
    )
  parts = _parts(whole, official, classes, split_seed, holdout, test, train)
  _check(name, parts, classes)
  used = parts["train"]
  mean, std = PUBLISHED.get(":".join(name.split(":")[:2])) or statistics(used.images)
  _check_apart(name, places, options.unlabelled, data_dir)
  images, left_out = _unlabelled(options, data_dir, used)
  # A folder may be moved: its images and classes say what it is.
  called = kind if kind in PLACES else name
  return Dataset(
    name=name,
    **parts,
    class_names=class_names,
    mean=mean,
    std=std,
    fingerprint=_fingerprint(called, parts, class_names, images, options.size),
    unlabelled=images,
    skipped=skipped + left_out,
  )


def _read(
  kind: str, argument: str, data_dir: str | None, options: Options
) -> tuple[Split, Split | None, tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
  """(train, test or None, class names, images left out, folders that the images lie in)."""
  if kind == "folder":
    found = folder.read(argument, data_dir, options)
    official = Split(*found.test) if found.test else None
    return Split(*found.train), official, found.names, found.skipped, found.used
  train, test, names = SOURCES[kind](argument, data_dir)
  return _fitted(train, options.size), test and _fitted(test, options.size), names, (), ()


def _fitted(split: Split, size: int) -> Split:
  """The split with its images size x size, as a folder's would be; 0: as they are."""
  if not size or split.images.shape[1:3] == (size, size):
    return split
  images = np.empty((len(split), size, size, split.images.shape[-1]), np.uint8)
  for row in range(len(split)):
    images[row] = decode.fit(split.images[row], size)
  return Split(images, split.labels)


def _unlabelled(
  options: Options, data_dir: str | None, train: Split
) -> tuple[Images | None, tuple[str, ...]]:
  if not options.unlabelled:
    return None, ()
  height, width, channels = train.images.shape[1:]
  path = options.unlabelled.removeprefix("folder:")
  return folder.unlabelled(path, data_dir, (height, width, channels), options)


def _check_apart(name: str, places: tuple[str, ...], unlabelled: str, data_dir: str | None) -> None:
  """Raises a `UserError` where the student would learn from what it is tested on: the folder of
  unlabelled images lies in one of those that hold the data set's parts, or around it."""
  if not unlabelled:
    return
  more = os.path.realpath(folder.located(unlabelled.removeprefix("folder:"), data_dir))
  if any(os.path.commonpath([used, more]) in (used, more) for used in places):
    raise UserError(
      f"config.data.unlabelled is {unlabelled!r}, which holds images of the data set {name!r}: the "
      "student would learn from what it is tested on, or see images twice. Name a folder of other "
      "images."
    )


def _parts(
  whole: Split, official: Split | None, classes: int, split_seed: int,
  holdout: float, test: float, train: float,
) -> dict[str, Split]:  # fmt: skip
  """{"train", "holdout", "test"}, each example in one of them at most."""
  if official is None:
    size = splits.count("The test part (config.data.test)", test, len(whole))
    whole, official = _cut(whole, size, classes, seeds.fold(split_seed, "test"))
  size = splits.count("The hold-out (config.data.holdout)", holdout, len(whole))
  used, held = _cut(whole, size, classes, seeds.fold(split_seed, "holdout"))
  if train:
    size = splits.count("The training part (config.data.train)", train, len(used))
    used = _cut(used, size, classes, seeds.fold(split_seed, "train"))[1]
  return {"train": used, "holdout": held, "test": official}


def _cut(split: Split, size: int, classes: int, seed: int) -> tuple[Split, Split]:
  """(the rest, `size` examples of it), class-balanced."""
  chosen = splits.balanced(split.labels, size, classes, seed)
  rest = np.setdiff1d(np.arange(len(split)), chosen)
  return split.take(rest), split.take(chosen)


def _check(name: str, parts: dict[str, Split], classes: int) -> None:
  for part, split in parts.items():
    if not len(split):
      sizes = ", ".join(f"{len(some):,} {which}" for which, some in parts.items())
      raise UserError(
        f"The {part} part of {name!r} is empty ({sizes}); each must get some: change "
        "config.data.test, .holdout or .train."
      )
    if split.labels.min() < 0 or split.labels.max() >= classes:
      raise UserError(f"The {part} part of {name!r} has labels outside 0..{classes - 1}.")
    if split.images.shape[1:] != parts["train"].images.shape[1:]:
      raise UserError(
        f"{name!r}: {part} images are {split.images.shape[1:]} (height, width, channels), but "
        f"training images are {parts['train'].images.shape[1:]}."
      )


def statistics(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """Mean and standard deviation per channel of uint8[N, H, W, C], as pixels in [0, 1].

  Of images that are on disk, 10,000 evenly spaced ones are taken; of others all. A constant channel
  gets the deviation of one grey level, so that normalising stays finite.
  """
  if isinstance(images, Lazy):
    some = min(SAMPLE, len(images))
    images = images.take(np.arange(some) * len(images) // some)
  total = np.zeros(images.shape[-1])
  squares = np.zeros(images.shape[-1])
  step = max(1, CHUNK // math.prod(images.shape[1:]))
  for start in range(0, len(images), step):
    pixels = images[start : start + step].reshape(-1, images.shape[-1])
    total += pixels.sum(axis=0, dtype=np.int64)
    squares += np.square(pixels, dtype=np.uint16).sum(axis=0, dtype=np.int64)
  number = math.prod(images.shape[:-1])
  mean = total / number
  std = np.sqrt(np.maximum(squares / number - mean**2, 1.0))
  return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


def _fingerprint(
  name: str,
  parts: dict[str, Split],
  class_names: tuple[str, ...],
  unlabelled: Images | None = None,
  size: int = 0,
) -> str:
  # Random crops of images on disk are of the originals: the size is not all in their shape.
  digest = hashlib.sha256(repr((name, class_names, *([size] if size else []))).encode())
  for part, split in parts.items():
    _add_images(digest, part, split.images)
    digest.update(split.labels.astype("<i4").data)
  if unlabelled is not None:
    _add_images(digest, "unlabelled", unlabelled)
  return digest.hexdigest()


def _add_images(digest: Any, part: str, images: Images) -> None:
  digest.update(repr((part, images.shape)).encode())
  lazily = isinstance(images, Lazy)
  digest.update(images.digest() if lazily else np.ascontiguousarray(images).data)


def digits(argument: str, data_dir: str | None) -> tuple[Split, None, tuple[str, ...]]:
  """scikit-learn's 1,797 digits (Alpaydin and Kaynak 1998), 8x8 shown as 16x16x1, no files."""
  if argument:
    raise UserError(f"The data set 'digits' takes nothing after its name, but got {argument!r}.")
  from sklearn.datasets import load_digits

  grey, labels = load_digits(return_X_y=True)  # float[1797, 64] in 0..16
  images = np.round(np.reshape(grey, (-1, 8, 8, 1)) * 255 / 16).astype(np.uint8)
  images = images.repeat(2, axis=1).repeat(2, axis=2)
  return Split(images, np.asarray(labels, np.int32)), None, tuple(map(str, range(10)))


def tfds_source(argument: str, data_dir: str | None) -> tuple[Split, Split | None, tuple[str, ...]]:
  """A prepared TFDS data set, read without TensorFlow; its test part is "test", else "validation".

  It must lie under `data_dir` in a format with random access (array_record). Nothing is downloaded.
  """
  from rkd_jax.data import tfds

  builder = tfds.prepared(argument, data_dir)
  test = next((s for s in ("test", "validation") if s in builder.info.splits), None)
  official = Split(*tfds.read(builder, test)) if test else None
  return Split(*tfds.read(builder, "train")), official, tfds.class_names(builder)


def npz_source(argument: str, data_dir: str | None) -> tuple[Split, Split | None, tuple[str, ...]]:
  """Arrays of a NumPy file: images and labels, or x_train, y_train, x_test and y_test."""
  train, test, class_names = npz.read(argument, data_dir)
  return Split(*train), Split(*test) if test else None, class_names


def _unknown(name: str, data_dir: str | None) -> UserError:
  from rkd_jax.data import tfds

  known = ["digits", *(f"tfds:{n}" for n in tfds.names())]
  close = [
    n for guess in (name, f"tfds:{name}") for n in difflib.get_close_matches(guess, known, 1)
  ]
  place = pathlib.Path(data_dir or ".") / name
  if name and place.exists():
    close = [f"npz:{name}" if place.suffix == ".npz" else f"folder:{name}"]
  hint = f"Did you mean {close[0]!r}? " if close and name else ""
  return UserError(
    f"No data set is called {name!r}. {hint}Write 'digits', 'tfds:' and the name of a TFDS "
    "image data set, such as 'tfds:cifar10', 'npz:' and a file of arrays, or 'folder:' and the "
    "path of a folder of images."
  )


SOURCES = {"digits": digits, "tfds": tfds_source, "npz": npz_source}
PLACES = ("folder", "npz")  # whose name is a path
