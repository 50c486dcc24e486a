"""JSON without surprises: no key twice, no NaN, no depth that ends Python."""

import json
from typing import Any

from rkd_jax.interop import budget
from rkd_jax.interop.refusals import RefusedError, shown


def parse(text: memoryview, what: str) -> dict[str, Any]:
  """The object that `text` spells. Raises `RefusedError`, which calls it `what`."""
  if len(text) > budget.HEADER:
    raise RefusedError(f"its {what} has {len(text):,} bytes; {budget.HEADER:,} at most are read")
  try:
    found = json.loads(str(text, "utf-8"), object_pairs_hook=_once, parse_constant=_refuse)
  except (ValueError, RecursionError) as error:  # of decoding, of parsing, and of the hooks
    raise RefusedError(f"its {what} is no JSON ({shown(error, 120)})") from None
  if type(found) is not dict:
    raise RefusedError(f"its {what} is a {type(found).__name__}, not an object")
  return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    seen: set[str] = set()
    twice = next(key for key, _ in pairs if key in seen or seen.add(key))
    raise ValueError(f"the key '{shown(twice)}' stands there twice")
  return found


def _refuse(constant: str) -> None:
  raise ValueError(f"{constant} is not JSON")
