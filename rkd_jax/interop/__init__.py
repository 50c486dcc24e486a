"""Strangers' checkpoints, read as data: whatever a file holds, nothing in it is run.

`read(path)` tells by a file's content what it is and returns its arrays, or raises a `RefusedError`
that says why not. Neither `torch` nor `pickle` is used, nor needed. `convert(checkpoint)` makes one
of our networks of it, or says what is nearest.
"""

from rkd_jax.interop.checkpoint import Checkpoint
from rkd_jax.interop.conversion import convert
from rkd_jax.interop.converted import Converted
from rkd_jax.interop.reading import read
from rkd_jax.interop.recognition import recognise
from rkd_jax.interop.refusals import RefusedError

__all__ = ["Checkpoint", "Converted", "RefusedError", "convert", "read", "recognise"]
