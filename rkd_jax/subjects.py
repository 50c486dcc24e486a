"""Which networks of a run, or which file, an audit is about, and what is known beside them."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from rkd_jax import config as configs
from rkd_jax import given, lookup, strangers
from rkd_jax.backdoors.base import CLEAN
from rkd_jax.data.sources import Dataset
from rkd_jax.errors import UserError, nearest
from rkd_jax.evaluation.predictions import Questions
from rkd_jax.given import Given
from rkd_jax.phases import Config
from rkd_jax.reporting import results
from rkd_jax.reporting.page import mapping, mappings
from rkd_jax.runner import Runner

POOL = 500  # images of the pool that are looked at


@dataclasses.dataclass(frozen=True)
class Subject:
  """A network that is audited.

  Attributes:
    name: for people and files: "seed0/teacher", "seed0/kd".
    role: "teacher" or "student": the section of the config that its references train by.
    given: where its arrays lie, its architecture and its pixels.
    seed: of the run; None where it belongs to none.
    section: how its references train.
  """

  name: str
  role: str
  given: Given
  seed: int | None = None
  method: str = ""


def of_run(
  workdir: pathlib.Path, wanted_seeds: Sequence[int], methods: Sequence[str], controls: bool,
  teachers: str = "",
) -> list[Subject]:  # fmt: skip
  """The teachers and students of a finished run, by its manifest.

  Args:
    workdir: holds results.json, phases/, and beside it teachers/ (or config.teachers_dir).
    wanted_seeds: (): the first.
    methods: whose students; (): all that had a teacher. "teacher" alone: no student.
    controls: the clean teacher, its students and those without a teacher too.
    teachers: where teachers lie, if neither there nor where the run's config says.
  """
  manifest, _ = results.read(workdir / "results.json")
  config = mapping(manifest.get("config"))
  phases = {str(p.get("key")): p for p in mappings(manifest.get("phases"))}
  known = [int(s) for s in manifest.get("seeds") or []]
  wanted = list(wanted_seeds) or known[:1]
  if missing := [s for s in wanted if s not in known]:
    raise UserError(f"The run has no seed {missing[0]}; it has {', '.join(map(str, known))}.")
  labels = list(dict.fromkeys(str(c.get("method")) for c in mappings(manifest.get("costs"))))
  for method in methods:
    if method not in (*labels, "teacher"):
      raise UserError(f"The run has no method {method!r}. {nearest(method, [*labels, 'teacher'])}")
  named = [teachers, str(config.get("teachers_dir") or "")]
  folders = [workdir.parent / "teachers", *(pathlib.Path(folder) for folder in named if folder)]
  found: dict[str, Subject] = {}
  for phase in phases.values():
    if phase.get("name") == "teacher" and phase.get("seed") in wanted:
      _add(found, workdir, folders, phase, "teacher", "teacher", controls)
  for line in mappings(manifest.get("costs")):
    own = [phases[k] for k in line.get("phases") or [] if k in phases]
    own = [p for p in own if p.get("name") in ("student", "alone-labelled")]
    label = str(line.get("method"))
    alone = not any(p.get("name") == "student" for p in own)
    if (
      line.get("seed") in wanted
      and (label in methods or not methods)
      and not (alone and not controls)
    ):
      for phase in own:
        if phase.get("name") == "student" or alone:
          _add(found, workdir, folders, phase, label, "student", controls)
  if not found:
    raise UserError(f"{workdir} holds no network of what was asked for. Look at its phases/.")
  return list(found.values())


def _add(
  found: dict[str, Subject], workdir: pathlib.Path, folders: Sequence[pathlib.Path],
  phase: Mapping[str, Any], label: str, role: str, controls: bool,
) -> None:  # fmt: skip
  """The network of a phase, if it is wanted."""
  clean = phase.get("teacher") == "clean"
  if clean and not controls:
    return
  key, seed, method = str(phase["key"]), int(phase["seed"]), label if role == "student" else ""
  name = f"seed{seed}/{label}" + ("-clean" if clean else "")
  own = workdir / "phases" / f"seed{seed}" / f"{phase['name']}-{key[:8]}"
  path = next((p for p in (own, *(f / key for f in folders)) if (p / "done.json").exists()), None)
  if path is None:
    raise UserError(
      f"The network {name} (phase {key}) is neither in {own} nor in {folders[0]}. An audit needs "
      "the networks: copy the run's phases/ and its teachers, or run it again."
    )
  if any(one.given.path == str(path) for one in found.values()):
    return  # a network without a teacher belongs to every teacher's story
  name = f"{name}-{key[:8]}" if name in found else name  # a strength that was tried
  found[name] = Subject(
    name, role, given.read(str(path), str(phase.get("sha256") or "")), seed, method
  )


def config_of(workdir: pathlib.Path, **changes: Any) -> Config:
  """The config of a finished run, as its manifest has it; keys that are newer have their default.

  `changes`: {"data.data_dir": value, ...}, where they are not empty.
  """
  manifest, _ = results.read(workdir / "results.json")
  plain = tupled(mapping(manifest.get("config")))
  made = ConfigDict(_over(configs.default().to_dict(), plain) | {"devices": 0})
  for path, value in changes.items():
    if value:
      made.update_from_flattened_dict({path: value})
  configs.normalise(made)
  return made


def check_data(workdir: pathlib.Path, dataset: Dataset) -> None:
  """Raises a `UserError` if a run's images are not those that it was made from."""
  manifest, _ = results.read(workdir / "results.json")
  known = mapping(manifest.get("data")).get("fingerprint")
  if known != dataset.fingerprint:
    raise UserError(
      f"{workdir} was made from other images: {dataset.name!r} has the fingerprint "
      f"{dataset.fingerprint[:16]} now, {str(known)[:16]} then. Bring back the old ones, or say "
      "where they lie (--data_dir)."
    )


def tupled(value: Any) -> Any:
  """JSON has lists where a config has tuples."""
  if isinstance(value, Mapping):
    return {key: tupled(inner) for key, inner in value.items()}
  return tuple(map(tupled, value)) if isinstance(value, list) else value


def _over(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
  found = dict(below)
  for key, value in above.items():
    inner = isinstance(value, Mapping) and isinstance(found.get(key), dict)
    found[key] = _over(found[key], value) if inner else value
  return found


def of_file(config: Config, dataset: Dataset) -> list[Subject]:
  """The network that `config.teacher.checkpoint` names."""
  return [Subject("network", "teacher", strangers.find(config.teacher, dataset))]


def config_for(path: str, data: str, **changes: Any) -> Config:
  """A config whose given teacher is this file or folder, on this data.

  `changes`: {"teacher.mean": value, ...}, where they are not empty.
  """
  made = configs.default()
  fixed = {"teacher.checkpoint": path, "data.name": data, "backdoor": "unknown"}
  fixed |= {"contamination": 0.0, "seeds": (0,), "methods": ("none",)}
  found = {key: value for key, value in changes.items() if value not in (None, "", (), 0)}
  made.update_from_flattened_dict(fixed | found)
  if pathlib.Path(path).joinpath("done.json").exists():  # our own say what they are
    made.teacher.network = given.read(path).network
  configs.check(made)
  return made


def pool(runner: Runner, seed: int | None) -> np.ndarray | None:
  """uint8[M, H, W, C]: the first unlabelled images that a defender has, some perhaps triggered.

  Of a run the pool of that seed, with the trigger where the run put it; else the images that came
  without labels. None where there are none, or where a trained trigger would have to be made anew.
  """
  dataset, config = runner.dataset, runner.config
  if seed is None or config.backdoor == "unknown":
    more = dataset.unlabelled
    return None if more is None else np.asarray(more[: min(POOL, len(more))])
  if not lookup.defines("backdoors", config.backdoor) or config.plan == "boundary":
    return None
  parts = runner.parts(seed)
  rows = np.setdiff1d(np.arange(len(parts.pool_labels)), parts.labelled)[:POOL]
  found = np.array(parts.pool_images[rows])
  triggered = np.flatnonzero(parts.contaminated[rows] != CLEAN)
  if len(triggered):
    seen = Questions(runner.mesh, parts.pool_images, config.eval_batch, runner.backdoor(seed))
    found[triggered] = seen.pixels(rows[triggered])
  return found
