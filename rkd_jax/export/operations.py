"""What each of JAX's primitives is in ONNX: the ones that networks in evaluation are made of."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rkd_jax.errors import UserError
from rkd_jax.export.graph import Graph
from rkd_jax.export.values import BATCH, Constant, Lengths, Tensor, Value, plain

# (graph, inputs, the equation's parameters, the shapes of its outputs) -> outputs
Operation = Callable[[Graph, Sequence[Value], dict[str, Any], Sequence[Lengths]], Sequence[Value]]


def unknown(what: str) -> UserError:
  return UserError(
    f"The network computes {what}, which is not translated to ONNX. Export it with "
    "--format stablehlo, which takes everything that JAX has."
  )


def known(name: str) -> Operation:
  """The operation of a primitive's name; a `UserError` where there is none."""
  if name not in OPERATIONS:
    raise unknown(name)
  return OPERATIONS[name]


def _tensor(value: Value) -> Tensor:
  if isinstance(value, Constant):
    raise unknown("something on a constant that depends on the number of images")
  return value


def _order(values: Sequence[Value], rank: int) -> tuple[int, ...]:
  """The order that most need not turn for: the first tensor's."""
  return next((v.order for v in values if isinstance(v, Tensor) and v.order), plain(rank))


def each(op: str, first: Callable[..., Sequence[str]] | None = None) -> Operation:
  """An operation on elements. `first`: further inputs that come before, made from the graph."""

  def call(graph, inputs, params, shapes):
    order = _order(inputs, len(shapes[0]))
    names = [graph.laid(value, order) for value in inputs]
    return [Tensor(graph.node(op, *(first(graph) if first else ()), *names), shapes[0], order)]

  return call


def then(*ops: str) -> Operation:
  """Operations on elements of one input, one after the other."""

  def call(graph, inputs, params, shapes):
    value = _tensor(inputs[0])
    name = value.name
    for op in ops:
      name = graph.node(op, name)
    return [Tensor(name, shapes[0], value.order)]

  return call


def same(graph, inputs, params, shapes):
  """What changes no value."""
  return list(inputs)


def square(graph, inputs, params, shapes):
  value = _tensor(inputs[0])
  return [Tensor(graph.node("Mul", value.name, value.name), shapes[0], value.order)]


def integer_pow(graph, inputs, params, shapes):
  value = _tensor(inputs[0])
  power = graph.constant(np.float32(params["y"]))
  return [Tensor(graph.node("Pow", value.name, power), shapes[0], value.order)]


def erfc(graph, inputs, params, shapes):
  value = _tensor(inputs[0])
  one = graph.constant(np.float32(1))
  name = graph.node("Sub", one, graph.node("Erf", value.name))
  return [Tensor(name, shapes[0], value.order)]


def clamp(graph, inputs, params, shapes):
  low, value, high = inputs
  value, order = _tensor(value), _tensor(value).order
  name = graph.node("Max", value.name, graph.laid(low, order))
  return [Tensor(graph.node("Min", name, graph.laid(high, order)), shapes[0], order)]


def select(graph, inputs, params, shapes):
  which, no, yes = inputs  # JAX names the case for 0 first
  order = _order(inputs, len(shapes[0]))
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


def reshape(graph, inputs, params, shapes):
  return [graph.reshaped(_tensor(inputs[0]), shapes[0])]


def broadcast(graph, inputs, params, shapes):
  value, places, shape = inputs[0], params["broadcast_dimensions"], shapes[0]
  there = value.array.shape if isinstance(value, Constant) else value.shape
  thin: list[int | None] = [1] * len(shape)
  for place, length in zip(places, there, strict=True):
    thin[place] = length
  if isinstance(value, Constant):
    return [Constant(value.array.reshape([n or 0 for n in thin]), shape)]
  value = graph.reshaped(value, tuple(thin))
  return [Tensor(graph.spread(value, shape, value.order), shape, value.order)]


def transpose(graph, inputs, params, shapes):
  """Nothing is turned: what is said of the axes is."""
  value, turn = _tensor(inputs[0]), list(params["permutation"])
  return [Tensor(value.name, shapes[0], tuple(turn.index(axis) for axis in value.order))]


def concatenate(graph, inputs, params, shapes):
  return [_joined(graph, inputs, params["dimension"], shapes[0])]


def _joined(graph: Graph, inputs: Sequence[Value], axis: int, shape: Lengths) -> Tensor:
  order = _order(inputs, len(shape))
  names = [graph.spread(value, value.shape, order) for value in inputs]
  return Tensor(graph.node("Concat", *names, axis=order.index(axis)), shape, order)


def stack(graph, inputs, params, shapes):
  shape, axis = shapes[0], params.get("axis", params.get("dimension"))
  thin = tuple(1 if a == axis else n for a, n in enumerate(shape))
  return [_joined(graph, [graph.reshaped(_tensor(v), thin) for v in inputs], axis, shape)]


def split(graph, inputs, params, shapes):
  value, sizes = _tensor(inputs[0]), [int(n) for n in params["sizes"]]
  at = value.order.index(params["axis"])
  names = graph.several("Split", len(sizes), value.name, graph.whole(*sizes), axis=at)
  return [Tensor(name, s, value.order) for name, s in zip(names, shapes, strict=True)]


def slice_(graph, inputs, params, shapes):
  strides = params["strides"] or [1] * len(shapes[0])
  cuts = {
    axis: (int(begin), int(end), int(step))
    for axis, (begin, end, step) in enumerate(
      zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    )
    if shapes[0][axis] != inputs[0].shape[axis]
  }
  return [_cut(graph, _tensor(inputs[0]), cuts, shapes[0])]


def _cut(graph: Graph, value: Tensor, cuts: dict[int, tuple[int, int, int]], shape: Lengths):
  """{axis: (begin, end, step)}."""
  if not cuts:
    return Tensor(value.name, shape, value.order)
  begins, ends, steps = (graph.whole(*(cut[i] for cut in cuts.values())) for i in range(3))
  axes = graph.whole(*(value.order.index(axis) for axis in cuts))
  return Tensor(graph.node("Slice", value.name, begins, ends, axes, steps), shape, value.order)


def gather(graph, inputs, params, shapes):
  """Rows, columns, windows by constant indices, as `x[:, ::2, 1:]` takes them."""
  value, index, numbers = _tensor(inputs[0]), inputs[1], params["dimension_numbers"]
  if not isinstance(index, Constant) or numbers.operand_batching_dims:
    raise unknown("a choice among positions that depends on the image")
  array, cuts, thin = index.array, {}, list(value.shape)
  for place, axis in enumerate(numbers.start_index_map):
    line = np.unique(array[..., place])
    width = params["slice_sizes"][axis] if axis not in numbers.collapsed_slice_dims else 1
    if len(line) > 1 and (width != 1 or not _grid(array[..., place], len(line))):
      raise unknown("a choice of single pixels")
    step = int(line[1] - line[0]) if len(line) > 1 else 1
    if (np.diff(line) != step).any() and len(line) > 1:
      raise unknown("a choice of positions at uneven distances")
    begin = int(line[0])
    cuts[axis] = begin, begin + step * (len(line) - 1) + int(width), step
    thin[axis] = len(line) if len(line) > 1 else int(width)
  return [graph.reshaped(_cut(graph, value, cuts, tuple(thin)), shapes[0])]


def _grid(positions: np.ndarray, count: int) -> bool:
  """Whether positions ascend along one axis and are the same along all others."""
  axes = [axis for axis in range(positions.ndim) if (np.diff(positions, axis=axis) != 0).any()]
  if len(axes) != 1 or positions.shape[axes[0]] != count:
    return False
  return bool((np.diff(positions, axis=axes[0]) > 0).all())


def pad(graph, inputs, params, shapes):
  value, config = _tensor(inputs[0]), params["padding_config"]
  if any(inner or low < 0 or high < 0 for low, high, inner in config):
    raise unknown("padding between pixels, or less than none")
  pads = [int(config[axis][side]) for side in (0, 1) for axis in value.order]
  filler = graph.laid(inputs[1], ())
  return [Tensor(graph.node("Pad", value.name, graph.whole(*pads), filler), shapes[0], value.order)]


def reduce_(op: str) -> Operation:
  def call(graph, inputs, params, shapes):
    value, axes = _tensor(inputs[0]), params["axes"]
    at = sorted(value.order.index(axis) for axis in axes)
    if op == "ReduceSum":  # its axes became an input before the others' did
      lengths = [value.shape[axis] for axis in axes]
      count = {} if BATCH in lengths else {"count": int(np.prod(np.array(lengths)))}
      name = graph.node(op, value.name, graph.whole(*at), keepdims=0, **count)
    else:
      name = graph.node(op, value.name, axes=at, keepdims=0)
    rest = [axis for axis in range(len(value.shape)) if axis not in axes]
    order = tuple(rest.index(axis) for axis in value.order if axis in rest)
    return [Tensor(name, shapes[0], order)]

  return call


def pool(op: str) -> Operation:
  """Windows over the two axes of an image; sums are means times the window's size."""

  def call(graph, inputs, params, shapes):
    value, window = _tensor(inputs[0]), params["window_dimensions"]
    images = [a for a in range(len(window)) if (window[a], params["window_strides"][a]) != (1, 1)]
    dilated = {*params["base_dilation"], *params["window_dilation"]} != {1}
    padded = [a for a, sides in enumerate(params["padding"]) if any(sides) and a not in images]
    if len(images) != 2 or len(window) != 4 or dilated or padded:
      raise unknown("windows over other axes than an image's")
    rest = [a for a in value.order if a not in images]
    order = (*rest, *images)
    pads = [int(params["padding"][a][side]) for side in (0, 1) for a in images]
    sizes = [int(window[a]) for a in images]
    fields = {"kernel_shape": sizes, "pads": pads}
    fields["strides"] = [int(params["window_strides"][a]) for a in images]
    fields |= {"count_include_pad": 1} if op == "AveragePool" else {}
    name = graph.node(op, graph.laid(value, order), **fields)
    if op == "AveragePool":
      name = graph.node("Mul", name, graph.constant(np.float32(np.prod(sizes))))
    return [Tensor(name, shapes[0], order)]

  return call


def convolution(graph, inputs, params, shapes):
  value, kernel = inputs
  left, right, out = params["dimension_numbers"]
  inside = {*params["lhs_dilation"]} != {1} or params["batch_group_count"] != 1
  if not isinstance(kernel, Constant) or inside:
    raise unknown("a transposed convolution, or one whose kernel depends on the image")
  weights = kernel.array.transpose(right)
  name = graph.node(
    "Conv",
    graph.laid(_tensor(value), tuple(left)),
    graph.constant(np.ascontiguousarray(weights), "kernel"),
    kernel_shape=[int(n) for n in weights.shape[2:]],
    strides=[int(n) for n in params["window_strides"]],
    pads=[int(sides[i]) for i in (0, 1) for sides in params["padding"]],
    dilations=[int(n) for n in params["rhs_dilation"]],
    group=int(params["feature_group_count"]),
  )
  return [Tensor(name, shapes[0], tuple(out))]


def product(graph, inputs, params, shapes):
  """A matrix product: by a constant matrix, or of two stacks of matrices."""
  (contract, batch), (left, right) = params["dimension_numbers"], inputs
  if isinstance(left, Constant) and isinstance(right, Tensor) and not batch[0]:
    return [_times(graph, right, left, contract[::-1], shapes[0], first=True)]
  if isinstance(right, Constant) and not batch[0]:
    return [_times(graph, _tensor(left), right, contract, shapes[0], first=False)]
  names = []
  for side, value in enumerate(inputs):
    stack, ends = batch[side], contract[side]
    free = [axis for axis in range(len(value.shape)) if axis not in (*stack, *ends)]
    if len(free) != 1 or len(ends) != 1:
      raise unknown("a product of more than matrices")
    names.append(graph.laid(value, (*stack, *((*ends, *free) if side else (*free, *ends)))))
  return [Tensor(graph.node("MatMul", *names), shapes[0], plain(len(batch[0]) + 2))]


def _times(
  graph: Graph, value: Tensor, matrix: Constant, contract: Sequence[Sequence[int]], shape: Lengths,
  *, first: bool,
) -> Tensor:  # fmt: skip
  """The tensor by a constant: its other axes as they lie, then the constant's other axes.

  Args:
    contract: the axes of either that are summed over.
    first: whether the constant is the left one, so that JAX has its axes first.
  """
  (mine, its), array = contract, matrix.array
  if not matrix.whole:
    raise unknown("a product with something that depends on the number of images")
  rest = [axis for axis in value.order if axis not in mine]
  free = [axis for axis in range(array.ndim) if axis not in its]
  lengths, ends = tuple(value.shape[a] for a in rest), tuple(array.shape[a] for a in free)
  rows = int(np.prod([array.shape[axis] for axis in its]))
  order = (*rest, *mine)
  joint = Tensor(graph.laid(value, order), tuple(value.shape[a] for a in order), plain(len(order)))
  weights = np.ascontiguousarray(array.transpose((*its, *free)).reshape(rows, -1))
  name = graph.reshaped(joint, (*lengths, rows)).name
  made = graph.node("MatMul", name, graph.constant(weights, "kernel"))
  made = Tensor(made, (*lengths, weights.shape[1]), plain(len(rest) + 1))
  kept, places = sorted(rest), tuple(range(len(free)))
  mixed = tuple(kept.index(axis) + (len(free) if first else 0) for axis in rest)
  after = places if first else tuple(len(rest) + place for place in places)
  return Tensor(graph.reshaped(made, (*lengths, *ends)).name, shape, (*mixed, *after))


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
  **{name: reshape for name in ("reshape", "squeeze", "expand_dims")},
  "broadcast_in_dim": broadcast, "transpose": transpose, "concatenate": concatenate,
  "stack": stack, "split": split, "slice": slice_, "gather": gather, "pad": pad,
  "reduce_sum": reduce_("ReduceSum"), "reduce_max": reduce_("ReduceMax"),
  "reduce_min": reduce_("ReduceMin"), "reduce_prod": reduce_("ReduceProd"),
  "reduce_window_max": pool("MaxPool"), "reduce_window_sum": pool("AveragePool"),
  "conv_general_dilated": convolution, "dot_general": product,
}  # fmt: skip
