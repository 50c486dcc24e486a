"""Strangers' checkpoints, read as data: whatever a file holds, nothing in it is run.

`read(path)` tells by a file's content what it is and returns its arrays, or raises a `RefusedError`
that says why not. Neither `torch` nor `pickle` is used, nor needed.
"""

from rkd_jax.interop.checkpoint import Checkpoint
from rkd_jax.interop.reading import read
from rkd_jax.interop.recognition import recognise
from rkd_jax.interop.refusals import RefusedError

__all__ = ["Checkpoint", "RefusedError", "read", "recognise"]
