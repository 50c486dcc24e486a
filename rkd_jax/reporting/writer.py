"""metrics.jsonl and TensorBoard, written by the loop.

Lines carry no wall time, and a resumed run drops those it will write again: so its file equals an
uninterrupted run's byte for byte.
"""

import contextlib
import json
import math
import os
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import IO, Any, SupportsFloat

from rkd_jax import hosts
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
    with _explained(self._path):
      self._file = open(self._path, "a", encoding="utf-8", newline="\n")  # noqa: SIM115
    self._events: _Events | None = None
    if tensorboard_dir is not None:
      with _closed_by_errors(self._file):
        self._events = _Events(pathlib.Path(tensorboard_dir), restored_step)

  def write(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
    """Appends the line, and hands it to the operating system: it outlives this process."""
    if "step" in metrics:
      raise ValueError("A metric may not be called 'step'.")
    values = {name: float(value) for name, value in metrics.items()}
    line = {"step": int(step)} | {k: v if math.isfinite(v) else None for k, v in values.items()}
    with _explained(self._path):
      self._file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
      self._file.flush()
    if self._events is not None:
      self._events.write(int(step), values)

  def flush(self) -> None:
    """Down to the disk. Call it before a checkpoint is saved: no line may be younger than that."""
    with _explained(self._path):
      self._file.flush()
      os.fsync(self._file.fileno())
    if self._events is not None:
      self._events.flush()

  def close(self) -> None:
    """May be called twice. What a full disk keeps from being closed was told of when written."""
    with contextlib.suppress(OSError):
      self._file.close()
    if self._events is not None:
      self._events.close()
      self._events = None

  def __enter__(self) -> "MetricsWriter":
    return self

  def __exit__(self, *exception: object) -> None:
    self.close()


class Unwritten(contextlib.AbstractContextManager):
  """What the other processes of a run write of their metrics: nothing."""

  def write(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
    """Nothing."""

  def flush(self) -> None:
    """Nothing."""

  def __exit__(self, *exception: object) -> None:
    """Nothing was open."""


def written(
  jsonl_path: str | os.PathLike, tensorboard_dir: str | os.PathLike | None, restored_step: int
) -> MetricsWriter | Unwritten:
  """A `MetricsWriter`; for the further processes of a run one that writes nothing."""
  if not hosts.first():
    return Unwritten()
  return MetricsWriter(jsonl_path, tensorboard_dir, restored_step)


class _Events:
  """A file of TensorBoard's events, written where it is called: `SummaryWriter` writes in a thread,
  which a full disk ends silently, and whoever waits for it then waits for ever."""

  def __init__(self, directory: pathlib.Path, restored_step: int):
    # slow to import, and not needed without a folder
    from tensorboardX import event_file_writer, summary
    from tensorboardX.proto import event_pb2

    protos: Any = event_pb2  # generated, and without types
    self._directory, self._event, self._scalar = directory, protos.Event, summary.scalar
    with _explained(directory):
      directory.mkdir(parents=True, exist_ok=True)
      # the file's name is the time of day; two of one second, or of a clock set back, differ too
      name, suffix = os.fspath(directory / "events"), f".{restored_step}.{os.getpid()}"
      self._file = event_file_writer.EventsWriter(name, suffix)
      if restored_step:  # TensorBoard drops what an earlier file holds of this step and later
        log = protos.SessionLog(status=protos.SessionLog.START)
        self._put(restored_step, session_log=log)

  def write(self, step: int, values: Mapping[str, float]) -> None:
    with _explained(self._directory):
      for name, value in values.items():
        if math.isfinite(value):  # TensorBoard has no place for others, and warns of each
          self._put(step, summary=self._scalar(name, value))

  def _put(self, step: int, **what: Any) -> None:
    self._file.write_event(self._event(wall_time=time.time(), step=step, **what))

  def flush(self) -> None:
    with _explained(self._directory):
      self._file.flush()

  def close(self) -> None:
    with contextlib.suppress(OSError):
      self._file.close()


@contextlib.contextmanager
def _explained(path: pathlib.Path) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    raise cannot_write(path, error) from error


@contextlib.contextmanager
def _closed_by_errors(file: IO[str]) -> Iterator[None]:
  try:
    yield
  except BaseException:
    file.close()
    raise


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
