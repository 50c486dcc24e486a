"""Checkpoints and deliveries on disk. The only file that imports Orbax."""

import contextlib
import hashlib
import logging
import pathlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from rkd_jax import hosts
from rkd_jax.errors import UserError

Tree = Any
CHECKSUM = "checksum"
UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}
# Orbax narrates every save, and pours out a full disk's error from each of its threads and tasks,
# before and after it raises it.
for _name in ("absl", "asyncio"):
  logging.getLogger(_name).setLevel(logging.CRITICAL)
# Orbax measures how long it waits by the time of day: a laptop that slept, or a clock that was set
# while a checkpoint was written, must not look like a save that hangs.
PATIENCE = ocp.AsyncOptions(timeout_secs=10**9)


def put_aside(folder: pathlib.Path, where: pathlib.Path) -> None:
  """Renames what cannot be read, in place of what was put there before."""
  shutil.rmtree(where, ignore_errors=True)
  folder.rename(where)


def alone(folder: pathlib.Path, error: Exception) -> None:
  """Raises a `UserError` where what cannot be read is one of several processes' to judge: another
  may have read it, and they cannot agree, since reading is itself something they do together."""
  if hosts.count() > 1:
    raise UserError(
      f"{folder} cannot be read ({type(error).__name__}: {hosts.line(error)}). If every host sees "
      "it, start the same command once as one process: it puts the damaged aside and goes on."
    ) from error


class Checkpoints:
  """The last checkpoints of one phase. A kill at any moment leaves the newest whole one usable."""

  def __init__(self, directory: pathlib.Path, keep: int = 2, warn: Callable[[str], None] = print):
    self._warn, self._directory, self._keep = warn, directory, keep
    self._manager = self._open()

  def _open(self) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
      max_to_keep=self._keep,
      enable_async_checkpointing=True,
      cleanup_tmp_directories=True,
      async_options=PATIENCE,
    )
    with explained(self._directory):
      return ocp.CheckpointManager(self._directory.absolute(), options=options)

  def save(self, step: int, state: Tree) -> None:
    """Starts writing the state; returns once the arrays may be donated."""
    if self._manager.latest_step() == step:
      return
    with explained(self._directory):
      self._manager.save(step, args=ocp.args.StandardSave(_summed(state)), force=True)

  def restore(self, template: Tree) -> tuple[int, Tree] | None:
    """The newest whole checkpoint as (step, state) in the template's structure and placement.

    A checkpoint that cannot be read is put aside with a warning and the one before it is tried.
    """
    wanted = _summed(template)
    for step in hosts.decide(lambda: sorted(self._manager.all_steps(), reverse=True)):
      try:
        found = self._manager.restore(step, args=ocp.args.StandardRestore(_abstract(wanted)))
        leaves = [found[name] for name in wanted if name != CHECKSUM]
        if int(_checksum(leaves)) != int(found[CHECKSUM]):
          raise ValueError("its bytes are not those that were saved")
      except (PermissionError, MemoryError):
        raise  # not the checkpoint's fault
      except Exception as error:  # Orbax, TensorStore and the file system each raise their own
        alone(self._directory / str(step), error)
        self._put_aside(step, error)
        continue
      # The restored arrays may alias Orbax's host buffers; a donated state must own its own.
      return step, jax.tree.unflatten(jax.tree.structure(template), _copied(leaves))
    return None

  def _put_aside(self, step: int, error: Exception) -> None:
    aside = self._directory.with_name(f"unreadable-{step}")
    self._warn(
      f"The checkpoint of step {step} in {self._directory} cannot be read "
      f"({type(error).__name__}); going back to the one before it. It is kept as {aside.name}."
    )
    # Orbax learns a checkpoint's layout from the newest one: look again without it.
    self._manager.close()
    put_aside(self._directory / str(step), aside)
    self._manager = self._open()

  def latest(self) -> int | None:
    """The newest checkpoint's step, readable or not."""
    return hosts.decide(self._manager.latest_step)

  def close(self) -> None:
    """Waits until everything is on disk."""
    with explained(self._directory):
      self._manager.wait_until_finished()
      self._manager.close()


def _summed(tree: Tree) -> dict[str, Any]:
  """`flat`, and the checksum of its leaves."""
  found = flat(tree)
  return {**found, CHECKSUM: _checksum(list(found.values()))}


@jax.jit
def _checksum(leaves: list[jax.Array]) -> jax.Array:
  """uint32 that any changed bit of any leaf changes; made where the leaves are, without a copy."""
  total = jnp.uint32(0)
  for number, leaf in enumerate(leaves):
    words = leaf.astype(jnp.uint8) if leaf.dtype == bool else leaf
    words = jax.lax.bitcast_convert_type(words, UNSIGNED[min(words.dtype.itemsize, 4)])
    words = words.ravel().astype(jnp.uint32)
    odd = 2 * jnp.arange(words.size, dtype=jnp.uint32) + 1  # a place's weight; invertible mod 2^32
    total += (words * odd).sum(dtype=jnp.uint32) * jnp.uint32(2 * number + 1)
  return total


@jax.jit
def _copied(leaves: list[jax.Array]) -> list[jax.Array]:
  return jax.tree.map(jnp.copy, leaves)


def flat(tree: Tree) -> dict[str, Any]:
  """{number and path: leaf} in the tree's own order: no node type of ours reaches the disk."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    f"{i:05d}:{jax.tree_util.keystr(path, simple=True, separator='.')}": leaf
    for i, (path, leaf) in enumerate(leaves)
  }


def _abstract(tree: Tree) -> Tree:
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def save_tree(directory: pathlib.Path, tree: Tree) -> None:
  """Writes a tree of arrays as a whole or not at all."""
  directory = directory.absolute()
  with explained(directory):
    if hosts.first() and directory.exists():
      shutil.rmtree(directory)
    hosts.wait()
    with ocp.StandardCheckpointer(async_options=PATIENCE) as checkpointer:
      checkpointer.save(directory, tree)


def load_tree(directory: pathlib.Path) -> Tree:
  """A tree as `save_tree` wrote it, as host arrays."""
  with ocp.PyTreeCheckpointer() as checkpointer:
    metadata = checkpointer.metadata(directory.absolute()).item_metadata
    arguments = jax.tree.map(
      lambda _: ocp.RestoreArgs(restore_type=np.ndarray), dict(metadata.tree)
    )
    return checkpointer.restore(directory.absolute(), restore_args=arguments)


def shapes(tree: Tree) -> dict[str, tuple[int, ...]]:
  """{path: shape} of a tree of arrays, in its order."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf.shape for p, leaf in leaves}


def digest(tree: Tree) -> str:
  """SHA-256 over names, types, shapes and bytes of a tree of arrays."""
  sha = hashlib.sha256()
  for name, leaf in flat(tree).items():
    array = np.ascontiguousarray(jax.device_get(leaf))
    sha.update(f"{name} {array.dtype} {array.shape};".encode())
    sha.update(array.tobytes())
  return sha.hexdigest()


def hush_threads() -> None:
  """For a process that is a run: TensorStore's threads, which outlive a save that failed, complain
  of the closed event loop, each with a traceback. What failed is raised where it was asked for."""
  told, noted = sys.excepthook, sys.unraisablehook

  def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    if not _closed(error):
      told(kind, error, trace)

  def unraisable(what: Any) -> None:  # by the one or the other, as it comes
    if not _closed(what.exc_value):
      noted(what)

  sys.excepthook, sys.unraisablehook = hook, unraisable


def _closed(error: BaseException | None) -> bool:
  return type(error) is RuntimeError and str(error) == "Event loop is closed"


FULL = ("no space left", "file too large", "quota", "read-only file", "permission denied")
FULL += ("resource_exhausted",)  # TensorStore's word; the system's comes after it, and says more


@contextlib.contextmanager
def explained(path: pathlib.Path) -> Iterator[None]:
  """Turns the errors of a full or read-only disk, whoever raises them, into one for people."""
  try:
    yield
  except TimeoutError as error:
    raise UserError(
      f"Writing {path} took too long: the disk hangs, or the clock was set meanwhile. Start the "
      "same command again: it goes on from the last checkpoint."
    ) from error
  except Exception as error:
    pieces = re.split(r": |\n", str(error))  # of errors around errors
    found = [piece for word in FULL for piece in pieces if word in piece.lower()]
    if not found:
      raise
    raise UserError(
      f"Cannot write {path}: {found[0].strip()[:300]}. Free some space (or choose another "
      f"--workdir) and start the same command again: it goes on from the last checkpoint."
    ) from error
