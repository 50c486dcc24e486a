"""Standard output as it is: not UTF-8, closed by its reader, or not there at all."""

import codecs
import os
import sys
from typing import IO, Any

from rich.console import Console

VERBOSITY = ("quiet", "normal", "debug")
PLAIN = {"\u202f": " ", "\u2212": "-", "–": "-", "—": "-", "…": "...", "≤": "<=", "·": "-"}


def ready() -> None:
  """Lets stdout and stderr take any text, whatever they are encoded in.

  What an encoding lacks is written plainly (a minus as "-") or as an escape, not raised as an error
  at the end of a run.
  """
  codecs.register_error("plain", _plain)
  for name in ("stdout", "stderr"):
    stream: Any = getattr(sys, name)
    if stream is None:  # closed by whoever started us
      setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (for the rest of the process)
    elif hasattr(stream, "reconfigure"):
      stream.reconfigure(errors="plain")


def nobody_reads(stream: IO[str]) -> None:
  """After a BrokenPipeError: lets whatever is still written to the stream go nowhere."""
  nowhere = os.open(os.devnull, os.O_WRONLY)
  os.dup2(nowhere, stream.fileno())
  os.close(nowhere)


class Patient(Console):
  """A console that goes on when its reader has gone (`| head`): rich's own ends the process."""

  def on_broken_pipe(self) -> None:
    self.quiet = True
    nobody_reads(self.file)
    sys.stderr.write("warning: nobody reads the output any more; going on without it.\n")


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
  if not isinstance(error, UnicodeEncodeError):
    raise error
  found = error.object[error.start : error.end]
  if all(letter in PLAIN for letter in found):
    return "".join(PLAIN[letter] for letter in found), error.end
  return codecs.backslashreplace_errors(error)
