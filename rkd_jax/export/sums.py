"""Operations of JAX in ONNX that go over axes: sums, windows, convolutions and products."""

from collections.abc import Sequence

import numpy as np

from rkd_jax.export.graph import Graph, Operation
from rkd_jax.export.values import BATCH, Constant, Lengths, Tensor, plain, tensor, unknown


def reduce_(op: str) -> Operation:
  def call(graph, inputs, params, shapes):
    value, axes = tensor(inputs[0]), params["axes"]
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
    value, window = tensor(inputs[0]), params["window_dimensions"]
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
    graph.laid(tensor(value), tuple(left)),
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
    return [_times(graph, tensor(left), right, contract, shapes[0], first=False)]
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
