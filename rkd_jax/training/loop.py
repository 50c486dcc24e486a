"""The only loop: evaluate and log -> save -> next batch -> update. Do not change the order.

What happens at step k sees the state after k rounds and precedes round k, so a run that stops
anywhere and starts again does everything once, in the same order, with the same numbers.
"""

import contextlib
import dataclasses
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from rkd_jax import hosts
from rkd_jax.errors import UserError
from rkd_jax.training import start, update
from rkd_jax.training.checkpoint import Checkpoints
from rkd_jax.training.state import Program, TrainState

Tree = Any
SYNC_SECONDS = 0.5  # how far the host may run ahead of the device
ASK_SECONDS = 2.0  # between two looks at the signals of all processes, where they are several


class Preempted(Exception):  # noqa: N818 (not a mistake of anybody's)
  """The process was asked to stop; everything is saved. `main` leaves with status 75."""


class StopSignal:
  """Whether SIGTERM, SIGINT or SIGHUP (the terminal is gone) has come to any process of the run; a
  second SIGINT interrupts at once.

  Attributes:
    name: of the signal that has come to this process; "": none has.
  """

  def __init__(self) -> None:
    self.name = ""
    self._old: dict[int, Any] = {}
    self._last, self._due, self._when = sys.maxsize, 0, time.monotonic()

  def __enter__(self) -> "StopSignal":
    try:
      for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # under nohup it is ignored, and stays so
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
          self._old[number] = signal.signal(number, self._note)
    except ValueError:  # not the main thread: whoever runs us there handles signals
      pass
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._old.items():
      signal.signal(number, handler)

  def asked(self, step: int) -> str:
    """The signal that has come to any process; looked at once in `ASK_SECONDS` of the slowest.

    All must call it, at the same steps.
    """
    if hosts.count() == 1:
      return self.name
    if self._last < step < self._due:
      return ""
    name, seconds = self._any()
    rounds = step - self._last  # not above 0 where a phase begins: how long one takes is not known
    ahead = int(ASK_SECONDS * rounds / max(seconds, 1e-3)) if rounds > 0 else 1
    self._last, self._due = step, step + max(1, ahead)
    return name

  def check(self, where: str) -> None:
    """Raises `Preempted` if a signal has come to any process. All must call it."""
    name, _ = self._any()
    self._last = sys.maxsize  # the next phase is another
    if name:
      raise Preempted(f"{name} came {where}; everything is saved.")

  def _any(self) -> tuple[str, float]:
    """(a signal that has come to some process, seconds since this was asked, of the slowest)."""
    told = hosts.every([self.name, time.monotonic() - self._when])
    self._when = time.monotonic()
    return next((name for name, _ in told if name), ""), max(seconds for _, seconds in told)

  def _note(self, number: int, _frame: Any) -> None:
    if self.name and number == signal.SIGINT:
      raise KeyboardInterrupt
    if not self.name:
      self.name = signal.Signals(number).name
      with contextlib.suppress(
        OSError
      ):  # not `print`: the signal may have come in the middle of one
        os.write(2, b"\nStopping as soon as everything is saved. Ctrl-C stops at once.\n")


@dataclasses.dataclass
class Hooks:
  """What a phase's owner wants to do at the loop's seams.

  Attributes:
    evaluate: state -> {name: number}, added to each line of metrics.
    log: (step, {name: number}), once for each line.
    flush: called before a checkpoint is written: no line may be younger than it.
    tick: step reached, for a progress bar; called at most a few times a second.
  """

  evaluate: Callable[[TrainState], Mapping[str, float]] = lambda state: {}
  log: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None
  flush: Callable[[], None] = lambda: None
  tick: Callable[[int], None] = lambda step: None


@dataclasses.dataclass
class Running:
  """Everything that a phase holds beside its state while it runs."""

  program: Program
  roles: Mapping[str, Any]
  stream: Any
  frozen: Tree
  example: Any
  log_every: int
  save_every: int
  hooks: Hooks = dataclasses.field(default_factory=Hooks)


def train(
  phase: Running,
  state: TrainState,
  checkpoints: Checkpoints,
  stop: StopSignal,
  stopped: bool = False,
) -> TrainState:
  """Runs the phase from wherever `state` stands to its end.

  Args:
    stopped: the restored state is where the method had stopped early.

  Raises:
    Preempted: a signal came; the state is saved.
    UserError: the loss is not finite.
  """
  program, rounds, method = phase.program, phase.program.rounds, phase.program.method
  step = restored = int(state.step)
  synced = time.monotonic()
  with jax.transfer_guard("disallow"):
    while True:
      at_line = step % phase.log_every == 0 or step >= rounds
      done = stopped or step >= rounds
      if at_line and step > restored:
        metrics = {**read(state), **phase.hooks.evaluate(state)}
        check_finite(step, metrics)
        done |= method.stop(metrics)
        phase.hooks.log(step, metrics | ({"stopped": 1.0} if done and step < rounds else {}))
        state = update.zero_metrics(program, state)
      signalled = stop.asked(step)
      if signalled or (step > restored and (step % phase.save_every == 0 or done)):
        phase.hooks.flush()
        checkpoints.save(step, state)
      if signalled:
        checkpoints.close()
        raise Preempted(f"{signalled} came at step {step} of {rounds}; the state is saved.")
      if done:
        return state
      state = redrawn(phase, state, step)
      state = update.play_round(program, state, phase.frozen, phase.stream.source(step))
      step += 1
      if time.monotonic() - synced > SYNC_SECONDS:
        jax.block_until_ready(state.step)
        synced = time.monotonic()
        phase.hooks.tick(step)


def redrawn(phase: Running, state: TrainState, step: int) -> TrainState:
  """At the start of an epoch, the state with the roles that the method draws anew."""
  epoch, within = divmod(step, phase.stream.steps_per_epoch)
  names = phase.program.method.reset(epoch) if epoch and not within else ()
  if not names:
    return state
  with jax.transfer_guard("allow"):
    return start.redraw(
      phase.program,
      phase.roles,
      state,
      phase.frozen,
      names,
      phase.stream.seed,
      epoch,
      phase.example,
    )


def read(state: TrainState) -> dict[str, float]:
  """The means of what was counted since the last line."""
  counted = jax.device_get(state.metrics)
  return {name: float(total / n) if n else math.nan for name, (total, n) in counted.items()}


def check_finite(step: int, metrics: Mapping[str, float]) -> None:
  wrong = [
    name for name, value in metrics.items() if not math.isfinite(value) and name.endswith("loss")
  ]
  if wrong:
    found = ", ".join(f"{name} is {metrics[name]}" for name in wrong)
    raise UserError(
      f"Training diverged: at step {step} {found}. "
      f"Lower optimizer.learning_rate, or set optimizer.clip (say 1.0)."
    )
