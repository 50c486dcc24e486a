"""Operations of JAX in ONNX that move, join and cut axes, and compute nothing."""

from collections.abc import Sequence

import numpy as np

from rkd_jax.export.graph import Graph
from rkd_jax.export.values import Constant, Lengths, Tensor, Value, first_order, tensor, unknown


def reshape(graph, inputs, params, shapes):
  return [graph.reshaped(tensor(inputs[0]), shapes[0])]


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
  value, turn = tensor(inputs[0]), list(params["permutation"])
  return [Tensor(value.name, shapes[0], tuple(turn.index(axis) for axis in value.order))]


def concatenate(graph, inputs, params, shapes):
  return [_joined(graph, inputs, params["dimension"], shapes[0])]


def _joined(graph: Graph, inputs: Sequence[Value], axis: int, shape: Lengths) -> Tensor:
  order = first_order(inputs, len(shape))
  names = [graph.spread(value, value.shape, order) for value in inputs]
  return Tensor(graph.node("Concat", *names, axis=order.index(axis)), shape, order)


def stack(graph, inputs, params, shapes):
  shape, axis = shapes[0], params.get("axis", params.get("dimension"))
  thin = tuple(1 if a == axis else n for a, n in enumerate(shape))
  return [_joined(graph, [graph.reshaped(tensor(v), thin) for v in inputs], axis, shape)]


def split(graph, inputs, params, shapes):
  value, sizes = tensor(inputs[0]), [int(n) for n in params["sizes"]]
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
  return [_cut(graph, tensor(inputs[0]), cuts, shapes[0])]


def _cut(graph: Graph, value: Tensor, cuts: dict[int, tuple[int, int, int]], shape: Lengths):
  """{axis: (begin, end, step)}."""
  if not cuts:
    return Tensor(value.name, shape, value.order)
  begins, ends, steps = (graph.whole(*(cut[i] for cut in cuts.values())) for i in range(3))
  axes = graph.whole(*(value.order.index(axis) for axis in cuts))
  return Tensor(graph.node("Slice", value.name, begins, ends, axes, steps), shape, value.order)


def gather(graph, inputs, params, shapes):
  """Rows, columns, windows by constant indices, as `x[:, ::2, 1:]` takes them."""
  value, index, numbers = tensor(inputs[0]), inputs[1], params["dimension_numbers"]
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
  value, config = tensor(inputs[0]), params["padding_config"]
  if any(inner or low < 0 or high < 0 for low, high, inner in config):
    raise unknown("padding between pixels, or less than none")
  pads = [int(config[axis][side]) for side in (0, 1) for axis in value.order]
  filler = graph.laid(inputs[1], ())
  return [Tensor(graph.node("Pad", value.name, graph.whole(*pads), filler), shapes[0], value.order)]
