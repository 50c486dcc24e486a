"""Nested containers as flat names: tensors apart from all else."""

from collections.abc import Callable
from typing import Any

import numpy as np

from rkd_jax.interop import budget as limits
from rkd_jax.interop.budget import Budget
from rkd_jax.interop.refusals import RESAVE, RefusedError, shown
from rkd_jax.interop.values import Global, NumpyArray, NumpyType, Opaque, Storage, Tensor

Arrays = dict[str, np.ndarray]
_CONTAINERS = (dict, list, tuple, set)


class _Flat:
  def __init__(self, array: Callable[[Tensor], np.ndarray], budget: Budget):
    self.tensors: Arrays = {}
    self.metadata: dict[str, Any] = {}
    self._array, self._budget = array, budget
    self._made: dict[int, np.ndarray] = {}  # a tensor under two names is one array
    self._open: set[int] = set()  # containers that we are within

  def walk(self, value: Any, path: tuple[str, ...] = ()) -> None:
    if len(path) > limits.DEPTH:
      raise RefusedError(f"containers within containers, more than {limits.DEPTH} deep", RESAVE)
    if isinstance(value, Opaque):
      value = {"class": value.name, **_state(value)}
    if isinstance(value, _CONTAINERS) and not _is_plain(value):
      if id(value) in self._open:
        raise RefusedError("a container that holds itself: it was tampered with")
      self._open.add(id(value))
      self._budget.spend(200)  # what is shared is walked once for each of its names
      for key, item in items(value):
        self.walk(item, (*path, _key(key)))
      self._open.discard(id(value))
    else:
      self._leaf(value, path)

  def _leaf(self, value: Any, path: tuple[str, ...]) -> None:
    name = "/".join(path)
    self._budget.spend(200 + len(name))
    if name in self.tensors or name in self.metadata:
      raise RefusedError(f"two values are called '{shown(name)}'", RESAVE)
    array = self._numbers(value)
    if array is not None:
      self.tensors[name] = array
    else:
      self.metadata[name] = self._plain(value)

  def _numbers(self, value: Any) -> np.ndarray | None:
    if isinstance(value, Storage):
      value = Tensor(value, value.dtype, 0, (value.numel,), (1,))
    if isinstance(value, Tensor):
      if id(value) not in self._made:
        self._made[id(value)] = self._array(value)
      return self._made[id(value)]
    if isinstance(value, NumpyArray) and value.array is not None:
      kept = value.array
      return kept.astype(kept.dtype.newbyteorder("=")) if kept.dtype.kind in "biufc" else None
    return value if isinstance(value, np.ndarray) else None

  def _plain(self, value: Any) -> Any:
    """What is no tensor, as what JSON has, or a short text."""
    if isinstance(value, _CONTAINERS):
      self._budget.spend(64 * len(value))
      return [self._plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
      return value
    if isinstance(value, memoryview):
      return f"{len(value)} bytes"
    if isinstance(value, NumpyArray):
      return f"array of {value.array.dtype}" if value.array is not None else "array of nothing"
    if isinstance(value, (Global, NumpyType)):
      return value.name if isinstance(value, Global) else value.code
    return shown(value)  # a complex number, a type


def _state(value: Opaque) -> dict[Any, Any]:
  state = value.state[0] if type(value.state) is tuple and value.state else value.state
  found = {"arguments": value.args} if value.args else {}
  if value.items:
    found["items"] = value.items
  return {**found, **state} if type(state) is dict else found


def _is_plain(value: Any) -> bool:
  """Whether it is a list of nothing but numbers and text: one value."""
  simple = (bool, int, float, str, type(None))
  return not isinstance(value, dict) and all(isinstance(item, simple) for item in value)


def items(value: Any) -> Any:
  """(key, value) of a container."""
  return value.items() if isinstance(value, dict) else enumerate(value)


def _key(key: Any) -> str:
  name = str(key)
  if len(name) > limits.NAME:
    raise RefusedError(f"a key of {len(name)} characters, '{shown(name, 40)}'", RESAVE)
  return name


def flatten(
  value: Any, array: Callable[[Tensor], np.ndarray], budget: Budget
) -> tuple[Arrays, dict[str, Any]]:
  """({name: array}, {name: anything else}). Names are keys joined by "/".

  Args:
    value: containers of tensors, arrays, and plain values.
    array: what makes a tensor's array.
    budget: what names may cost.

  Raises:
    RefusedError: if containers are too deep or hold themselves, or two names are equal.
  """
  flat = _Flat(array, budget)
  flat.walk(value)
  return flat.tensors, flat.metadata
