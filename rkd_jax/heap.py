"""Memory that a training step gives back is kept for the next one, where JAX computes on CPU.

glibc asks the kernel for each large buffer anew and returns it after use, so a step's temporaries,
up to gigabytes, are mapped and zeroed page by page every time. One arena that is never trimmed
hands out the same memory again. The process then stays as large as it once was.
"""

import ctypes
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Mapping

# <malloc.h>: parameter, value. More arenas would give large buffers to the kernel's mmap again.
SETTINGS = {"M_ARENA_MAX": (-8, 1), "M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1)}
OWN = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")  # variables of somebody who chose an allocator


def keep(environ: Mapping[str, str] = os.environ) -> bool:
  """Sets this up; call it before JAX makes its threads, since they keep the arenas they have.

  Returns:
    Whether it did: not beside an accelerator, whose hosts compute little and have many threads; not
    where the environment has settings of its own; not without glibc.
  """
  if not sys.platform.startswith("linux") or any(name.startswith(OWN) for name in environ):
    return False
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
  if mallopt is None or not only_cpu(environ):
    return False
  return all(mallopt(parameter, value) == 1 for parameter, value in SETTINGS.values())


def only_cpu(environ: Mapping[str, str] = os.environ) -> bool:
  """Whether JAX has no other devices: it is told so, or no plugin for any is installed."""
  if asked := environ.get("JAX_PLATFORMS"):
    return asked == "cpu"
  plugins = importlib.metadata.entry_points(group="jax_plugins")
  return not plugins and importlib.util.find_spec("libtpu") is None
