"""A stranger's file, mapped into memory: nothing is copied until somebody reads an array."""

import hashlib
import mmap
import os
import stat

import numpy as np

from rkd_jax.errors import UserError
from rkd_jax.interop.refusals import RefusedError, printable


class Source:
  """A regular file. Its bytes must not be changed by others while arrays of it are in use.

  Attributes:
    path: as given.
    size: in bytes.
    sha256: of the bytes, in hex.
    view: read-only bytes, mapped.
  """

  def __init__(self, path: str):
    """Opens, hashes and maps it.

    Raises:
      UserError: if it is not there, no regular file (a pipe would wait for ever), or not readable.
      RefusedError: if it is empty.
    """
    self.path = path
    try:
      descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _BINARY)
      with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
          raise UserError(f"{printable(path)} is no regular file. Name a checkpoint's file.")
        self.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        self.size = status.st_size
        if not self.size:
          raise RefusedError("it is empty, as a download that failed leaves it")
        self.view = memoryview(mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:  # the latter: it shrank meanwhile, or a name with NUL
      why = getattr(error, "strerror", None) or error
      raise UserError(
        f"Cannot read {printable(path)}: {why}. Check its name and permissions."
      ) from error


_BINARY = getattr(os, "O_BINARY", 0)  # Windows


def release(view: memoryview) -> None:
  """Gives back the memory that holds what was read of a mapped file; it can be read again."""
  if isinstance(view.obj, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
    view.obj.madvise(mmap.MADV_DONTNEED)


def as_bytes(view: memoryview) -> np.ndarray:
  """uint8[N], not copied, read-only."""
  found = np.frombuffer(view, np.uint8) if len(view) else np.zeros(0, np.uint8)
  found.flags.writeable = False
  return found
