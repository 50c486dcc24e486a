"""From lists of image files to images: in memory where they fit, else decoded when asked for."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from rkd_jax.data import decode
from rkd_jax.data.files import Store
from rkd_jax.data.headers import ImageError
from rkd_jax.data.lazy import Files, Images, Lazy, each, unequal
from rkd_jax.errors import UserError, check_range

SAMPLE = 1000  # headers that are read to see what a data set is like
NAMED = 10  # bad files that a message names


@dataclasses.dataclass(frozen=True)
class Options:
  """How image files are read.

  Attributes:
    size: 0: images have one size, and keep it; else each is resized, shorter side first, and its
      middle size x size pixels are taken (also of images that are no files).
    memory: bytes; image files that take more as pixels are decoded when they are asked for.
    skip_corrupt: leave out what cannot be read, and say so, instead of refusing it all.
    unlabelled: path of a folder or zip file of images without labels, for the student; "": none.
  """

  size: int = 0
  memory: int = 2048 * 2**20
  skip_corrupt: bool = False
  unlabelled: str = ""

  def __post_init__(self):
    check_range("config.data.size", self.size, 0, 4096)
    check_range("config.data.memory_mib", self.memory / 2**20, 0, 10**9)


@dataclasses.dataclass(frozen=True)
class Read:
  """What became of one list of files.

  Attributes:
    images: uint8[N, H, W, C].
    kept: int64[N], which files they are, ascending.
    skipped: "file: reason" of the others.
  """

  images: Images
  kept: np.ndarray
  skipped: tuple[str, ...]


def read(
  stores: Sequence[Store], options: Options, shape: tuple[int, int, int] | None = None
) -> list[Read]:
  """Reads lists of files that make one data set: all in memory, or none.

  Args:
    stores: the lists, none empty.
    options: size, memory, skip_corrupt.
    shape: (H, W, C) that all are brought to (as `options.size` does); None: what they have, or
      `options.size`; then C is 1 where no image has colour, else 3. Of more images than fit into
      memory, 1,000 evenly spaced ones decide.

  Raises:
    UserError: if images cannot be read (in memory: how many, and the first ten), or differ in size
      and are not resized.
  """
  fit = bool(options.size or shape)
  guess = shape or _look(stores, options, SAMPLE) or _look(stores, options, None)
  room = options.memory // sum(map(len, stores))  # for one image
  # Where nothing can be read, decoding all of it says so.
  lazy = guess is not None and math.prod(guess) > room
  guess = guess or (1, 1, 1)
  if not shape and (not lazy or options.skip_corrupt) and max(map(len, stores)) > SAMPLE:
    whole = _look(stores, options, None)
    if whole:  # one with colour, perhaps: all take three times the memory
      guess, lazy = whole, math.prod(whole) > room
  files = [Files(store, guess, fit) for store in stores]
  found = [_lazily(one, options.skip_corrupt) if lazy else _at_once(one) for one in files]
  _check(found, stores, options.skip_corrupt)
  return found


def _look(
  stores: Sequence[Store], options: Options, most: int | None
) -> tuple[int, int, int] | None:
  """(H, W, C), from the headers of all files, or of `most` evenly spaced ones of each list; None
  where no header can be read."""
  sizes: dict[tuple[int, int], tuple[int, int]] = {}  # size -> the first (list, row) of that size
  colour = False
  for number, store in enumerate(stores):
    count = len(store) if most is None else min(most, len(store))
    rows = np.arange(count) * len(store) // count
    heads = _headers(store, rows)
    for row, head in zip(rows.tolist(), heads, strict=True):
      if head:
        sizes.setdefault(head[:2], (number, row))
        colour = colour or not head[2]
  if not sizes:
    return None
  names = [stores[number].name(row) for number, row in sizes.values()]
  if options.size:
    return options.size, options.size, 3 if colour else 1
  if len(sizes) > 1:
    first, second = list(sizes)[:2]
    raise UserError(unequal(first, second, names[1], names[0]))
  return *next(iter(sizes)), 3 if colour else 1


def _headers(store: Store, rows: np.ndarray) -> list[tuple[int, int, bool] | None]:
  """(H, W, grey) of each; None where there is none to be read."""
  found: list[tuple[int, int, bool] | None] = [None] * len(rows)

  def look(k: int) -> None:
    row = int(rows[k])
    with contextlib.suppress(ImageError):  # counted and named when it is decoded
      found[k] = decode.probe(store.read(row), store.name(row))

  each(look, len(rows))
  return found


def _at_once(files: Files) -> Read:
  images = np.empty((len(files), *files.shape), np.uint8)

  def keep(row: int, pixels: np.ndarray) -> None:
    images[row] = pixels

  kept, skipped = _try_all(files, keep)
  return Read(images if len(kept) == len(files) else images[kept], kept, skipped)


def _lazily(files: Files, check: bool) -> Read:
  if not check:  # a bad file is an error once it is asked for
    return Read(Lazy(files), np.arange(len(files)), ())
  kept, skipped = _try_all(files, lambda row, pixels: None)
  return Read(Lazy(files, kept), kept, skipped)


def _try_all(
  files: Files, use: Callable[[int, np.ndarray], None]
) -> tuple[np.ndarray, tuple[str, ...]]:
  """Decodes every file. Returns which could be, and "file: reason" for the others."""
  bad: dict[int, str] = {}

  def attempt(row: int) -> None:
    try:
      use(row, files.decoded(row))
    except ImageError as error:
      bad[row] = f"{error.name}: {error.reason}"

  each(attempt, len(files))
  rows = sorted(bad)
  return np.setdiff1d(np.arange(len(files)), rows), tuple(bad[row] for row in rows)


def _check(found: list[Read], stores: Sequence[Store], skip: bool) -> None:
  """Raises a `UserError` for files that could not be read, unless they may be skipped."""
  skipped = [line for one in found for line in one.skipped]
  total = sum(map(len, stores))
  if skipped and (not skip or len(skipped) == total):
    named = "".join(f"\n  {line}" for line in skipped[:NAMED])
    more = f"\n  and {len(skipped) - NAMED:,} more" if len(skipped) > NAMED else ""
    raise UserError(
      f"Cannot read {len(skipped):,} of {total:,} images:{named}{more}\nMend or remove them, or "
      "leave out what cannot be read with --config.data.skip_corrupt=true."
    )
