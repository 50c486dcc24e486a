"""A graph of ONNX's operations as it is put together, before it is a file."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rkd_jax.export import values
from rkd_jax.export.values import BATCH, Constant, Lengths, Tensor, Value


@dataclasses.dataclass
class Node:
  """One operation. Names of inputs are of nodes' outputs, of constants, or the images."""

  op: str
  inputs: list[str]
  outputs: list[str]
  attributes: dict[str, Any]


class Graph:
  """Attributes:
  images: what comes in.
  nodes: in an order in which they can be computed.
  constants: {name: array}.
  output: the name of the logits.
  """

  def __init__(self, images: Tensor):
    self.images = images
    self.nodes: list[Node] = []
    self.constants: dict[str, np.ndarray] = {}
    self.output = ""
    self._made: dict[Any, str] = {}  # what is wanted twice is made once

  def node(self, op: str, *inputs: str, **attributes: Any) -> str:
    """Adds an operation with one output; its name."""
    return self.several(op, 1, *inputs, **attributes)[0]

  def several(self, op: str, outputs: int, *inputs: str, **attributes: Any) -> list[str]:
    """The same with so many outputs."""
    names = [f"{op.lower()}{len(self.nodes)}{f'_{i}' if i else ''}" for i in range(outputs)]
    self.nodes.append(Node(op, list(inputs), names, attributes))
    return names

  def constant(self, array: np.ndarray, kind: str = "const") -> str:
    """The name of a constant."""
    key = (kind, array.dtype.str, array.shape, array.tobytes())
    if key not in self._made:
      self._made[key] = f"{kind}.{len(self.constants)}"
      self.constants[self._made[key]] = array
    return self._made[key]

  def whole(self, *numbers: int) -> str:
    """A constant of whole numbers, as shapes and axes are given."""
    return self.constant(np.array(numbers, np.int64), "shape")

  def laid(self, value: Value, order: tuple[int, ...]) -> str:
    """The name of a value that lies in this order; a constant of no axes is left so."""
    if isinstance(value, Constant):
      array = value.array
      turned = array.transpose(order) if array.ndim == len(order) else array
      return self.constant(np.asarray(turned, order="C"))
    if value.order == order:
      return value.name
    turn = tuple(value.order.index(axis) for axis in order)
    key = (value.name, turn)
    if key not in self._made:
      self._made[key] = self.node("Transpose", value.name, perm=turn)
    return self._made[key]

  def reshaped(self, value: Tensor, shape: Lengths) -> Tensor:
    """The tensor in another shape, with as many elements."""
    if len(shape) == 3 < len(value.shape):  # pixels become tokens, which matrices take as they are
      order = values.plain(len(value.shape))
      value = Tensor(self.laid(value, order), value.shape, order)
    before, after = values.regrouped(value, shape)
    name, lies = self.laid(value, before), tuple(shape[axis] for axis in after)
    if tuple(value.shape[axis] for axis in before) == lies:
      return Tensor(name, shape, after)
    numbers = [-1 if n is None else n for n in lies]
    if BATCH in lies[:1] and value.shape[before[0]] is BATCH:
      numbers[0] = 0  # says that it is the same as before: the free axis keeps its name
    return Tensor(self.node("Reshape", name, self.whole(*numbers)), shape, after)

  def spread(self, value: Value, shape: Lengths, order: tuple[int, ...]) -> str:
    """The name of a value repeated to this shape along its axes of length 1, in this order."""
    name = self.laid(value, order)
    there = value.array.shape if isinstance(value, Constant) else value.shape
    if there == shape:
      return name
    return self.node("Expand", name, self._lengths([shape[axis] for axis in order]))

  def _lengths(self, lies: list[int | None]) -> str:
    """A shape whose free length is that of the input."""
    if BATCH not in lies:
      return self.whole(*[n or 0 for n in lies])
    at = self.images.lies().index(BATCH)
    batch = self.node("Shape", self.images.name, start=at, end=at + 1)
    parts = [batch if n is None else self.whole(n) for n in lies]
    return self.node("Concat", *parts, axis=0)


# (graph, inputs, the equation's parameters, the shapes of its outputs) -> outputs
Operation = Callable[[Graph, Sequence[Value], dict[str, Any], Sequence[Lengths]], Sequence[Value]]
