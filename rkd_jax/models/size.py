"""How large a network is: its parameters, and its multiplications for one image."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from rkd_jax.models.network import Network


def params(network: Network) -> int:
  """Learned numbers, without running statistics."""
  made = jax.eval_shape(network.init, jax.random.key(0))
  return sum(leaf.size for leaf in jax.tree.leaves(made["params"]))


def macs(network: Network) -> int:
  """Multiply-adds of all convolutions and matrix products for one image, in evaluation.

  As papers and fvcore count them: norms, activations, pools and additions are left out. Twice as
  many are the floating-point operations.
  """
  made = jax.eval_shape(network.init, jax.random.key(0))
  image = jax.ShapeDtypeStruct((1, *network.image_shape), jnp.float32)
  answer = lambda made, image: network.apply(made, image, train=False)[0].logits  # noqa: E731
  return _count(jax.make_jaxpr(answer)(made, image).jaxpr)


def _count(jaxpr: Any) -> int:
  """Multiply-adds of a program and of those within it (a scanned one as often as it runs)."""
  total = 0
  for equation in jaxpr.eqns:
    name, inputs = equation.primitive.name, equation.invars
    size = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
    if name == "conv_general_dilated":
      kernel, place = inputs[1].aval.shape, equation.params["dimension_numbers"].rhs_spec[0]
      total += size * math.prod(kernel) // kernel[place]
    elif name == "dot_general":
      axes = equation.params["dimension_numbers"][0][0]
      total += size * math.prod(inputs[0].aval.shape[axis] for axis in axes)
    within = sum(_count(program) for program in _programs(equation.params))
    total += within * (equation.params["length"] if name == "scan" else 1)
  return total


def _programs(values: Any) -> list[Any]:
  """The programs among an operation's parameters."""
  if isinstance(values, dict | list | tuple):
    items = values.values() if isinstance(values, dict) else values
    return [program for item in items for program in _programs(item)]
  program = getattr(values, "jaxpr", values)
  return [program] if hasattr(program, "eqns") else []
