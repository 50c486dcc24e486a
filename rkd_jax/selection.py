"""Strengths are chosen per run by one rule, on the clean hold-out alone.

A field of a method that is given several numbers where it takes one is a strength with its grid:
`{"name": "consistency", "amplitude": (0.0, 0.25, 0.5)}`. Chosen is the largest value whose accuracy
on the hold-out is at most one point below that of strength 0, on the same images. So strength 0 is
tried, then the others from the largest down until one passes. Several strengths of one method are
chosen one after another, the inner methods' first; those not yet chosen are 0. Neither triggers nor
test images are seen.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from rkd_jax import lookup, recipes
from rkd_jax.errors import UserError
from rkd_jax.setup import Spec, make_method

POINT = 0.01  # of accuracy that a strength may cost
SMALLEST = 100  # hold-out images: with fewer, one image is more than a point
Path = tuple[str, ...]  # of a field in nested specs: ("base", "amplitude")


@dataclasses.dataclass(frozen=True)
class Choice:
  """One strength that was chosen.

  Attributes:
    path: of the field, as "base.amplitude".
    chosen: its value.
    hits: {value: bool[M]}, ascending, of those tried: which hold-out images its student got right.
  """

  path: str
  chosen: float
  hits: Mapping[float, np.ndarray]

  def accuracies(self) -> dict[float, float]:
    """{value: accuracy on the hold-out}."""
    return {value: float(np.mean(hits)) for value, hits in self.hits.items()}


def strengths(spec: Spec) -> dict[Path, tuple[float, ...]]:
  """{path: grid, ascending, 0 included} of a resolved spec, inner methods' first."""
  return dict(_strengths(spec, ()))


def _strengths(spec: Spec, above: Path) -> Iterator[tuple[Path, tuple[float, ...]]]:
  for field, value in spec.items():
    if isinstance(value, Mapping) and "name" in value:
      yield from _strengths(dict(value), (*above, field))
  defaults = recipes.fields(spec["name"])
  for field, value in spec.items():
    if isinstance(value, tuple | list) and not isinstance(defaults.get(field), tuple | list):
      grid = _grid(f"{spec['name']}.{field}", defaults.get(field), value)
      _check_zero(spec, field, value)
      yield (*above, field), grid


def _grid(name: str, default: Any, values: Any) -> tuple[float, ...]:
  number = recipes.is_number
  if not number(default) or not all(number(v) and v >= 0 for v in values) or len(set(values)) < 2:
    raise UserError(
      f"{name} is {values}; only a number's field takes a grid of strengths, which is several "
      "numbers >= 0, as (0.0, 0.1)."
    )
  kind = type(default)
  if not all(kind(v) == v for v in values):
    raise UserError(f"{name} is {values}; it takes whole numbers.")
  return tuple(sorted({kind(0), *map(kind, values)}))


def _check_zero(spec: Spec, field: str, values: Any) -> None:
  """Raises a `UserError` where a strength cannot be 0, with which all others are compared."""
  part = lookup.load("methods", spec["name"]) if recipes.is_method(spec["name"]) else None
  known = {"name", *(f.name for f in dataclasses.fields(part))} if part else set()
  if field not in known:  # a recipe's own
    return
  fixed = {key: value for key, value in recipes.without_grids(spec).items() if key in known}
  make_method(fixed)
  try:
    make_method({**fixed, field: 0})
  except UserError as error:
    raise UserError(
      f"{spec['name']}.{field} is {values}. Several numbers are a grid of strengths, and each is "
      f"compared with strength 0, which this field cannot have: {error} Give it one number."
    ) from error


def with_values(spec: Spec, values: Mapping[Path, float]) -> Spec:
  """The spec with numbers in place of its grids."""
  for (field, *rest), value in values.items():
    inner = with_values(spec[field], {tuple(rest): value}) if rest else value
    spec = spec | {field: inner}
  return spec


def candidates(spec: Spec) -> list[Spec]:
  """Specs in which each value of each grid stands once, the other strengths at 0; all that may be
  tried."""
  grids = strengths(spec)
  zeros = {path: grid[0] for path, grid in grids.items()}
  found = [with_values(spec, {**zeros, path: v}) for path, grid in grids.items() for v in grid]
  return found or [spec]


def check(label: str, spec: Spec, holdout: int) -> None:
  """Raises a `UserError` where the hold-out cannot tell one point of accuracy."""
  if (grids := strengths(spec)) and holdout < SMALLEST:
    named = ", ".join(".".join(path) for path in grids)
    raise UserError(
      f"{label} chooses strengths ({named}) on the clean hold-out, which has {holdout} images; one "
      f"point of accuracy needs at least {SMALLEST}. Raise config.data.holdout, or give one number "
      "for each."
    )


def largest(hits: Mapping[float, np.ndarray]) -> float:
  """The rule: the largest value within one point, paired, of strength 0."""
  least = np.mean(hits[0.0]) - POINT - 1e-9
  return max(value for value, right in hits.items() if np.mean(right) >= least)


def choose(spec: Spec, ask: Callable[[Spec], np.ndarray]) -> tuple[Spec, list[Choice]]:
  """The spec with every strength chosen, and how.

  Args:
    spec: resolved.
    ask: a spec without grids -> bool[M], which hold-out images its student gets right.
  """
  grids = strengths(spec)
  values, choices = {path: grid[0] for path, grid in grids.items()}, []
  for path, (zero, *others) in grids.items():
    hits = {}
    for value in (zero, *reversed(others)):
      hits[value] = ask(with_values(spec, {**values, path: value}))
      values[path] = largest(hits)
      if values[path]:
        break
    choices.append(Choice(".".join(path), values[path], dict(sorted(hits.items()))))
  return with_values(spec, values), choices
