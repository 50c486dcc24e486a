"""What is exported: a network of a finished run, of a phase's folder, or of a stranger's file."""

import dataclasses
import pathlib
import re
from typing import Any

from rkd_jax import given, interop, networks
from rkd_jax.errors import UserError
from rkd_jax.finished import Run
from rkd_jax.interop import RefusedError
from rkd_jax.models.network import Network
from rkd_jax.reporting.page import mapping

ASSUMED = (
  "The normalisation is the usual one of networks with these names; the file does not say that it "
  "is its own."
)


@dataclasses.dataclass(frozen=True)
class Subject:
  """Attributes:
  network: computing in float32, whatever it was trained in.
  variables: as host arrays.
  title: which one it is, for people.
  name: the same as a part of a file's name.
  sha256: of its arrays, as its phase recorded them; of a stranger's file over its bytes.
  architecture: its name in a config.
  classes: names by label; () where they are not known.
  method: its method's label; None for a teacher or a file.
  seed: None for a file.
  teacher: as cells name the teacher that it had, or that it is; None where there is none.
  answers: under which the run saved its predictions.
  doubt: what is only assumed of a file; "" where all is known.
  """

  network: Network
  variables: Any
  title: str
  name: str
  sha256: str
  architecture: str
  classes: tuple[str, ...] = ()
  method: str | None = None
  seed: int | None = None
  teacher: str | None = None
  answers: str = ""
  doubt: str = ""

  def about(self) -> dict[str, Any]:
    """What whoever has the file alone must know."""
    network = self.network
    return {
      "what": self.title,
      "architecture": self.architecture,
      "source_sha256": self.sha256,
      "classes": list(self.classes) or network.classes,
      "image_shape": list(network.image_shape),
      "mean": list(network.mean),
      "std": list(network.std),
      **({"doubt": self.doubt} if self.doubt else {}),
    }


def of_run(run: Run, seed: int, method: str = "", network: str = "student") -> Subject:
  """A network of a finished run.

  Args:
    seed: one of the run's.
    method: whose student, a label of the config; "": the last one that had a teacher.
    network: "student" or "teacher".

  Raises:
    UserError: the run has no such network, or it is not where the run left it.
  """
  phase, label = (run.teacher(seed), None) if network == "teacher" else run.student(seed, method)
  found = given.read(run.folder(phase), str(phase["sha256"]))
  who = f"{label}'s student" if label else "the teacher"
  names = (f"{label}/student/poisoned", label or "teacher/poisoned")
  known = mapping(run.manifest.get("data")).get("classes") or ()
  return dataclasses.replace(
    _of_phase(found, run.dataset.image_shape, run.dataset.classes),
    title=f"{who}, seed {seed}",
    name=_plain(f"{label or 'teacher'}-seed{seed}"),
    classes=tuple(map(str, known)),
    method=label,
    seed=seed,
    teacher=None if phase.get("teacher") is None else str(phase["teacher"]),
    answers=next((name for name in names if run.reported(seed, name)), ""),
  )


def of_path(path: pathlib.Path, side: int) -> Subject:
  """The network of a phase's folder, or of any checkpoint that is converted.

  Args:
    side: pixels of an image's side, where no tensor's shape says so.

  Raises:
    UserError: it is neither, may be one of several networks, or does not say how its pixels were
      normalised.
  """
  if (path / "done.json").is_file():
    found = given.read(path)
    return _of_phase(found, (side, side, len(found.normalisation[0])), found.count or 0)
  try:
    checkpoint = interop.read(path)
    found = interop.convert(checkpoint)
  except RefusedError as error:
    raise UserError(str(error)) from None
  if found.others:
    raise UserError(
      f"{path} may be {found.network} or {', '.join(found.others)}: the tensors are the same, what "
      "they compute is not. Run with it as the teacher (--config.teacher.checkpoint and "
      "--config.teacher.network), whose accuracy tells which; then export that run's --network "
      "teacher."
    )
  if found.normalisation is None:
    raise UserError(
      f"{path} ({found.network}, {found.family}) does not say how its pixels were normalised, and "
      "for this family it is not known. Run with it first (--config.teacher.checkpoint and "
      "--config.teacher.mean, --config.teacher.std); then export that run's --network teacher."
    )
  module = networks.module(found.network, classes=found.classes)
  side = found.side or side
  made = Network(module, (side, side, found.channels), *map(tuple, found.normalisation))
  return Subject(
    made, found.variables, f"the network in {path.name}", _plain(path.stem), checkpoint.sha256,
    found.network, doubt=ASSUMED,
  )  # fmt: skip


def _of_phase(found: given.Given, image_shape: tuple[int, int, int], classes: int) -> Subject:
  variables = found.variables()
  if not (found.count or classes):
    raise UserError(f"{found.path} does not say how many classes its network has.")
  module = networks.module(found.network, classes=found.count or classes)
  place = mapping(variables["params"]).get(
    "place"
  )  # a ViT's: one for each patch, one for the class
  if place is not None:
    side = round((place.shape[1] - 1) ** 0.5) * module.patch
    image_shape = (side, side, image_shape[-1])
  network = Network(module, image_shape, *found.normalisation)
  name = pathlib.Path(found.path).name
  return Subject(
    network, variables, f"the network in {name}", _plain(name), found.sha256, found.network
  )


def _plain(name: str) -> str:
  return re.sub(r"[^\w.=-]+", "_", name)
