"""Parts are files found by name: `load("methods", "kd")` is `rkd_jax/methods/kd.py`'s `Method`."""

import dataclasses
import importlib
import pkgutil
from typing import Any

from rkd_jax.errors import UserError, nearest

# kind -> (what a file of it defines, files of the folder that are not such parts)
KINDS = {
  "methods": (
    "Method",
    {"attack", "base", "datafree", "features", "pooled", "robust", "views"},
  ),
  "models": (
    "Model",
    {"connector", "generator", "layers", "network", "norm", "size"},
  ),
  "backdoors": ("Backdoor", {"base", "learned", "plans", "poison"}),
}


def names(kind: str) -> list[str]:
  """The names that `load(kind, name)` knows."""
  package = importlib.import_module(f"rkd_jax.{kind}")
  return sorted(
    m.name for m in pkgutil.iter_modules(package.__path__) if m.name not in KINDS[kind][1]
  )


def load(kind: str, name: str) -> Any:
  """The class that the file `rkd_jax/<kind>/<name>.py` defines.

  A name with a dot is a module of the user's own (`my_package.my_method`).
  """
  attribute = KINDS[kind][0]
  if "." not in name and name not in names(kind):
    raise UserError(f"No {attribute.lower()} is called {name!r}. {nearest(name, names(kind))}")
  try:
    module = importlib.import_module(name if "." in name else f"rkd_jax.{kind}.{name}")
  except ModuleNotFoundError as error:
    if "." not in name:
      raise
    raise UserError(
      f"Cannot import {name!r} ({error}). A name with a dot is a Python module."
    ) from error
  if not hasattr(module, attribute):
    raise UserError(f"{module.__file__} defines no class {attribute!r}.")
  return getattr(module, attribute)


def defines(kind: str, name: str) -> bool:
  """Whether the name is that of such a part: a file of the folder, or a module with the class."""
  if "." not in name:
    return name in names(kind)
  try:
    load(kind, name)
  except UserError:
    return False
  return True


def build(kind: str, name: str, fields: dict[str, Any]) -> Any:
  """`load(kind, name)(**fields)`, with a wrong field answered by the nearest right one."""
  part = load(kind, name)
  known = [f.name for f in dataclasses.fields(part) if f.init and f.name not in ("parent", "name")]
  for field in fields:
    if field not in known:
      raise UserError(f"{kind}/{name} has no field {field!r}. {nearest(field, known)}")
  try:
    return part(**fields)
  except TypeError as error:
    raise UserError(f"{kind}/{name} cannot be made from {fields}: {error}.") from error
