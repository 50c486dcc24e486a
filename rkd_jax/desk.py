"""Where an audit measures networks, each once, whatever it is measured for."""

import dataclasses
import hashlib
import io
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from rkd_jax import networks
from rkd_jax.audit import inversion, measure, mmbd, second
from rkd_jax.audit.measure import Images, Record, Settings
from rkd_jax.data.sources import Dataset
from rkd_jax.given import Given
from rkd_jax.phases import source_of
from rkd_jax.reporting.files import atomic_write, read_json, write_json
from rkd_jax.runner import Runner


def images(dataset: Dataset, settings: Settings, pool: np.ndarray | None = None) -> Images:
  """The clean hold-out, as far as it is used, and images that may carry a trigger."""
  held = dataset.holdout
  rows = measure.balanced(held.labels, settings.images)
  return Images(np.asarray(held.images[rows]), held.labels[rows], pool)


class Desk:
  """Measures networks once: what is known of one is written down at once, and read the next time.

  Attributes:
    runner, dataset, images, settings: of all networks.
    folder: where the records lie.
  """

  def __init__(self, runner: Runner, seen: Images, settings: Settings, folder: pathlib.Path):
    self.runner, self.dataset, self.images = runner, runner.dataset, seen
    self.settings, self.folder = settings, folder

  def record(self, name: str, found: Given) -> tuple[Record, pathlib.Path | None]:
    """(record, its inverted triggers) of a network."""
    digest = self._digest(found)
    path, arrays = (self.folder / f"{digest}.{kind}" for kind in ("json", "npz"))
    if not path.exists():
      self.runner.stop.check("between two audited networks")
      network = networks.build(self.runner.config, found.network, self.dataset, found.normalisation)
      tests = len(self.settings.tests)
      with self.runner.say.phase(f"audit {name}", 0, tests) as tick:
        count = iter(range(tests))
        made, triggers = measure.measure(
          network, found.variables(), self.images, self.settings, self.runner.mesh,
          lambda test: tick(next(count)),
        )  # fmt: skip
      if triggers:
        _save(arrays, triggers)
      write_json(path, made | {"network": found.network, "sha256": found.sha256})
    return read_json(path), arrays if arrays.exists() else None

  def _digest(self, found: Given) -> str:
    """Of all that a record depends on."""
    told = [found.describe(), found.network, found.normalisation, self.dataset.fingerprint]
    pool = self.images.pool
    told += [dataclasses.asdict(self.settings), code(), None if pool is None else _bytes(pool)]
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


def code() -> str:
  """Short digest over the code of the tests."""
  parts = (inversion.Settings, mmbd.Settings, measure.Settings)
  texts = [source_of(part) for part in parts] + [_source(second)]
  return hashlib.sha256("".join(texts).encode()).hexdigest()[:8]


def _source(module: Any) -> str:
  return pathlib.Path(module.__file__).read_text(encoding="utf-8")


def _bytes(array: np.ndarray) -> str:
  return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _save(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
  buffer = io.BytesIO()
  np.savez_compressed(buffer, allow_pickle=False, **arrays)  # type: ignore[arg-type]
  atomic_write(path, buffer.getvalue())


def plain(settings: Settings) -> dict[str, Any]:
  return {**dataclasses.asdict(settings), "tests": list(settings.tests)}
