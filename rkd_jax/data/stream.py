"""Batches as a function of the step: batch k of an epoch is rows k*B.. of permutation(seed, epoch).

There is no iterator to save: a stream opens at any step. `Resident` holds a whole (small) data set
on the devices; a step then reads its rows there and nothing is transferred but one order an epoch.
`Streamed` leaves the images where they are and reads each batch ahead of its step. Both show a step
the same rows, so a run from either gives the same parameters.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from rkd_jax.data import lazy, seeds
from rkd_jax.errors import UserError

Put = Callable[[Any], Any]  # host arrays -> device arrays
READERS, AHEAD = 2, 4  # batches read at once (each by several threads), and held before their step


@dataclasses.dataclass(frozen=True)
class Rows:
  """The examples that a phase sees, on the host.

  Attributes:
    image: uint8[N, H, W, C], an array or `data.lazy.Lazy`.
    label: int32[N], -1 where the phase has none.
    kind: int8[N] of `backdoors.base` (clean, poisoned, cover), or None where nothing is planned.
  """

  image: lazy.Images
  label: np.ndarray
  kind: np.ndarray | None = None

  def __len__(self) -> int:
    return len(self.image)

  def at(self, rows: np.ndarray, images: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """The examples at `rows`: image (decoded, or as given), label, index, kind where planned."""
    images = self.image[rows] if images is None else images
    found = {"image": images, "label": self.label[rows], "index": rows.astype(np.int32)}
    return found | ({} if self.kind is None else {"kind": self.kind[rows]})


def order(seed: int, epoch: int, size: int, batch: int) -> np.ndarray:
  """int32[size // batch, batch]: the epoch's rows, batch by batch; the remainder is left out."""
  rows = seeds.rng(seed, "order", epoch).permutation(size)
  return rows[: size // batch * batch].reshape(-1, batch).astype(np.int32)


class Resident:
  """A data set that lives on the devices."""

  def __init__(self, rows: Rows, batch: int, seed: int, put: Put, backdoor: Any = None):
    """Args:
    rows: what the phase sees.
    batch: examples a step, over all devices and hosts; never more than there are.
    seed: of the order and of everything drawn in the step.
    put: lays host arrays on the devices.
    backdoor: the trigger of rows whose kind says so.
    """
    self.batch, self.size, self.seed = min(batch, len(rows)), len(rows), seed
    self.steps_per_epoch = self.size // self.batch
    self._put, self._epoch = put, -1
    self._source = put({"seed": np.uint32(seed), "rows": rows.at(np.arange(len(rows)))})
    if rows.kind is not None:
      self._source["backdoor"] = backdoor

  def add(self, **entries: Any) -> None:
    """Puts more into every step's source (the cached targets)."""
    self._source |= entries

  def source(self, step: int) -> dict[str, Any]:
    """What the program of this step reads."""
    epoch = step // self.steps_per_epoch
    if epoch != self._epoch:
      table = order(self.seed, epoch, self.size, self.batch)
      self._source |= self._put({"order": table, "epoch": np.int32(epoch)})
      self._epoch = epoch
    return self._source

  def in_order(self, batch: int) -> Iterator[dict[str, Any]]:
    """Sources whose one batch holds the next rows, each once; `mask` is 0 on the last's padding."""
    for rows in padded(self.size, batch):
      order = np.minimum(rows, self.size - 1)[None]
      one = {"order": order, "mask": (rows < self.size).astype(np.float32), "epoch": np.int32(0)}
      yield self._source | self._put(one | {"size": np.int32(self.size)})

  def close(self) -> None:
    """Nothing is open."""


class Streamed:
  """A data set that stays on the host: Grain's threads read a few batches ahead of their steps."""

  def __init__(
    self, rows: Rows, batch: int, seed: int, put: Put, spread: Put, backdoor: Any = None,
    resized_crop: float = 0, share: tuple[int, int] = (0, 1),
  ):  # fmt: skip
    """Args:
    rows, batch, seed, put, backdoor: as `Resident` has them.
    spread: lays this host's share of a batch over its devices.
    resized_crop: smallest share of an image's area that a random crop takes; 0: no crop. It is made
      here, on the host, before any trigger is put on.
    share: (p, P): this host reads the p-th of P equal parts of every batch.

    Raises:
    UserError: P does not divide the batch.
    """
    self.batch, self.size, self.seed = min(batch, len(rows)), len(rows), seed
    self.steps_per_epoch = self.size // self.batch
    self._rows, self._spread, self._share, self._crop = rows, spread, share, resized_crop
    if self.batch % share[1]:
      raise UserError(
        f"A batch of {self.batch} cannot be shared by {share[1]} hosts; make batch_size a multiple."
      )
    self._fixed = put({"seed": np.uint32(seed)})
    if rows.kind is not None:
      self._fixed["backdoor"] = backdoor
    self._put, self._next, self._reader = put, -1, None
    self._order: tuple[int, np.ndarray | None] = (-1, None)

  def add(self, **entries: Any) -> None:
    """Puts more into every step's source (the cached targets)."""
    self._fixed |= entries

  def source(self, step: int) -> dict[str, Any]:
    """What the program of this step reads: its batch. Steps in sequence are read ahead."""
    if step != self._next or self._reader is None:
      self.close()
      self._reader = ahead(self._read, step)
    self._next = step + 1
    epoch = self._put({"epoch": np.int32(step // self.steps_per_epoch)})
    return self._fixed | epoch | {"rows": self._spread(next(self._reader))}

  def in_order(self, batch: int) -> Iterator[dict[str, Any]]:
    """Sources whose one batch holds the next rows, each once; `mask` is 0 on the last's padding."""
    orders = list(padded(self.size, batch))
    with contextlib.closing(
      ahead(lambda k: self._at(np.minimum(orders[k], self.size - 1)), 0, len(orders))
    ) as reader:
      for rows, found in zip(orders, reader, strict=True):
        mask = (rows < self.size).astype(np.float32)
        one = {"mask": mask, "epoch": np.int32(0), "size": np.int32(self.size)}
        yield self._fixed | self._put(one) | {"rows": self._spread(found)}

  def close(self) -> None:
    """Stops reading ahead."""
    if self._reader is not None:
      self._reader.close()
      self._reader = None

  def _read(self, step: int) -> dict[str, np.ndarray]:
    epoch, within = divmod(step, self.steps_per_epoch)
    return self._at(self._epoch(epoch)[within], epoch)

  def _epoch(self, epoch: int) -> np.ndarray:
    known, table = self._order
    if known != epoch or table is None:  # two threads may both make it: it is the same
      table = order(self.seed, epoch, self.size, self.batch)
      self._order = epoch, table
    return table

  def _at(self, rows: np.ndarray, epoch: int | None = None) -> dict[str, np.ndarray]:
    """This host's share of a batch; cropped anew in each epoch where crops are asked for."""
    number, of = self._share
    own = np.split(rows, of)[number]
    if epoch is None or not self._crop:
      return self._rows.at(own)
    draws = [seeds.rng(self.seed, "crop", epoch, row) for row in own.tolist()]
    images = self._rows.image
    size = images.shape[1], images.shape[2]
    return self._rows.at(own, lazy.cropped(images, own, draws, self._crop, size))


class Nothing:
  """The stream of a phase without data: a seed, and an epoch's length for logs and resets."""

  def __init__(self, batch: int, steps_per_epoch: int, seed: int, put: Put):
    self.batch, self.size, self.seed, self.steps_per_epoch = batch, 0, seed, steps_per_epoch
    self._source = put({"seed": np.uint32(seed)})

  def source(self, step: int) -> dict[str, Any]:
    """A seed: the method invents the rest."""
    return self._source

  def in_order(self, batch: int) -> Iterator[dict[str, Any]]:
    """No data, no pass over it."""
    return iter(())

  def close(self) -> None:
    """Nothing is open."""


class _Reads:
  """What Grain takes elements from, by number."""

  def __init__(self, read: Callable[[int], Any], count: int):
    self._read, self._count = read, count

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, index: int) -> Any:
    return self._read(index)


def ahead(read: Callable[[int], Any], start: int, count: int = 2**31 - 1) -> Any:
  """read(start), read(start + 1), ... up to `count`, in order, read by threads before they are
  asked for. What `read` raises is raised where its turn comes. To be closed."""
  import grain  # seconds to import, and most data sets are in memory

  options = grain.ReadOptions(num_threads=READERS, prefetch_buffer_size=AHEAD)
  return iter(grain.MapDataset.source(_Reads(read, count))[start:].to_iter_dataset(options))


def padded(size: int, batch: int) -> Iterator[np.ndarray]:
  """Row numbers 0..size in batches of one length, the last filled up with `size`."""
  for start in range(0, size, batch):
    rows = np.arange(start, start + batch, dtype=np.int32)
    yield np.minimum(rows, size)
