"""Which images there are, sorted by path, without a list of them in memory.

The names go through a temporary SQLite database, which sorts on disk: a folder of millions of files
costs some 4 MiB of memory, and its order does not depend on the file system.
"""

import contextlib
import sqlite3
import struct
import tempfile
from collections.abc import Iterator, Sequence

import numpy as np

from rkd_jax.data.files import Column, Store, Tree, shown
from rkd_jax.errors import UserError

BATCH = 4096  # rows that are in memory at a time


class Catalogue:
  """The images and folders of a tree; a context, whose end removes the database."""

  def __init__(self, tree: Tree):
    """Walks over the tree.

    Raises:
      UserError: what its `walk` raises, or if a path occurs twice, or there is no room.
    """
    self.tree = tree
    self._db = sqlite3.connect("")  # a temporary file of its own, removed with the connection
    try:
      self._fill()
    except sqlite3.OperationalError as error:
      self._db.close()
      raise _no_room(error) from error
    except BaseException:
      self._db.close()
      raise

  def _fill(self) -> None:
    self._db.execute("PRAGMA journal_mode = OFF")
    self._db.execute("CREATE TABLE file (path BLOB, marks BLOB)")
    self._db.execute("CREATE TABLE folder (parent BLOB, name BLOB, PRIMARY KEY (parent, name))")
    self._db.executemany("INSERT INTO file VALUES (?, ?)", self._files())
    try:
      self._db.execute("CREATE UNIQUE INDEX by_path ON file (path)")
    except sqlite3.IntegrityError:
      twice = "SELECT path FROM file GROUP BY path HAVING COUNT(*) > 1 ORDER BY path LIMIT 1"
      path = shown(self._db.execute(twice).fetchone()[0])
      raise UserError(f"{self.tree.where} holds {path!r} twice. Make the zip anew.") from None

  def _files(self) -> Iterator[tuple[bytes, bytes]]:
    """Rows of the table of files; enters the folders on the way."""
    last, packed = b"", struct.Struct(f"<{self.tree.width}q").pack
    for path, marks in self.tree.walk():
      parent = path if marks is None else path.rpartition(b"/")[0]
      if parent != last:
        self._enter(parent)
        last = parent
      if marks is not None:
        yield path, packed(*marks)

  def _enter(self, path: bytes) -> None:
    while path:
      parent, _, name = path.rpartition(b"/")
      self._db.execute("INSERT OR IGNORE INTO folder VALUES (?, ?)", (parent, name))
      path = parent

  def __enter__(self) -> "Catalogue":
    return self

  def __exit__(self, *_: object) -> None:
    self._db.close()

  def folders(self, path: bytes) -> list[bytes]:
    """The names of the folders within a folder, sorted. The tree itself is b""."""
    rows = self._db.execute("SELECT name FROM folder WHERE parent = ? ORDER BY name", (path,))
    return [name for (name,) in rows]

  def has_files(self, path: bytes) -> bool:
    """Whether images lie directly in a folder."""
    return self.files(path)[0] > 0

  def files(self, path: bytes) -> tuple[int, bytes]:
    """How many images lie directly in a folder, and the path of the first."""
    low, high = _within(path)
    query = (
      "SELECT COUNT(*), MIN(path) FROM file WHERE path > ? AND path < ? "
      "AND instr(substr(path, ?), ?) = 0"
    )
    count, first = self._db.execute(query, (low, high, len(low) + 1, b"/")).fetchone()
    return count, first or b""

  def store(self, paths: Sequence[bytes]) -> tuple[Store, np.ndarray]:
    """All images below some folders: a store, by folder and then by path, and which folder each
    is from, int32[N]."""
    kinds = (("u1", 0), ("<i8", 0), ("<i8", self.tree.width), ("<i4", 0))
    try:
      with contextlib.ExitStack() as files:
        columns = [files.enter_context(Column(*kind)) for kind in kinds]
        end = 0
        for label, path in enumerate(paths):
          for rows in self._below(path):
            end = _append(columns, rows, label, end)
        names, ends, marks, labels = [column.done() for column in columns]
      return Store(self.tree, names, ends, marks), labels
    except (OSError, sqlite3.OperationalError) as error:
      raise _no_room(error) from error

  def _below(self, path: bytes) -> Iterator[list[tuple[bytes, bytes]]]:
    query = "SELECT path, marks FROM file WHERE path > ? AND path < ? ORDER BY path"
    cursor = self._db.execute(query, _within(path))
    while rows := cursor.fetchmany(BATCH):
      yield rows


def _append(columns: list[Column], rows: list[tuple[bytes, bytes]], label: int, end: int) -> int:
  """Adds rows of (path, marks) to names, ends, marks and labels. Returns where the names end."""
  ends = end + np.cumsum([len(path) for path, _ in rows])
  columns[0].add(b"".join([path for path, _ in rows]))
  columns[1].add(ends)
  columns[2].add(b"".join([marks for _, marks in rows]))
  columns[3].add(np.full(len(rows), label))
  return int(ends[-1])


def _within(path: bytes) -> tuple[bytes, bytes]:
  """What lies between these two lies below the folder ("0" follows "/")."""
  return (path + b"/", path + b"0") if path else (b"", b"\xff" * 8)


def _no_room(error: Exception) -> UserError:
  return UserError(
    f"Cannot write the list of images to {tempfile.gettempdir()}: {error}. Make room there, or set "
    "TMPDIR to a folder that has some."
  )
