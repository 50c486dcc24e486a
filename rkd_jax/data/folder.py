"""Reading a folder of images into memory: one sub-folder per class.

`<root>/<split>/<class>/<file>`, or `<root>/<class>/<file>` for a data set that has no test part of
its own. Files of other kinds, and what begins with a dot, are passed over. Pixels are taken as they
are stored: neither resized nor turned by EXIF.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from rkd_jax.errors import UserError, nearest

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP"}
TESTS = ("test", "val", "validation", "valid")  # what a test part is called; the first there counts
GREY = ("1", "L", "LA")  # Pillow's modes that hold no colour
DEEP = ("I", "F")  # begin its modes of more than 8 bits, which it would clip

Arrays = tuple[np.ndarray, np.ndarray]  # images uint8[N, H, W, C], labels int32[N]


@dataclasses.dataclass(frozen=True)
class Listed:
  """The files of one split, by class and then by name, and their labels int32[N]."""

  files: list[pathlib.Path]
  labels: np.ndarray


def read(path: str, data_dir: str | None) -> tuple[Arrays, Arrays | None, tuple[str, ...]]:
  """Decodes a folder of images.

  Args:
    path: the folder; one that is not absolute starts at `data_dir`.
    data_dir: None: where the program runs.

  Returns:
    (train, test or None, K class names: sorted, numbers as numbers). Images are RGB, or have one
    channel where none of them has colour.

  Raises:
    UserError: if there is no such folder, no class, no image, a class that only the test part has,
      an image that cannot be read, or images of two sizes.
  """
  root = pathlib.Path(data_dir or ".").expanduser() / pathlib.Path(path).expanduser()
  if not path or not root.is_dir():
    raise UserError(
      f"'folder:{path}' is no folder: looked at {root.absolute()}. Write 'folder:' and the path of "
      "one that holds <split>/<class>/<image> or <class>/<image>."
    )
  first, second = _splits(root)
  names = tuple(folder.name for folder in _classes(first))
  train = _listed(first, names)
  test = _listed(second, names) if second else None
  shape = _shape(train.files + (test.files if test else []))
  return _decode(train, shape), _decode(test, shape) if test else None, names


def _splits(root: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path | None]:
  """(the folder of training classes, that of test classes or None)."""
  there = {folder.name for folder in _folders(root)}
  train = root / "train"
  # A class may be called "train" too; then it holds images, and there are other classes.
  if not there or not (there <= {"train", *TESTS} or (train.is_dir() and _folders(train))):
    return root, None
  if "train" not in there:
    raise UserError(f"{root} has {', '.join(sorted(there))}, but no folder 'train'.")
  return train, next((root / name for name in TESTS if name in there), None)


def _folders(root: pathlib.Path) -> list[pathlib.Path]:
  return [f for f in root.iterdir() if f.is_dir() and not f.name.startswith(".")]


def _classes(root: pathlib.Path) -> list[pathlib.Path]:
  """A split's class folders; "10" comes after "9", and both before "a"."""

  def place(folder: pathlib.Path) -> tuple[bool, int, str]:
    number = folder.name.isdecimal()
    return not number, int(folder.name) if number else 0, folder.name

  found = sorted(_folders(root), key=place)
  if not found:
    raise UserError(f"{root} has no class folders; images lie in <class>/<file>.")
  return found


def _listed(root: pathlib.Path, names: tuple[str, ...]) -> Listed:
  files, labels = [], []
  for folder in _classes(root):
    if folder.name not in names:
      raise UserError(
        f"The class {folder.name!r} of {root} is none of the training part's. "
        f"{nearest(folder.name, names)}"
      )
    own = sorted(f for f in folder.iterdir() if f.suffix.lower() in FORMATS and f.name[0] != ".")
    if not own:
      raise UserError(f"{folder} holds no images; can read {', '.join(FORMATS)}.")
    files += own
    labels += [names.index(folder.name)] * len(own)
  return Listed(files, np.array(labels, np.int32))


def _shape(files: list[pathlib.Path]) -> tuple[int, int, int]:
  """(H, W, C) of all images, from their headers; C is 1 if none has colour, else 3."""
  size, grey = None, True
  for file in files:
    with _opened(file) as image:
      size = size or image.size
      grey = grey and image.mode in GREY
      if image.size != size:
        raise UserError(
          f"Images must have one size, but {files[0]} is {size[0]}x{size[1]} (width x height) and "
          f"{file} is {image.size[0]}x{image.size[1]}. Resize them first."
        )
      if image.mode.startswith(DEEP):
        raise UserError(f"{file} has more than 8 bits a pixel. Convert it first.")
  assert size is not None  # no class is empty
  return size[1], size[0], 1 if grey else 3


@contextlib.contextmanager
def _opened(file: pathlib.Path) -> Iterator[Image.Image]:
  try:
    with Image.open(file, formats=sorted(set(FORMATS.values()))) as image:
      yield image
  except UserError:
    raise
  except Exception as error:  # Pillow has no one class for what a damaged file may raise
    raise UserError(f"Cannot read the image {file}: {error}") from error


def _decode(listed: Listed, shape: tuple[int, int, int]) -> Arrays:
  images = np.empty((len(listed.files), *shape), np.uint8)
  for row, file in enumerate(listed.files):
    with _opened(file) as image:
      images[row] = np.asarray(image.convert("L" if shape[-1] == 1 else "RGB")).reshape(shape)
  return images, listed.labels
