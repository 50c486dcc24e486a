"""What a person sees while a run goes on: a bar with ETA per phase, lines without a terminal."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Ticker:
  """Moves one phase's bar."""

  def __init__(self, progress: Progress | None = None, task: int = 0):
    self._progress, self._task = progress, task

  def __call__(self, step: int) -> None:
    if self._progress:
      self._progress.update(self._task, completed=step)  # type: ignore[arg-type]


class Reporter:
  """Says what happens. `quiet` silences all but warnings."""

  def __init__(self, quiet: bool = False):
    self._out = Console(highlight=False, quiet=quiet)
    self._err = Console(highlight=False, stderr=True)

  def say(self, text: str) -> None:
    self._out.print(text, markup=False)

  def warn(self, text: str) -> None:
    self._err.print(f"warning: {text}", markup=False, style="yellow")

  def found(self, title: str) -> None:
    """A phase that was done before."""
    self.say(f"{title:<44}  found, made before")

  @contextmanager
  def phase(self, title: str, start: int, total: int) -> Iterator[Ticker]:
    """A phase from step `start` of `total`."""
    began = time.monotonic()
    if self._out.is_terminal and not self._out.quiet:
      counts = BarColumn(), MofNCompleteColumn(), TextColumn("steps, left:"), TimeRemainingColumn()
      columns = TextColumn("{task.description}"), *counts
      with Progress(*columns, console=self._out, transient=True) as progress:
        yield Ticker(progress, progress.add_task(title, total=total, completed=start))
    else:
      yield Ticker()
    self.say(f"{title:<44} {total - start:>6} steps {time.monotonic() - began:>7.1f} s")
