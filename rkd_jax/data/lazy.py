"""Images that are decoded when they are asked for, with what the rest uses of an array.

`images[rows]`, `len`, `shape`, `dtype` and `take` are those of uint8[N, H, W, C]; memory holds
only what was asked for. Decoding runs in threads (Pillow lets others run meanwhile), and never
touches shared state: any number of threads or processes may read.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from rkd_jax.data import decode
from rkd_jax.data.decode import Size
from rkd_jax.data.files import Store
from rkd_jax.data.headers import ImageError
from rkd_jax.errors import UserError

SKIP = "Mend or remove it, or leave out what cannot be read with --config.data.skip_corrupt=true"
MAX_THREADS = 32
CHUNK = 64  # images that one thread takes at a time, at most

Rows = np.ndarray | Sequence[int]


class Source(Protocol):
  """Where a `Lazy` gets its pixels: by number, one at a time, from any thread."""

  shape: tuple[int, int, int]

  def __len__(self) -> int: ...

  def one(self, row: int) -> np.ndarray:
    """uint8[H, W, C]."""
    ...

  def crop(self, row: int, rng: np.random.Generator, scale: float, size: Size) -> np.ndarray:
    """uint8[*size, C]: a random part of the original, resized to (height, width)."""
    ...

  def digest(self, rows: np.ndarray) -> bytes:
    """Says which images these are."""
    ...


class Files:
  """Image files of a store, made one shape."""

  def __init__(self, store: Store, shape: tuple[int, int, int], fit: bool):
    """Args:
    store: the files.
    shape: (H, W, C) of what comes out.
    fit: whether images of other sizes are resized and cropped (`decode.decode`), or refused.
    """
    self.store, self.shape, self.fit = store, shape, fit

  def __len__(self) -> int:
    return len(self.store)

  def decoded(self, row: int) -> np.ndarray:
    """uint8[H, W, C]; raises `ImageError`, or `UserError` if the size is another and not `fit`."""
    height, width, channels = self.shape
    data, name = self.store.read(row), self.store.name(row)
    pixels = decode.decode(data, name, (height, width) if self.fit else 0, channels)
    if pixels.shape != self.shape:
      raise UserError(unequal((height, width), pixels.shape[:2], name))
    return pixels

  def one(self, row: int) -> np.ndarray:
    """As `Source.one`."""
    return _or_advice(lambda: self.decoded(row))

  def crop(self, row: int, rng: np.random.Generator, scale: float, size: Size) -> np.ndarray:
    """As `Source.crop`."""
    return _or_advice(lambda: self._crop(row, rng, scale, size))

  def _crop(self, row: int, rng: np.random.Generator, scale: float, size: Size) -> np.ndarray:
    data, name = self.store.read(row), self.store.name(row)
    height, width, _ = decode.probe(data, name)
    box = decode.crop_box(height, width, scale, rng)
    return decode.resized_crop(data, name, box, size, self.shape[-1])

  def digest(self, rows: np.ndarray) -> bytes:
    """As `Source.digest`: what `Store.digest` says; contents are not read."""
    return self.store.digest(rows)


def _or_advice(read: Callable[[], np.ndarray]) -> np.ndarray:
  try:
    return read()
  except ImageError as error:
    raise UserError(f"{error} {SKIP}.") from error


def unequal(size: tuple[int, ...], other: tuple[int, ...], name: str, first: str = "") -> str:
  """The message for images of two sizes, (H, W) each."""
  before = f"{first or 'the first'} is {size[1]}x{size[0]} (width x height)"
  return (
    f"Images must have one size, but {before} and {name} is {other[1]}x{other[0]}. "
    "Have them resized and cropped to squares: --config.data.size=32 (pixels)."
  )


class Joined:
  """Several sequences of images of one shape, one after the other."""

  def __init__(self, parts: Sequence["Images"]):
    self.parts, self.shape = tuple(parts), parts[0].shape[1:]
    self._ends = np.cumsum([len(part) for part in parts])

  def __len__(self) -> int:
    return int(self._ends[-1])

  def _part(self, row: int) -> tuple["Images", int]:
    number = int(np.searchsorted(self._ends, row, side="right"))
    return self.parts[number], row - (int(self._ends[number - 1]) if number else 0)

  def one(self, row: int) -> np.ndarray:
    """As `Source.one`."""
    part, row = self._part(row)
    return part[row]

  def crop(self, row: int, rng: np.random.Generator, scale: float, size: Size) -> np.ndarray:
    """As `Source.crop`."""
    part, row = self._part(row)
    return cropped(part, [row], [rng], scale, size)[0]

  def digest(self, rows: np.ndarray) -> bytes:
    """As `Source.digest`."""
    found = hashlib.sha256(np.asarray(rows, "<i8").tobytes())
    for part in self.parts:
      found.update(
        part.digest()
        if isinstance(part, Lazy)
        else hashlib.sha256(np.ascontiguousarray(part).data).digest()
      )
    return found.digest()


class Lazy:
  """uint8[N, H, W, C] whose pixels are made when rows of it are asked for."""

  dtype, ndim = np.dtype(np.uint8), 4

  def __init__(self, source: Source, rows: np.ndarray | None = None):
    """Args:
    source: who makes the pixels.
    rows: int64[N], which of its images these are; None: all.
    """
    self._source = source
    self._rows = np.arange(len(source)) if rows is None else rows
    self.shape = (len(self._rows), *source.shape)

  def __len__(self) -> int:
    return len(self._rows)

  @property
  def nbytes(self) -> int:
    """What an array of them would take."""
    return int(np.prod(self.shape, dtype=np.int64))

  def __getitem__(self, rows: Any) -> np.ndarray:
    """Decodes: a slice, int[n] or bool[N] -> uint8[n, H, W, C]; a number -> uint8[H, W, C].

    Raises:
      UserError: if a file cannot be read; it names the file.
    """
    chosen = self._rows[rows]
    if np.ndim(chosen) == 0:
      return self._source.one(int(chosen))
    found = np.empty((len(chosen), *self.shape[1:]), np.uint8)

    def fill(k: int) -> None:
      found[k] = self._source.one(int(chosen[k]))

    each(fill, len(chosen))
    return found

  def __array__(self, *_: Any, **__: Any) -> np.ndarray:
    raise TypeError(
      "These images are not in memory, and an array of all would decode them all. Ask for rows, "
      "images[rows], or join with rkd_jax.data.lazy.concatenate."
    )

  def take(self, indices: Rows, axis: int = 0) -> "Lazy":
    """The images at `indices`, in that order; nothing is decoded. As of an array, axis 0 only."""
    if axis != 0:
      raise ValueError(f"axis is {axis}; whole images are taken, along axis 0.")
    return Lazy(self._source, self._rows[np.asarray(indices, np.int64)])

  def cropped(
    self, rows: Rows, rngs: Sequence[np.random.Generator], scale: float, size: Size
  ) -> np.ndarray:
    """Random parts of the original images: `decode.crop_box`, one generator a row.

    The whole original is cropped from, before any resizing of `images[rows]`.

    Returns:
      uint8[n, *size, C].

    Raises:
      UserError: if a file cannot be read.
    """
    chosen = self._rows[np.asarray(rows, np.int64)]
    found = np.empty((len(chosen), *size, self.shape[-1]), np.uint8)

    def fill(k: int) -> None:
      found[k] = self._source.crop(int(chosen[k]), rngs[k], scale, size)

    each(fill, len(chosen))
    return found

  def digest(self) -> bytes:
    """32 bytes that say which images these are, without reading them.

    Of files: paths within the data set, sizes, and CRCs (zip) or times of the last change (folder),
    in the order of the rows. So a copy that does not keep times counts as other data.
    """
    return self._source.digest(self._rows)


Images = np.ndarray | Lazy  # uint8[N, H, W, C]


def concatenate(parts: Sequence[Images]) -> Images:
  """One after the other: an array if all are, else `Lazy`, and nothing is decoded.

  Raises:
    ValueError: if their images differ in shape.
  """
  arrays = [part for part in parts if isinstance(part, np.ndarray)]
  if len(arrays) == len(parts):
    return np.concatenate(arrays)
  if len({part.shape[1:] for part in parts}) > 1:
    raise ValueError(f"Images differ in shape: {[part.shape for part in parts]}.")
  return Lazy(Joined(parts))


def cropped(
  images: Images, rows: Rows, rngs: Sequence[np.random.Generator], scale: float, size: Size
) -> np.ndarray:
  """`Lazy.cropped`; of an array the same draws, from the images as they are in it."""
  if isinstance(images, Lazy):
    return images.cropped(rows, rngs, scale, size)
  height, width, channels = images.shape[1:]
  found = np.empty((len(rows), *size, channels), np.uint8)

  def fill(k: int) -> None:
    box = decode.crop_box(height, width, scale, rngs[k])
    found[k] = decode.crop_array(images[rows[k]], box, size)

  each(fill, len(rows))
  return found


def each(function: Callable[[int], None], count: int) -> None:
  """function(0), ..., function(count - 1) in threads. The first error ends it, and is raised."""
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
  threads = min(cores, MAX_THREADS, count)
  if threads <= 1:
    return _run(function, range(count))
  step = max(1, min(CHUNK, count // (4 * threads)))
  # A pool of its own for each call: none is left behind where the process forks.
  pool = ThreadPoolExecutor(threads)
  try:
    chunks = [range(k, min(k + step, count)) for k in range(0, count, step)]
    for _ in pool.map(lambda rows: _run(function, rows), chunks):
      pass
  finally:
    pool.shutdown(cancel_futures=True)


def _run(function: Callable[[int], None], rows: range) -> None:
  for row in rows:
    function(row)
