"""`jax.jit` with options for XLA where the device is a CPU and XLA's defaults are slow there."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Options = dict[str, Any]
# What runs a few times only: XLA need not spend its time on optimising it.
QUICK: Options = {"xla_backend_optimization_level": 0}
# Convolutions are Eigen's, products of matrices YNNPACK's. XLA leaves both to YNNPACK, which is
# slow at weights' gradients where maps are large: there images are convolved by the gradient, a
# kernel as large as they are (`benchmarks/step.py`; --plain is without).
TRAINING: Options = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}


class Jitted:
  """What `jax.jit(function, **how)` is, compiled with these options on CPU.

  Devices are looked up when it is first used and not before. Options that this version of XLA does
  not know are left out: they change how long it takes, and the last bits of what comes out.
  """

  def __init__(self, function: Callable[..., Any], options: Options, **how: Any):
    self.function, self.options, self.how = function, options, how

  @functools.cached_property
  def made(self) -> Any:
    cpu = jax.default_backend() == "cpu"
    options = {k: v for k, v in self.options.items() if cpu and known(k, v)}
    return jax.jit(self.function, compiler_options=options or None, **self.how)

  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    return self.made(*args, **kwargs)

  def __getattr__(self, name: str) -> Any:
    return getattr(self.made, name)


@functools.cache
def known(name: str, value: Any) -> bool:
  """Whether this version of XLA takes the option."""
  try:
    jax.jit(lambda: jnp.zeros(()), compiler_options={name: value}).lower().compile()
  except jax.errors.JaxRuntimeError:
    return False
  return True
