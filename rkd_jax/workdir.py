"""Who may write where: a workdir is one config's and one run's at a time."""

import contextlib
import fcntl
import functools
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

from rkd_jax import config as configs
from rkd_jax import hosts
from rkd_jax.errors import UserError
from rkd_jax.phases import Config
from rkd_jax.reporting.files import read_json, remove_unfinished, write_json

OURS = ("predictions", "metrics")  # folders of a workdir that files are written to


def claim(workdir: pathlib.Path, config: Config, fingerprint: str) -> None:
  """Marks the workdir as this config's on this data; refuses another's, naming what differs.

  `fingerprint`: of the data set.
  """
  path, new = workdir / "config.json", configs.identity(config)
  if not path.exists():
    write_json(path, new | {"fingerprint": fingerprint})
    return
  old = read_json(path)
  data = old.pop("fingerprint", fingerprint)
  different = configs.differences(old, new)
  if different:
    shown = "\n  ".join(different[:10])
    raise UserError(
      f"{workdir} was made from another config:\n  {shown}\n"
      "Choose another --workdir (or leave it out), or use the old values."
    )
  if data != fingerprint:
    raise UserError(
      f"{workdir} was made from other images: {config.data.name!r} (or what is unlabelled) has "
      "changed since, or is read in another way (config.data.memory_mib). Choose another "
      "--workdir, or bring back the old images."
    )


def path(name: str) -> pathlib.Path:
  """The path of a folder's name; a `UserError` where that is an address."""
  if "://" in name:
    raise UserError(
      f"{name} is an address, and runs are written to mounted file systems that have locks. Choose "
      "a path for --workdir (and --config.teachers_dir), on a disk that outlives the machine."
    )
  return pathlib.Path(name)


def make(directory: pathlib.Path) -> None:
  """The directory with its parents; a `UserError` where that cannot be."""
  try:
    directory.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(
      f"Cannot make the directory {directory}: {error.strerror}. Choose another --workdir or "
      "--config.teachers_dir, whichever it lies in."
    ) from error


@contextlib.contextmanager
def only_run(workdir: pathlib.Path) -> Iterator[None]:
  """Holds the workdir's lock; a second run in it is told so instead of mixing with the first."""
  with _lock_file(workdir / ".lock") as file:
    if not _try_lock(file):
      raise UserError(
        f"Another run is at work in {workdir}. Wait for it, or choose another --workdir."
      )
    for folder in (workdir, *(workdir / name for name in OURS), *workdir.glob("phases/*/*")):
      remove_unfinished(folder)
    yield


@contextlib.contextmanager
def making(
  directory: pathlib.Path, say: Callable[[str], None], check: Callable[[str], None]
) -> Iterator[None]:
  """One run at a time makes an artefact; others wait, and then find it done. All its processes
  come here, and the first holds the lock for them.

  Args:
    say: told once if there is something to wait for.
    check: called every second of waiting; raises to give up.
  """
  make(directory.parent)
  with _lock_file(directory.parent / f".{directory.name}.lock") as file:
    lock = functools.partial(_try_lock, file)
    if not hosts.decide(lock):
      say(f"Another process is making {directory}; waiting for it.")
      while not hosts.decide(lock):
        check("while waiting for another process")
        time.sleep(1)
    if hosts.first():
      remove_unfinished(directory)
    yield


def _lock_file(path: pathlib.Path) -> IO[str]:
  try:
    return open(path, "w")
  except OSError as error:
    raise UserError(f"Cannot write {path}: {error.strerror}. Choose another --workdir.") from error


def _try_lock(file: Any) -> bool:
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  except OSError as error:  # of a network file system
    raise UserError(
      f"{file.name} cannot be locked: {error.strerror}. Two runs could mix there; choose a "
      "--workdir (and --config.teachers_dir) on a file system that has locks."
    ) from error
  return True
