"""What stands on the stack of the pickle machine instead of objects: records that do nothing."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Global:
  """A name of the allow-list. `at` says where the pickle asks for it."""

  name: str
  at: str


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Storage:
  """Attributes:
  key: under which the file holds its bytes.
  dtype: of an element.
  numel: how many elements.
  """

  key: str
  dtype: np.dtype
  numel: int


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Tensor:
  """A view of a storage: offset and strides in elements of `dtype`, not yet checked."""

  storage: Storage
  dtype: np.dtype
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


@dataclasses.dataclass(slots=True, eq=False)
class NumpyType:
  """numpy.dtype as a pickle makes it: first its kind and size, later its byte order."""

  code: str

  @property
  def dtype(self) -> np.dtype:
    return np.dtype(self.code)


@dataclasses.dataclass(slots=True, eq=False)
class NumpyArray:
  """numpy.ndarray as a pickle makes it: first nothing, later what it holds."""

  array: np.ndarray | None = None


@dataclasses.dataclass(slots=True, eq=False)
class Opaque:
  """An object of a class that is not known here: its name and what the pickle says it holds.

  `items`: of one that is a kind of list or dictionary.
  """

  name: str
  args: Any = ()
  state: Any = None
  items: list | dict | None = None


class Ordered(dict):
  """collections.OrderedDict."""

  __slots__ = ()
