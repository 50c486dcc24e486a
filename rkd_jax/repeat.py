"""One way to loop over convolutions: inner ascents, attacks, several steps per dispatch.

On CPU XLA runs a convolution inside `scan` or `while` some twenty times slower than outside, so
there the loop is unrolled (inside a program) or stays on the host (outside one). Accelerators get a
loop.
"""

from collections.abc import Callable
from typing import TypeVar

import jax

Carry = TypeVar("Carry")


def repeat(step: Callable[[int | jax.Array, Carry], Carry], carry: Carry, times: int) -> Carry:
  """step(times - 1, ... step(1, step(0, carry))).

  Args:
    step: (i, carry) -> carry of the same structure. Outside a program on CPU it is called with
      Python's i, once a step: jit it yourself.
    carry: any pytree of arrays.
    times: how often; static.
  """
  if jax.default_backend() == "cpu":
    for i in range(times):
      carry = step(i, carry)
    return carry
  return jax.lax.fori_loop(0, times, step, carry)
