"""Batches as a function of the step: batch k of an epoch is rows k*B.. of permutation(seed, epoch).

There is no iterator to save: a stream opens at any step. `Resident` holds a whole (small) data set
on the devices; a step then reads its rows there and nothing is transferred but one order an epoch.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from rkd_jax.data import seeds

Put = Callable[[Any], Any]  # host arrays -> device arrays


@dataclasses.dataclass(frozen=True)
class Rows:
  """The examples that a phase sees, on the host.

  Attributes:
    image: uint8[N, H, W, C].
    label: int32[N], -1 where the phase has none.
    kind: int8[N] of `backdoors.base` (clean, poisoned, cover), or None where nothing is planned.
  """

  image: np.ndarray
  label: np.ndarray
  kind: np.ndarray | None = None

  def __len__(self) -> int:
    return len(self.image)

  def arrays(self) -> dict[str, np.ndarray]:
    index = np.arange(len(self), dtype=np.int32)
    found = {"image": self.image, "label": self.label, "kind": self.kind, "index": index}
    return {name: array for name, array in found.items() if array is not None}


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
    self._source = put({"seed": np.uint32(seed), "rows": rows.arrays()})
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


def padded(size: int, batch: int) -> Iterator[np.ndarray]:
  """Row numbers 0..size in batches of one length, the last filled up with `size`."""
  for start in range(0, size, batch):
    rows = np.arange(start, start + batch, dtype=np.int32)
    yield np.minimum(rows, size)
