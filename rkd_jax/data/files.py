"""Many image files as a list that is not in memory: folders and zip files behind one interface.

A tree (`Directory`, `zipped.Zip`) walks over its images and reads one when asked. A `Store` is a
sequence of them: one blob of names and columns of numbers in temporary files that are mapped into
memory, so millions of files cost no Python object each.

What counts as an image is told by its suffix (`SUFFIXES`). Files of other kinds, what begins with a
dot, and `__MACOSX` are passed over. A symbolic link to an image within the folder is read as that
image; one to a folder within it is passed over, since its images are found where they lie (so loops
do no harm). A link that leads out of the folder is refused: what lies there was not given.
"""

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from typing import IO, Any, Protocol

import numpy as np

from rkd_jax.data.headers import ImageError
from rkd_jax.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_SUFFIXES = tuple(suffix.encode() for suffix in SUFFIXES)
MAX_BYTES = 512 * 2**20  # of one file: more than the largest image that is decoded needs

Marks = tuple[int, ...]  # what a tree wants to know of a file, the size in bytes first


class Tree(Protocol):
  """Attributes:
  where: its path, for messages.
  width: how many numbers it keeps of a file.
  stamp: how many of these, from the first on, say what is in the file.
  """

  where: str
  width: int
  stamp: int

  def walk(self) -> Iterator[tuple[bytes, Marks | None]]:
    """(path within it, marks) of every image, (path, None) of every folder, in any order."""
    ...

  def read(self, path: bytes, marks: Marks) -> bytes:
    """A file's bytes. Any number of threads may read.

    Raises:
      ImageError: if it cannot be read.
    """
    ...


def is_image(name: bytes) -> bool:
  return name.lower().endswith(_SUFFIXES)


def is_hidden(name: bytes) -> bool:
  return name.startswith(b".") or name == b"__MACOSX"


def shown(path: bytes) -> str:
  """A path for people; what a terminal would act on is written out."""
  text = path.decode(errors="surrogateescape")
  if text.isprintable():
    return text
  return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class Directory:
  """A folder. Its marks: size in bytes, time of the last change in ns."""

  width, stamp = 2, 2

  def __init__(self, where: str):
    self.where, self._root = where, os.fsencode(os.path.abspath(where))
    self._real = os.path.realpath(self._root)

  def walk(self) -> Iterator[tuple[bytes, Marks | None]]:
    """As `Tree.walk`.

    Raises:
      UserError: if a folder cannot be read, or a link leads out or nowhere.
    """
    waiting = [b""]
    while waiting:
      here = waiting.pop()
      try:
        with os.scandir(os.path.join(self._root, here)) as entries:
          for entry in entries:
            found = self._entry(here, entry)
            if found and found[1] is None:
              waiting.append(found[0])
            if found:
              yield found
      except OSError as error:
        place = f"{self.where}/{shown(here)}".rstrip("/")
        raise UserError(
          f"Cannot read the folder {place}: {error.strerror}. Check its permissions."
        ) from error

  def _entry(self, here: bytes, entry: "os.DirEntry[bytes]") -> tuple[bytes, Marks | None] | None:
    if is_hidden(entry.name):
      return None
    path = os.path.join(here, entry.name)
    if entry.is_symlink() and not self._follows(path, entry):
      return None
    if entry.is_dir():
      return path, None
    if not is_image(entry.name) or not entry.is_file():
      return None
    about = entry.stat()
    return path, (about.st_size, about.st_mtime_ns)

  def _follows(self, path: bytes, entry: "os.DirEntry[bytes]") -> bool:
    """Whether a link is read: one to a file within the folder."""
    target, place = os.path.realpath(entry.path), f"{self.where}/{shown(path)}"
    if not os.path.exists(target):
      if is_image(entry.name):
        raise UserError(f"{place} is a link to {shown(target)}, which is not there. Remove it.")
      return False
    folder = os.path.isdir(target)
    if not folder and not is_image(entry.name):
      return False
    if os.path.commonpath([self._real, target]) != self._real:
      raise UserError(
        f"{place} is a link that leads out of {self.where}, to {shown(target)}. Copy what it "
        "points to into the folder, or remove it."
      )
    return not folder

  def read(self, path: bytes, marks: Marks) -> bytes:
    """As `Tree.read`."""
    name = f"{self.where}/{shown(path)}"
    try:
      with open(os.path.join(self._root, path), "rb", opener=_opener) as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
          raise ImageError(name, "it is no regular file any more.")
        if about.st_size > MAX_BYTES:
          raise ImageError(name, f"it has more than {MAX_BYTES >> 20} MiB. Resize it.")
        return file.read(about.st_size)
    except OSError as error:
      raise ImageError(
        name, f"{error.strerror}. Check that it is there and may be read."
      ) from error


def _opener(path: Any, flags: int) -> int:
  # A pipe put in a file's place would wait for its other end for ever.
  return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


class Store:
  """A sequence of images in a tree. It can be read from many threads, and be pickled."""

  def __init__(self, tree: Tree, names: np.ndarray, ends: np.ndarray, marks: np.ndarray):
    """Args:
    tree: where they lie.
    names: uint8[total], their paths one after the other.
    ends: int64[N], where each path ends.
    marks: int64[N, tree.width].
    """
    self.tree, self._names, self._ends, self._marks = tree, names, ends, marks

  def __len__(self) -> int:
    return len(self._ends)

  def _path(self, row: int) -> bytes:
    start = int(self._ends[row - 1]) if row else 0
    return self._names[start : int(self._ends[row])].tobytes()

  def name(self, row: int) -> str:
    """Its path, for people."""
    return f"{self.tree.where}/{shown(self._path(row))}"

  def read(self, row: int) -> bytes:
    """Its bytes; raises `ImageError` if they cannot be had."""
    return self.tree.read(self._path(row), tuple(self._marks[row].tolist()))

  def digest(self, rows: np.ndarray) -> bytes:
    """SHA-256 over paths (within the tree), sizes, and CRCs (zip) or times of change (folder)."""
    found = hashlib.sha256()
    for row in rows.tolist():
      path = self._path(row)
      found.update(len(path).to_bytes(8, "little") + path)
      found.update(self._marks[row, : self.tree.stamp].astype("<i8").tobytes())
    return found.digest()


class Column:
  """Numbers in a temporary file that has no name, written once and then mapped into memory.

  A context, whose end closes the file; what `done` returned stays.
  """

  def __init__(self, dtype: str, width: int = 0):
    self._file: IO[bytes] = tempfile.TemporaryFile(prefix="rkd_jax-")  # noqa: SIM115
    self._dtype, self._width = np.dtype(dtype), width

  def __enter__(self) -> "Column":
    return self

  def __exit__(self, *_: object) -> None:
    self._file.close()  # a mapping stays

  def add(self, values: bytes | np.ndarray) -> None:
    values = values if isinstance(values, bytes) else values.astype(self._dtype).tobytes()
    self._file.write(values)

  def done(self) -> np.ndarray:
    """[N] or [N, width]; its room on disk is free again when it is gone."""
    self._file.flush()
    size = self._file.tell()
    # As a plain array: the subclass makes each access slower.
    found = (
      np.asarray(np.memmap(self._file, self._dtype, "r")) if size else np.zeros(0, self._dtype)
    )
    return found.reshape(-1, self._width) if self._width else found
