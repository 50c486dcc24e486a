"""What a person sees while a run goes on: bars in a terminal, lines elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Column

from rkd_jax import hosts
from rkd_jax.reporting.plan import Plan, Work, about
from rkd_jax.reporting.terminal import Patient


class Ticker:
  """Moves the bars of one phase, and says about how long it and the run still take."""

  def __init__(self, plan: Plan, title: str, start: int, total: int, bars: Progress | None = None):
    self._plan, self._title, self._start, self._total = plan, title, start, total
    self._bars, self._began, self._tasks = bars, time.monotonic(), []
    if bars:
      self._tasks = [bars.add_task(title, total=total, completed=start, left="")]
      if plan.total > 1:
        self._tasks.append(bars.add_task(self._place(), total=plan.total, left=""))
        self._move(self._tasks[1], plan.finished, plan.ahead())

  def __call__(self, step: int) -> None:
    if not self._bars:
      return
    made = max(step - self._start, 0)
    rate = (time.monotonic() - self._began) / made if made else None
    left = None if rate is None else rate * max(self._total - step, 0)
    self._move(self._tasks[0], step, left)
    if len(self._tasks) > 1:
      ahead = self._plan.ahead(self._title, rate)
      both = None if left is None or ahead is None else left + ahead
      self._move(self._tasks[1], self._plan.finished, both)

  def _place(self) -> str:
    return f"phase {self._plan.finished + 1} of {self._plan.total}"

  def _move(self, task: TaskID, completed: int, left: float | None) -> None:
    assert self._bars
    self._bars.update(task, completed=completed, left=about(left))


class Reporter:
  """Says what happens. `quiet` silences all but warnings, `debug` tells more. Of several processes
  of a run the first alone speaks."""

  def __init__(self, quiet: bool = False, debug: bool = False):
    self._out = Patient(highlight=False, quiet=quiet or not hosts.first())
    self._err = Patient(highlight=False, stderr=True, quiet=not hosts.first())
    self._debug, self._plan = debug, Plan()

  def say(self, text: str) -> None:
    # a terminal wraps long lines itself; elsewhere a path stays in one piece
    self._out.print(text, markup=False, soft_wrap=True)

  def warn(self, text: str) -> None:
    self._err.print(f"warning: {text}", markup=False, style="yellow", soft_wrap=True)

  def debug(self, text: str) -> None:
    if self._debug:
      self.say(f"debug: {text}")

  @property
  def columns(self) -> int:
    """How wide the output is."""
    return self._out.width

  def expect(self, phases: Iterable[Work]) -> None:
    """Names the phases of a run before the first of them, and each one's steps."""
    self._plan = Plan(phases)

  def found(self, title: str) -> None:
    """A phase that was done before."""
    self._plan.begin(title)
    self._plan.end(title)
    self.say(f"{title:<44}  found, made before")

  @contextmanager
  def phase(self, title: str, start: int, total: int) -> Iterator[Ticker]:
    """A phase from step `start` of `total`."""
    self._plan.begin(title)
    began = time.monotonic()
    if self._live():
      with _bars(self._out) as bars:
        yield Ticker(self._plan, title, start, total, bars)
    else:
      yield Ticker(self._plan, title, start, total)
    seconds = time.monotonic() - began
    self._plan.end(title, total - start, seconds)
    resumed = f", from step {start}" if start else ""
    self.say(f"{title:<44} {total:>6} steps {seconds:>7.1f} s{resumed}")

  def _live(self) -> bool:
    """Whether bars can be drawn: in a terminal that a person sees, not where one is only claimed
    (FORCE_COLOR) or cannot move its cursor."""
    out = self._out
    return sys.stdout.isatty() and not (out.quiet or out.is_dumb_terminal)


def _bars(console: Patient) -> Progress:
  """They vanish when a phase is done, and fit whatever width there is."""
  return Progress(
    TextColumn(
      "{task.description}", table_column=Column(ratio=3, no_wrap=True, overflow="ellipsis")
    ),
    BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=4)),
    MofNCompleteColumn(table_column=Column(no_wrap=True)),
    TextColumn("{task.fields[left]}", table_column=Column(min_width=10, no_wrap=True)),
    console=console,
    transient=True,
    expand=True,
  )
