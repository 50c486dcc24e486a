"""metrics.jsonl and TensorBoard, written by the loop.

Lines carry no wall time, and a resumed run drops those it will write again: so its file equals an
uninterrupted run's byte for byte.
"""

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any, SupportsFloat

from rkd_jax.reporting.files import atomic_write, cannot_write


class MetricsWriter:
  """Appends one JSON line a call: {"step": int, name: float, ...}; NaN and infinity become null.

  Args:
    jsonl_path: the file; its folder is made. Lines of `restored_step` and later are dropped, and so
      is what a crash left of a line.
    tensorboard_dir: where TensorBoard's events go; None for no events.
    restored_step: the step that the run starts or resumes at.
  """

  def __init__(
    self,
    jsonl_path: str | os.PathLike,
    tensorboard_dir: str | os.PathLike | None = None,
    restored_step: int = 0,
  ):
    self._path = pathlib.Path(jsonl_path)
    _truncate(self._path, restored_step)
    try:
      self._file = open(self._path, "a", encoding="utf-8", newline="\n")  # noqa: SIM115
    except OSError as error:
      raise cannot_write(self._path, error) from error
    self._events: Any = None
    if tensorboard_dir is not None:
      from tensorboardX import SummaryWriter  # slow to import, and not needed without a folder

      self._events = SummaryWriter(os.fspath(tensorboard_dir), purge_step=restored_step or None)

  def write(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
    """Appends the line, and hands it to the operating system: it outlives this process."""
    if "step" in metrics:
      raise ValueError("A metric may not be called 'step'.")
    values = {name: float(value) for name, value in metrics.items()}
    line = {"step": int(step)} | {k: v if math.isfinite(v) else None for k, v in values.items()}
    try:
      self._file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
      self._file.flush()
    except OSError as error:
      raise cannot_write(self._path, error) from error
    if self._events is not None:
      for name, value in values.items():
        self._events.add_scalar(name, value, int(step))

  def flush(self) -> None:
    """Down to the disk. Call it before a checkpoint is saved: no line may be younger than that."""
    self._file.flush()
    os.fsync(self._file.fileno())
    if self._events is not None:
      self._events.flush()

  def close(self) -> None:
    """May be called twice."""
    self._file.close()
    if self._events is not None:
      self._events.close()
      self._events = None

  def __enter__(self) -> "MetricsWriter":
    return self

  def __exit__(self, *exception: object) -> None:
    self.close()


def read_lines(path: str | os.PathLike) -> list[dict[str, Any]]:
  """The whole lines of a metrics.jsonl, in order; none where there is no file."""
  return [entry for _, entry in _entries(pathlib.Path(path))]


def _truncate(path: pathlib.Path, restored_step: int) -> None:
  kept = b"".join(line for line, entry in _entries(path) if entry["step"] < restored_step)
  if not path.exists() or path.read_bytes() != kept:
    atomic_write(path, kept)


def _entries(path: pathlib.Path) -> list[tuple[bytes, dict[str, Any]]]:
  if not path.exists():
    return []
  lines = path.read_bytes().splitlines(keepends=True)
  return [(line, entry) for line in lines if (entry := _parse(line)) is not None]


def _parse(line: bytes) -> dict[str, Any] | None:
  """None for what a crash left: half a line, or zeros where the disk got no further."""
  try:
    entry = json.loads(line) if line.endswith(b"\n") else None
  except ValueError:
    return None
  return entry if isinstance(entry, dict) and isinstance(entry.get("step"), int) else None
