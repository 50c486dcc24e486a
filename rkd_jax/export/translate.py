"""From a network to a graph: JAX's own program of its evaluation, one equation after the other.

Whatever is known beforehand (weights, statistics, shapes) is computed here, not in the graph.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from rkd_jax.export import operations
from rkd_jax.export.graph import Graph
from rkd_jax.export.values import BATCH, Constant, Lengths, Tensor, Value, constant, plain, unknown
from rkd_jax.models.network import Network

CHANNELS_FIRST = (0, 3, 1, 2)
_NUMPY = {  # what folding would otherwise compile a program for, each shape its own
  "add": np.add,
  "sub": np.subtract,
  "mul": np.multiply,
  "div": np.divide,
  "rsqrt": lambda x: (1 / np.sqrt(x)).astype(x.dtype),
}


def graph(network: Network, variables: Any, layout: str) -> Graph:
  """The network's evaluation: images in [0, 1] -> logits.

  Args:
    layout: of the images, float[B, C, H, W] ("nchw") or float[B, H, W, C] ("nhwc").

  Raises:
    UserError: it computes something that is not translated.
  """
  order = CHANNELS_FIRST if layout == "nchw" else plain(4)
  made = Graph(Tensor("images", (BATCH, *network.image_shape), order))
  program = traced(network, variables)
  (logits,) = run(made, program.jaxpr, [constant(c) for c in program.consts], [made.images])
  made.output = made.laid(logits, plain(2))
  return made


def traced(network: Network, variables: Any) -> Any:
  """JAX's program of the evaluation of any number of images; the variables are constants in it."""
  (batch,) = jax.export.symbolic_shape("batch")
  images = jax.ShapeDtypeStruct((batch, *network.image_shape), jnp.float32)
  held = jax.tree.map(np.asarray, variables)
  return jax.make_jaxpr(lambda x: network.apply(held, x, train=False)[0].logits)(images)


def run(
  made: Graph, program: Any, constants: Sequence[Value], inputs: Sequence[Value]
) -> list[Value]:
  """The program's outputs; its operations are added to the graph."""
  known: dict[Any, Value] = dict(zip(program.constvars, constants, strict=True))
  known |= zip(program.invars, inputs, strict=True)

  def read(variable: Any) -> Value:
    if isinstance(variable, Literal):
      return constant(np.asarray(variable.val, getattr(variable.aval, "dtype", None)))
    return known[variable]

  for equation in _needed(program):
    given = [read(variable) for variable in equation.invars]
    shapes = [_lengths(variable.aval) for variable in equation.outvars]
    known |= zip(equation.outvars, _equation(made, equation, given, shapes), strict=True)
  return [read(variable) for variable in program.outvars]


def _needed(program: Any) -> list[Any]:
  """The equations that the outputs depend on: features that nobody asked for are left out."""
  wanted = {id(v) for v in program.outvars}
  kept = []
  for equation in reversed(program.eqns):
    if wanted & {id(v) for v in equation.outvars}:
      wanted |= {id(v) for v in equation.invars}
      kept.append(equation)
  return kept[::-1]


def _equation(
  made: Graph, equation: Any, given: Sequence[Value], shapes: Sequence[Lengths]
) -> Sequence[Value]:
  params, name = equation.params, equation.primitive.name
  if (within := _within(params)) is not None:
    program = getattr(within, "jaxpr", within)
    held = [constant(c) for c in getattr(within, "consts", ())]
    return run(made, program, held, given)
  if all(isinstance(v, Constant) and v.whole for v in given) and not any(
    BATCH in s for s in shapes
  ):
    return _folded(equation, [v.array for v in given if isinstance(v, Constant)])
  return operations.known(name)(made, given, params, shapes)


def _within(params: Mapping[str, Any]) -> Any:
  """The program that an equation only calls (`jit`, a function with a gradient of its own)."""
  for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
    if key in params:
      return params[key]
  return None


def _folded(equation: Any, arrays: Sequence[np.ndarray]) -> list[Value]:
  if equation.primitive.name in _NUMPY and all(x.dtype == np.float32 for x in arrays):
    return [constant(_NUMPY[equation.primitive.name](*arrays))]
  if equation.primitive.name == "reshape":
    return [constant(arrays[0].reshape(equation.outvars[0].aval.shape))]
  found = equation.primitive.bind(*arrays, **equation.params)
  return [constant(x) for x in (found if equation.primitive.multiple_results else [found])]


def _lengths(aval: Any) -> Lengths:
  return tuple(_length(n) for n in aval.shape)


def _length(n: Any) -> int | None:
  if not jax.export.is_symbolic_dim(n):
    return int(n)
  if str(n) != "batch":
    raise unknown(f"a shape that is {n}: images are not kept apart from each other")
  return BATCH
