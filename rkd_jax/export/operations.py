"""What each of JAX's primitives is in ONNX: the ones that networks in evaluation are made of."""

from collections.abc import Callable, Sequence

import numpy as np

from rkd_jax.export import axes, sums
from rkd_jax.export.graph import Operation
from rkd_jax.export.values import Constant, Tensor, first_order, tensor, unknown


def known(name: str) -> Operation:
  """The operation of a primitive's name; a `UserError` where there is none."""
  if name not in OPERATIONS:
    raise unknown(name)
  return OPERATIONS[name]


def each(op: str, first: Callable[..., Sequence[str]] | None = None) -> Operation:
  """An operation on elements. `first`: further inputs that come before, made from the graph."""

  def call(graph, inputs, params, shapes):
    order = first_order(inputs, len(shapes[0]))
    names = [graph.laid(value, order) for value in inputs]
    return [Tensor(graph.node(op, *(first(graph) if first else ()), *names), shapes[0], order)]

  return call


def then(*ops: str) -> Operation:
  """Operations on elements of one input, one after the other."""

  def call(graph, inputs, params, shapes):
    value = tensor(inputs[0])
    name = value.name
    for op in ops:
      name = graph.node(op, name)
    return [Tensor(name, shapes[0], value.order)]

  return call


def same(graph, inputs, params, shapes):
  """What changes no value."""
  return list(inputs)


def square(graph, inputs, params, shapes):
  value = tensor(inputs[0])
  return [Tensor(graph.node("Mul", value.name, value.name), shapes[0], value.order)]


def integer_pow(graph, inputs, params, shapes):
  value = tensor(inputs[0])
  power = graph.constant(np.float32(params["y"]))
  return [Tensor(graph.node("Pow", value.name, power), shapes[0], value.order)]


def erfc(graph, inputs, params, shapes):
  value = tensor(inputs[0])
  one = graph.constant(np.float32(1))
  name = graph.node("Sub", one, graph.node("Erf", value.name))
  return [Tensor(name, shapes[0], value.order)]


def clamp(graph, inputs, params, shapes):
  low, value, high = inputs
  value, order = tensor(value), tensor(value).order
  name = graph.node("Max", value.name, graph.laid(low, order))
  return [Tensor(graph.node("Min", name, graph.laid(high, order)), shapes[0], order)]


def select(graph, inputs, params, shapes):
  which, no, yes = inputs  # JAX names the case for 0 first
  order = first_order(inputs, len(shapes[0]))
  names = [graph.laid(value, order) for value in (which, yes, no)]
  return [Tensor(graph.node("Where", *names), shapes[0], order)]


def convert(graph, inputs, params, shapes):
  kind = np.dtype(params["new_dtype"])
  value = inputs[0]
  if isinstance(value, Constant):
    return [Constant(value.array.astype(kind), value.shape)]
  if kind != np.float32:
    raise unknown(f"numbers of type {kind}")
  return [Tensor(graph.node("Cast", value.name, to=1), shapes[0], value.order)]


OPERATIONS: dict[str, Operation] = {
  **{name: same for name in ("copy", "copy_p", "stop_gradient", "sharding_constraint")},
  **{name: each(op) for name, op in {
    "add": "Add", "add_any": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max",
    "min": "Min", "pow": "Pow", "eq": "Equal", "lt": "Less", "gt": "Greater",
    "le": "LessOrEqual", "ge": "GreaterOrEqual", "and": "And", "or": "Or",
  }.items()},
  **{name: then(op) for name, op in {
    "neg": "Neg", "abs": "Abs", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "tanh": "Tanh",
    "logistic": "Sigmoid", "erf": "Erf", "sign": "Sign", "floor": "Floor", "ceil": "Ceil",
    "not": "Not",
  }.items()},
  "rsqrt": then("Sqrt", "Reciprocal"), "erfc": erfc, "square": square, "integer_pow": integer_pow,
  "clamp": clamp, "select_n": select, "convert_element_type": convert,
  **{name: axes.reshape for name in ("reshape", "squeeze", "expand_dims")},
  "broadcast_in_dim": axes.broadcast, "transpose": axes.transpose, "concatenate": axes.concatenate,
  "stack": axes.stack, "split": axes.split, "slice": axes.slice_,
  "gather": axes.gather, "pad": axes.pad,
  "reduce_sum": sums.reduce_("ReduceSum"), "reduce_max": sums.reduce_("ReduceMax"),
  "reduce_min": sums.reduce_("ReduceMin"), "reduce_prod": sums.reduce_("ReduceProd"),
  "reduce_window_max": sums.pool("MaxPool"), "reduce_window_sum": sums.pool("AveragePool"),
  "conv_general_dilated": sums.convolution, "dot_general": sums.product,
}  # fmt: skip
