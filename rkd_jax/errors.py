"""Errors for people: what was given, what was expected, what to do."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
  """A mistake the user can mend. `main` prints its message without a traceback and exits with 2."""


def nearest(name: str, known: Iterable[str]) -> str:
  """A sentence that helps with an unknown `name`: the nearest of `known`, and all of them."""
  known = sorted(known)
  close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
  hint = f"Did you mean {close[0]!r}? " if close else ""
  return f"{hint}There are: {', '.join(known) or 'none'}."


def check_range(what: str, value: float, low: float, high: float) -> None:
  """Raises a `UserError` unless low <= value <= high (so NaN is refused too)."""
  if not low <= value <= high:
    raise UserError(f"{what} is {value}; it must lie between {low} and {high}.")
