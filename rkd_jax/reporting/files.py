"""Files that are either whole or not there, and errors that say what to do about it."""

import errno
import hashlib
import json
import os
import pathlib
import re
import uuid
from typing import Any

import numpy as np

from rkd_jax import hosts
from rkd_jax.errors import UserError

_ADVICE = {
  errno.ENOSPC: "Free some space there, or choose another --workdir; the same command resumes.",
  errno.EDQUOT: "Your quota there is used up: free some space, or choose another --workdir.",
  errno.EROFS: "That file system is read-only: choose a --workdir on another one.",
  errno.EACCES: "You may not write there: choose another --workdir, or change its permissions.",
  errno.EPERM: "You may not write there: choose another --workdir, or change its permissions.",
}
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")


def cannot_write(path: str | os.PathLike, error: OSError) -> UserError:
  """An error for people from the operating system's: which file, why, what to do."""
  why = error.strerror or str(error)
  advice = _ADVICE.get(error.errno or 0, "Look at that folder, or choose another --workdir.")
  return UserError(f"Cannot write {os.fspath(path)}: {why}. {advice}")


def atomic_write(path: str | os.PathLike, data: str | bytes) -> None:
  """Writes `data` (text as UTF-8) so that `path` holds the old contents or the new, never a part.

  Makes missing folders. Of several processes of a run the first alone writes. Raises a `UserError`
  where the disk is full, read-only or not ours.
  """
  if not hosts.first():
    return
  path = pathlib.Path(path)
  # in the same folder, since a rename is atomic only within one file system
  temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    # a path that is no UTF-8 reaches us as surrogates, which JSON spells \\udcff too
    encoded = data.encode(errors="backslashreplace") if isinstance(data, str) else data
    _write_through(temporary, encoded)
    os.replace(temporary, path)
  except OSError as error:
    raise cannot_write(path, error) from error
  finally:
    # an OSError here would hide the one that matters
    if os.path.exists(temporary):
      os.unlink(temporary)


def remove_unfinished(folder: pathlib.Path) -> None:
  """Removes what `atomic_write` left of files in a folder when its process was killed.

  Only for whoever holds the folder's lock: another process may be writing.
  """
  for path in folder.glob(".*.tmp"):
    if _TEMPORARY.fullmatch(path.name):
      path.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, value: Any) -> None:
  """Writes `value` as indented JSON, atomically. NaN and infinity are refused with a ValueError."""
  atomic_write(path, to_json(value))


def to_json(value: Any) -> str:
  """The text that `write_json` writes: one for equal values."""
  return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False, default=_plain) + "\n"


def sha256(path: str | os.PathLike) -> str:
  """Hex digest of a file's bytes; a `UserError` where it cannot be read."""
  try:
    with open(path, "rb") as file:
      return hashlib.file_digest(file, "sha256").hexdigest()
  except OSError as error:
    raise UserError(f"Cannot read {os.fspath(path)}: {error.strerror or error}.") from error


def read_json(path: str | os.PathLike) -> Any:
  """Reads what `write_json` wrote. A missing, unreadable or broken file is a `UserError`."""
  name = os.fspath(path)
  try:
    text = pathlib.Path(path).read_text(encoding="utf-8")
    return json.loads(text, parse_constant=_refuse, object_pairs_hook=_once)
  except FileNotFoundError as error:
    raise UserError(f"There is no file {name}. Has the run finished?") from error
  except OSError as error:
    raise UserError(f"Cannot read {name}: {error.strerror or error}.") from error
  except (ValueError, RecursionError) as error:  # of decoding, of parsing, NaN, a key twice
    raise UserError(
      f"{name} is broken ({error}). Delete it and run the command that made it again."
    ) from error


def _write_through(path: pathlib.Path, data: bytes) -> None:
  with open(path, "xb") as file:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())  # else a power cut can leave the new name on an empty file


def _plain(value: Any) -> Any:
  if isinstance(value, np.generic):
    return value.item()
  if isinstance(value, os.PathLike):
    return os.fspath(value)
  raise TypeError(f"{type(value).__name__} cannot be written as JSON: {value!r}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    twice = next(key for number, (key, _) in enumerate(pairs) if key in dict(pairs[:number]))
    raise ValueError(f"the key {twice!r} stands there twice")
  return found


def _refuse(constant: str) -> None:
  raise ValueError(f"{constant} is not JSON; a missing value is null")
