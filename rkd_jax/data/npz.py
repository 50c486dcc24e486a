"""Arrays of a NumPy `.npz` file as a data set. Nothing in it is unpickled.

Names: `images, labels`, or `x_train, y_train` or `train_images, train_labels`, and for a test part
of its own `x_test, y_test` or `test_images, test_labels`; `class_names` if there are any. Images
are uint8[N, H, W] or [N, H, W, C] with C 1 or 3, labels whole numbers [N] or [N, 1] from 0 on.
"""

import collections
import pathlib
import zipfile
import zlib
from typing import IO

import numpy as np
from numpy.lib import format as npy

from rkd_jax.errors import UserError

TRAIN = (("x_train", "y_train"), ("train_images", "train_labels"), ("images", "labels"))
TEST = (("x_test", "y_test"), ("test_images", "test_labels"))
NAMES = "class_names"
# What unpacks to more than this, and to this many times its file, is no data set.
MAX_BYTES, MAX_RATIO = 256 * 2**20, 100

Arrays = tuple[np.ndarray, np.ndarray]  # images uint8[N, H, W, C], labels int32[N]


def read(path: str, data_dir: str | None) -> tuple[Arrays, Arrays | None, tuple[str, ...]]:
  """Reads a file into memory.

  Args:
    path: of the file; one that is not absolute starts at `data_dir`.
    data_dir: None: where the program runs.

  Returns:
    (train, test or None, K class names: those in the file, else "0", "1", ...).

  Raises:
    UserError: if it is no such file, damaged, or lacks arrays; if they are of another type or
      shape, differ in length, hold objects, or labels that are no class.
  """
  file = pathlib.Path(data_dir or ".").expanduser() / pathlib.Path(path).expanduser()
  if not path or not file.is_file():
    raise UserError(
      f"'npz:{path}' is no file: looked at {file.absolute()}. Write 'npz:' and the path of one "
      "that numpy.savez made, with images and labels."
    )
  arrays = _arrays(file)
  train = _part(file, arrays, TRAIN)
  test = _part(file, arrays, TEST) if any(set(pair) & set(arrays) for pair in TEST) else None
  if test and test[0].shape[1:] != train[0].shape[1:]:
    raise UserError(
      f"{file}: training images are {train[0].shape[1:]} (height, width, channels), but test "
      f"images {test[0].shape[1:]}. Resize them to one size."
    )
  return train, test, _class_names(file, arrays, train[1], test[1] if test else None)


def _arrays(file: pathlib.Path) -> dict[str, np.ndarray]:
  """The arrays that have a meaning here; others are not read."""
  try:
    with open(file, "rb") as raw:
      if raw.read(6) == b"\x93NUMPY":
        raise UserError(f"{file} is a single array (.npy). Save images and labels: numpy.savez.")
    with zipfile.ZipFile(file) as archive:
      entries = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
      if len(entries) < len(archive.infolist()):
        raise UserError(f"{file} holds an array twice. Save it anew: numpy.savez.")
      known = {name for pair in (*TRAIN, *TEST) for name in pair} | {NAMES}
      return {n: _array(file, archive, entries[n]) for n in sorted(known & set(entries))}
  except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
    raise UserError(f"{file} is no whole .npz file: {error}. Save or copy it again.") from error
  except (OSError, RuntimeError) as error:  # the latter: a password
    raise UserError(f"Cannot read {file}: {error}. Check that it may be read.") from error


def _array(file: pathlib.Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
  size = entry.file_size
  if size > MAX_BYTES and size > MAX_RATIO * file.stat().st_size:
    raise UserError(
      f"{file}: {entry.filename!r} unpacks to {size >> 20:,} MiB, over {MAX_RATIO} times the "
      "file's size, as a zip bomb does. If you trust it, save it with numpy.savez, uncompressed."
    )
  try:
    with archive.open(entry) as stream:
      shape, dtype, start = _header(stream)
      if dtype.hasobject:
        raise UserError(
          f"{file}: {entry.filename!r} holds Python objects, which could run code; they are not "
          "read. Save plain arrays: uint8 images, whole numbers as labels, names as str."
        )
      if start + int(np.prod(shape, dtype=object)) * dtype.itemsize != size:
        raise UserError(f"{file}: {entry.filename!r} is not as long as it says. Save it again.")
    with archive.open(entry) as stream:
      return npy.read_array(stream, allow_pickle=False)
  except ValueError as error:
    raise UserError(f"{file}: {entry.filename!r} is no array: {error}. Save it again.") from error


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype, int]:
  """(shape, type, bytes before the numbers), before anything is allocated for them."""
  version = npy.read_magic(stream)
  if version not in ((1, 0), (2, 0)):
    raise ValueError(f"version {version} of the format")
  read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
  shape, _, dtype = read_header(stream)
  return shape, dtype, stream.tell()


def _part(
  file: pathlib.Path, arrays: dict[str, np.ndarray], pairs: tuple[tuple[str, str], ...]
) -> Arrays:
  """The first pair that is there, checked."""
  for pair in pairs:
    if set(pair) & set(arrays):
      break
  else:
    pair = pairs[-1]
  missing = [name for name in pair if name not in arrays]
  if missing:
    raise UserError(
      f"{file} has no array {missing[0]!r}; it has {', '.join(arrays) or 'none that is known'}. "
      "Save 'images' and 'labels', or 'x_train', 'y_train', 'x_test' and 'y_test'."
    )
  images, labels = _images(f"{file}: {pair[0]!r}", arrays[pair[0]]), arrays[pair[1]]
  labels = _labels(f"{file}: {pair[1]!r}", labels)
  if len(images) != len(labels) or not len(images):
    raise UserError(
      f"{file}: {len(images)} {pair[0]!r}, but {len(labels)} {pair[1]!r}; there must be as many of "
      "both, and at least one."
    )
  return images, labels


def _images(what: str, images: np.ndarray) -> np.ndarray:
  """uint8[N, H, W, C]."""
  if images.dtype != np.uint8:
    nan = images.dtype.kind in "fc" and bool(np.isnan(images).any())
    raise UserError(
      f"{what} is {images.dtype}{', with NaN' if nan else ''}; it must be uint8, 0 to 255. "
      + ("Mend the NaN first. " if nan else "")
      + "Of pixels in [0, 1]: np.round(images * 255).astype(np.uint8)."
    )
  if images.ndim == 3:
    images = images[..., None]
  if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape[1:3]:
    first = images.ndim == 4 and images.shape[1] in (1, 3)
    raise UserError(
      f"{what} has the shape {images.shape}; it must be [N, H, W] or [N, H, W, C] with 1 or 3 "
      "channels." + (" Put the channels last: images.transpose(0, 2, 3, 1)." if first else "")
    )
  return np.ascontiguousarray(images)


def _labels(what: str, labels: np.ndarray) -> np.ndarray:
  """int32[N], not yet compared with the classes."""
  if labels.dtype.kind not in "iu":
    nan = labels.dtype.kind == "f" and bool(np.isnan(labels).any())
    raise UserError(
      f"{what} is {labels.dtype}{', with NaN' if nan else ''}; labels are whole numbers from 0 on: "
      "labels.astype(np.int64). Names of classes go into 'class_names'."
    )
  if labels.ndim == 2 and labels.shape[1] == 1:
    labels = labels[:, 0]
  if labels.ndim != 1:
    raise UserError(
      f"{what} has the shape {labels.shape}; it must be [N]. Of one-hot rows: labels.argmax(1)."
    )
  if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < 2**31 - 1:
    raise UserError(f"{what} has labels from {labels.min()} to {labels.max()}; they begin at 0.")
  return labels.astype(np.int32)


def _given(file: pathlib.Path, names: np.ndarray) -> tuple[str, ...]:
  """The array of class names as str, each once."""
  try:
    found = [name.decode() if isinstance(name, bytes) else name for name in names.tolist()]
  except ValueError as error:
    raise UserError(f"{file}: 'class_names' is no text: {error}. Save str in UTF-8.") from error
  for name, count in collections.Counter(found).most_common(1):
    if count > 1:
      raise UserError(f"{file}: 'class_names' has {name!r} twice. Give each class its own name.")
  return tuple(found)


def _class_names(
  file: pathlib.Path, arrays: dict[str, np.ndarray], train: np.ndarray, test: np.ndarray | None
) -> tuple[str, ...]:
  given = arrays.get(NAMES)
  if given is not None and (given.ndim != 1 or given.dtype.kind not in "US"):
    raise UserError(f"{file}: 'class_names' is {given.dtype}{given.shape}; it must be str [K].")
  seen = np.unique(train)
  if given is None and len(seen) <= seen[-1]:
    missing = np.setdiff1d(np.arange(min(int(seen[-1]), len(seen) + 1)), seen)[0]
    raise UserError(
      f"{file}: labels run to {seen[-1]}, but no training image has label {missing}. Count classes "
      "from 0 without gaps, or give 'class_names'."
    )
  names = tuple(map(str, range(int(seen[-1]) + 1))) if given is None else _given(file, given)
  whose = "of training" if given is None else "of 'class_names'"
  for part, labels in (("training", train), ("test", test)):
    if labels is not None and labels.max() >= len(names):
      raise UserError(
        f"{file}: the {part} labels run to {labels.max()}, but there are {len(names)} classes "
        f"({whose}), 0 to {len(names) - 1}. Label both parts alike."
      )
  return names
