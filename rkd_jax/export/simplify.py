"""Smaller graphs that compute the same: norms go into the convolutions before them.

Whatever multiplies by constants and adds constants is one scale and one shift, in double precision
until it is written; behind a convolution or a matrix these are its weights and its bias.
"""

import dataclasses
from collections import Counter

import numpy as np

from rkd_jax.export.graph import Graph, Node


@dataclasses.dataclass
class Affine:
  """`base * scale + shift`, broadcast as the base lies."""

  base: str
  scale: np.ndarray
  shift: np.ndarray


def _number(value: float) -> np.ndarray:
  return np.array(value, np.float64)


def simplify(graph: Graph) -> None:
  """Rewrites the graph's nodes."""
  Folding(graph).run()
  _unused(graph)


class Folding:
  """One pass over the nodes in order; affine steps wait until something else needs them."""

  def __init__(self, graph: Graph):
    self.graph, self.nodes = graph, graph.nodes
    self.uses = Counter(name for node in self.nodes for name in node.inputs)
    self.uses[graph.output] += 1
    self.waiting: dict[str, Affine] = {}
    self.made: dict[str, Node] = {}  # by the name of what they compute
    self.same: dict[str, str] = {}  # what turned out to be another value

  def run(self) -> None:
    self.graph.nodes = []
    for node in self.nodes:
      step = self._step(node)
      if step:
        self.waiting[node.outputs[0]] = step
      else:
        node.inputs = [self._settled(name) for name in node.inputs]
        self._add(node)
    self.graph.output = self._settled(self.graph.output)

  def _constant(self, name: str) -> np.ndarray | None:
    found = self.graph.constants.get(name)
    return found if found is not None and found.dtype == np.float32 else None

  def _step(self, node: Node) -> Affine | None:
    """The node as an affine step, joined with those that it follows."""
    if node.op == "Neg":
      return self._after(node.inputs[0], _number(-1), _number(0))
    if node.op not in ("Add", "Sub", "Mul", "Div"):
      return None
    left, right = (self._constant(name) for name in node.inputs)
    if (left is None) == (right is None) or (node.op == "Div" and left is not None):
      return None
    name = node.inputs[0] if left is None else node.inputs[1]
    value = np.asarray(right if left is None else left, np.float64)
    value = _number(value.flat[0]) if (value == value.flat[0]).all() else value
    if node.op in ("Mul", "Div"):
      return self._after(name, value if node.op == "Mul" else np.asarray(1 / value), _number(0))
    if node.op == "Add" or left is None:
      return self._after(name, _number(1), value if node.op == "Add" else -value)
    return self._after(name, _number(-1), value)

  def _after(self, name: str, scale: np.ndarray, shift: np.ndarray) -> Affine:
    before = self.waiting.get(name)
    if before is None or self.uses[name] > 1:
      return Affine(self._settled(name), scale, shift)
    del self.waiting[name]
    return Affine(before.base, before.scale * scale, before.shift * scale + shift)

  def _settled(self, name: str) -> str:
    """The name of a value that is computed."""
    if name in self.waiting:
      self._take(name, self._write(name, self.waiting.pop(name)))
    return self.same.get(name, name)

  def _take(self, name: str, other: str) -> None:
    """Whoever used the one uses the other from now on."""
    self.same[name] = other
    self.uses[other] += self.uses[name] - 1

  def _write(self, name: str, step: Affine) -> str:
    before = self.made.get(step.base)
    if (step.scale == 1).all() and (step.shift == 0).all():
      return step.base
    if before and self.uses[step.base] == 1:
      if before.op == "Conv" and self._channels(step):
        return self._into_convolution(before, step)
      if before.op == "MatMul" and self._columns(before, step):
        return self._into_matrix(before, step)
      if before.op == "ReduceSum" and step.scale.ndim == 0:
        step = self._into_mean(before, step)
    for op, value, neutral in (("Mul", step.scale, 1), ("Add", step.shift, 0)):
      if (value != neutral).any():
        made = Node(op, [step.base, self._new(value)], [f"{op.lower()}_{name}"], {})
        step = dataclasses.replace(step, base=self._insert(made))
    return step.base

  def _channels(self, step: Affine) -> bool:
    """Whether it is one number for each channel at most."""
    return all(
      value.ndim == 0 or (value.ndim == 4 and value.size == value.shape[1])
      for value in (step.scale, step.shift)
    )

  def _columns(self, node: Node, step: Affine) -> bool:
    """The same for each column of the constant matrix that the node multiplies with."""
    matrix = self._constant(node.inputs[1])
    if matrix is None:
      return False
    return all(
      v.ndim == 0 or (v.shape[-1:] == matrix.shape[-1:] and v.size == v.shape[-1])
      for v in (step.scale, step.shift)
    )

  def _into_convolution(self, node: Node, step: Affine) -> str:
    kernel = np.asarray(self.graph.constants[node.inputs[1]], np.float64)
    bias = self.graph.constants[node.inputs[2]] if len(node.inputs) > 2 else _number(0)
    scale, shift = (
      np.broadcast_to(value.reshape(-1) if value.ndim else value, len(kernel))
      for value in (step.scale, step.shift)
    )
    moved = np.asarray(bias, np.float64) * scale + shift
    node.inputs[1] = self._new(kernel * scale[:, None, None, None], "kernel")
    node.inputs[2:] = [self._new(moved, "bias")] if moved.any() or len(node.inputs) > 2 else []
    return node.outputs[0]

  def _into_matrix(self, node: Node, step: Affine) -> str:
    matrix = np.asarray(self.graph.constants[node.inputs[1]], np.float64)
    width = matrix.shape[-1]
    scale, shift = (
      np.broadcast_to(v.reshape(-1) if v.ndim else v, width) for v in (step.scale, step.shift)
    )
    node.inputs[1] = self._new(matrix * scale, "kernel")
    if not shift.any():
      return node.outputs[0]
    if step.shift.ndim == 2 and node.op == "MatMul":  # of single rows: one operation has both
      node.op, node.inputs = "Gemm", [*node.inputs, self._new(shift, "bias")]
      return node.outputs[0]
    made = Node("Add", [node.outputs[0], self._new(shift, "bias")], [f"{node.outputs[0]}_b"], {})
    return self._insert(made)

  def _into_mean(self, node: Node, step: Affine) -> Affine:
    """A sum that is divided by the number of its terms; the axes' lengths say which that is."""
    count = node.attributes.pop("count", None)
    if count is None or abs(float(step.scale) * count - 1) > 1e-6:
      return step
    axes = [int(axis) for axis in self.graph.constants[node.inputs[1]]]
    node.op, node.inputs = "ReduceMean", node.inputs[:1]
    node.attributes["axes"] = axes
    return dataclasses.replace(step, scale=_number(1))

  def _new(self, value: np.ndarray, kind: str = "const") -> str:
    return self.graph.constant(np.asarray(value, np.float32, order="C"), kind)

  def _insert(self, node: Node) -> str:
    self.uses[node.outputs[0]] = 1
    return self._add(node)

  def _add(self, node: Node) -> str:
    """Adds a node, as one operation with the one before where ONNX has it."""
    if node.op in ("Max", "Min") and self._constant(node.inputs[0]) is not None:
      node.inputs.reverse()
    bound = self._constant(node.inputs[1]) if node.op in ("Max", "Min") else None
    if bound is not None and bound.ndim == 0:
      if node.op == "Max" and np.isneginf(bound):
        self._take(node.outputs[0], node.inputs[0])
        return node.inputs[0]
      self._bounded(node, bound)
    self.graph.nodes.append(node)
    for name in node.outputs:
      self.made[name] = node
    return node.outputs[0]

  def _bounded(self, node: Node, bound: np.ndarray) -> None:
    """A maximum with 0 is a ReLU; a minimum after that is a Clip."""
    before = self.made.get(node.inputs[0])
    if node.op == "Max" and bound == 0:
      node.op, node.inputs = "Relu", node.inputs[:1]
    elif node.op == "Min" and before and before.op == "Relu" and self.uses[node.inputs[0]] == 1:
      zero, high = self._new(_number(0)), node.inputs[1]
      node.op, node.inputs = "Clip", [before.inputs[0], zero, high]


def _unused(graph: Graph) -> None:
  """Leaves out what the logits do not depend on."""
  wanted, kept = {graph.output}, []
  for node in reversed(graph.nodes):
    if wanted & set(node.outputs):
      wanted |= set(node.inputs)
      kept.append(node)
  graph.nodes = kept[::-1]
  graph.constants = {name: array for name, array in graph.constants.items() if name in wanted}
