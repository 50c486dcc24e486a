"""Packages that only exports need."""

import importlib
from typing import Any

from rkd_jax.errors import UserError


def package(name: str, what: str) -> Any:
  """The module of this name; a `UserError` where it is not installed.

  `what`: needs it, for people.
  """
  try:
    return importlib.import_module(name)
  except ImportError as error:
    raise UserError(
      f"{what} needs the package {name.partition('.')[0]!r}, which cannot be imported ({error}). "
      "Install what exports need, in the checkout of rkd_jax: pip install -e '.[export]'"
    ) from error
