"""The arrays beside results.json, read without trusting them."""

import contextlib
import pathlib
import zipfile
from collections.abc import Iterator

import numpy as np

from rkd_jax.errors import UserError

Arrays = dict[str, np.ndarray]


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[Arrays]:
  """The arrays of an .npz; {} where there is no file.

  Pickles are refused. Whatever is wrong with the file, and with its arrays as far as the block
  looks at them, is a `UserError` that names it.
  """
  try:
    yield _read(path) if path.exists() else {}
  except (OSError, EOFError, LookupError, TypeError, ValueError, zipfile.BadZipFile) as error:
    raise UserError(
      f"{path} is broken ({error}). Delete it and run the same command again."
    ) from error


def _read(path: pathlib.Path) -> Arrays:
  # opened here: numpy leaves a broken archive's file open
  with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
    return {name: file[name] for name in file.files}
