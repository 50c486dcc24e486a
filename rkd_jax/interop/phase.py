"""The folder of a phase that this package wrote, as a checkpoint."""

import math
import pathlib
from typing import Any

import numpy as np

from rkd_jax.errors import UserError
from rkd_jax.interop import budget
from rkd_jax.interop.checkpoint import Checkpoint
from rkd_jax.interop.refusals import AGAIN, RefusedError, shown


def is_phase(folder: pathlib.Path) -> bool:
  return (folder / "done.json").is_file() and (folder / "final").is_dir()


def read(path: str) -> Checkpoint:
  """Its arrays, as {"<role>/<path>": array}. Imports JAX, which reads them.

  Raises:
    UserError: if it was made by another version, or is damaged.
  """
  from rkd_jax import given
  from rkd_jax.training import checkpoint

  _check_files(pathlib.Path(path))
  _check_size(pathlib.Path(path), checkpoint.ocp)
  try:
    found = given.read(path)
    variables = found.variables()
  except UserError as error:
    cause, _, advice = str(error).partition(". ")
    raise RefusedError(cause, advice.rstrip(".") or AGAIN) from None
  names = checkpoint.shapes(variables)
  leaves = [np.asarray(leaf) for leaf in checkpoint.flat(variables).values()]
  for leaf in leaves:
    leaf.flags.writeable = False
  return Checkpoint(
    kind="phase",
    path=path,
    size=_size(pathlib.Path(path)),
    sha256=found.sha256,
    tensors=dict(zip(names, leaves, strict=True)),
    metadata={"network": found.network, "role": found.role},
  )


def _check_files(folder: pathlib.Path) -> None:
  """A link in a stranger's folder could make any file of ours a part of it."""
  for file in folder.rglob("*"):
    if file.is_symlink() or not (file.is_file() or file.is_dir()):
      raise RefusedError(f"'{shown(file.name)}' in it is a link or no regular file", AGAIN)
  if (folder / "done.json").stat().st_size > budget.HEADER:
    raise RefusedError(f"its done.json has over {budget.HEADER:,} bytes", AGAIN)


def _check_size(folder: pathlib.Path, orbax: Any) -> None:
  """Arrays may not be many times larger than their files: what no file holds is filled in."""
  try:
    import jax

    with orbax.PyTreeCheckpointer() as checkpointer:
      tree = checkpointer.metadata((folder / "final").absolute()).item_metadata.tree
    leaves = jax.tree.leaves(tree)
    size = sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in leaves)
  except Exception as error:  # Orbax, TensorStore and the file system each raise their own
    raise RefusedError(f"its arrays cannot be read ({type(error).__name__})", AGAIN) from None
  if size > max(budget.UNPACKED, budget.RATIO * _size(folder)):
    raise RefusedError(f"its arrays take {size:,} bytes, its files far fewer: a memory bomb", AGAIN)


def _size(folder: pathlib.Path) -> int:
  return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
