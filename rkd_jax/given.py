"""A teacher that was made elsewhere: what its files say, and that they are whole.

It is the folder of a phase that this package wrote, such as runs/teachers/<key>, or any file that
`interop` reads and converts: see `strangers.py`.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from rkd_jax.errors import UserError
from rkd_jax.methods import base
from rkd_jax.reporting.files import read_json
from rkd_jax.training import checkpoint

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std, per channel, in [0, 1]
ROLES = ("teacher", "student")  # whose network it is: an attack's teacher, else what was trained


@dataclasses.dataclass(frozen=True)
class Given:
  """Attributes:
  path: of its folder.
  network: its architecture, as a config names it.
  normalisation: of the pixels that it was trained on.
  sha256: over its arrays, as written when it was made; of a stranger's file over its bytes.
  role: under which they were saved; "file" for a stranger's.
  count: its classes.
  classes: which of its classes is each of the data's; () where they are the same.
  source: where the normalisation comes from, for people.
  about: what else is known of a stranger's file.
  load: reads a stranger's file again.
  """

  path: str
  network: str
  normalisation: Normalisation
  sha256: str
  role: str
  count: int | None = None
  classes: tuple[int, ...] = ()
  source: str = "recorded with it"
  about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  load: Callable[[], Any] | None = None

  def describe(self) -> list[str]:
    """What stands for it in the key of a phase: its arrays, wherever they lie; of a stranger's file
    its bytes, and the code that converts them."""
    read = [_conversion()] if self.load else []
    return [self.sha256[:16], self.role, *map(str, self.classes), *read]

  def variables(self) -> Any:
    """Its variables as host arrays, the head's columns in the data's order.

    Raises:
      UserError: they are not those of `sha256`.
    """
    found = self.load() if self.load else self._saved()
    return choose(found, self.classes) if self.classes else found

  def _saved(self) -> Any:
    saved = _load(self.path)
    if checkpoint.digest(saved) != self.sha256:
      raise UserError(
        f"The teacher in {self.path} is damaged: its arrays are not those of its done.json "
        f"(sha256 {self.sha256}). Copy the folder again from where it came."
      )
    return saved["roles"][self.role]


@dataclasses.dataclass(frozen=True)
class Kept(base.Method):
  """No training: the given network takes its place among the phases, as it is.

  It stands here and not among `methods`, because a config may not name it: without a `Given` its
  student would be a network that nobody trained.
  """

  part = "nothing"

  def roles(self, networks):
    return {"student": base.Role(base.network(networks, "student"), player="student")}

  def trains(self):
    return {"steps": 0, "epochs": 0}

  def loss(self, player, variables, state, batch, targets, key, step):
    return {}, base.Aux()


@functools.lru_cache
def _conversion() -> str:
  """Short digest over the code that makes a network of a stranger's file."""
  files = sorted((pathlib.Path(__file__).parent / "interop").rglob("*.py"))
  return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8]


def choose(variables: Any, classes: tuple[int, ...]) -> Any:
  """A network's variables with a head of these classes, in this order.

  Raises:
    UserError: its last layer is not called "head".
  """
  head = variables["params"].get("head")
  if head is None:
    raise UserError(
      'Its classes cannot be chosen: it has no layer "head". Call the last layer of your module so.'
    )
  own = {name: leaf[..., list(classes)] for name, leaf in head.items()}
  return {**variables, "params": {**variables["params"], "head": own}}


def read(path: str | os.PathLike, sha256: str = "") -> Given:
  """What a teacher's folder says of it.

  Args:
    path: holds done.json and final/, as every finished phase does.
    sha256: what its arrays must be, in hex; "": whatever they are.

  Raises:
    UserError: if it is no such folder, or of other arrays.
  """
  return _read(os.fspath(path), sha256)


@functools.lru_cache
def _read(path: str, sha256: str) -> Given:
  folder = pathlib.Path(path).expanduser()
  if not (folder / "done.json").is_file() or not (folder / "final").is_dir():
    raise UserError(
      f"{path} holds no network: expected the folder of a finished phase, with done.json and "
      "final/ in it, such as runs/teachers/<key>."
    )
  record = read_json(folder / "done.json")
  try:
    settings, digest = record["phase"]["settings"], record["sha256"]
    saved = _load(path)["roles"]
    role = next(role for role in ROLES if role in saved)
    mean, std = settings["normalisation"][role]
    network = settings["networks"][role]
  except (KeyError, TypeError, StopIteration) as error:
    raise UserError(
      f"{path} does not say what its network is ({error!r} is missing): it was made by another "
      "version, or by a phase that trains none. Name another folder, or make it again."
    ) from error
  if sha256 and sha256.lower() != digest:
    raise UserError(
      f"The teacher in {path} has sha256 {digest}, but config.teacher.sha256 asks for {sha256}. "
      "It is another network than the one you mean."
    )
  head = saved[role]["params"].get("head", {})
  count = head["bias"].shape[0] if "bias" in head else None
  return Given(path, network, (tuple(mean), tuple(std)), digest, role, count)


def _load(path: str) -> Any:
  try:
    return checkpoint.load_tree(pathlib.Path(path).expanduser() / "final")
  except Exception as error:  # Orbax, TensorStore and the file system each raise their own
    raise UserError(
      f"Cannot read the network in {path}: {type(error).__name__}. Copy the folder again from "
      "where it came."
    ) from error
