"""What a run was: config, code, versions, devices, data, teachers and phases, with their hashes."""

import json
import pathlib
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from typing import Any

import rkd_jax
from rkd_jax import recipes
from rkd_jax.reporting.files import atomic_write
from rkd_jax.runner import Finished, Runner, kind

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def make(runner: Runner, name: str) -> dict[str, Any]:
  """All that is needed to read the results and to make them again."""
  dataset, done = runner.dataset, list(runner.finished())
  return {
    "config_name": name,
    "config": json.loads(json.dumps(runner.config.to_dict())),
    "command": shlex.join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]),
    "git": git_revision(),
    "versions": versions(),
    "devices": [str(d.device_kind) for d in runner.mesh.devices.flat],
    "seeds": list(runner.config.seeds),
    "methods": {label: recipes.told(spec) for label, spec in recipes.specs(runner.config).items()},
    "data": {
      "name": dataset.name,
      "fingerprint": dataset.fingerprint,
      "classes": list(dataset.class_names),
      "sizes": {s: len(getattr(dataset, s).labels) for s in ("train", "holdout", "test")}
      | ({} if dataset.unlabelled is None else {"unlabelled": len(dataset.unlabelled)}),
      "skipped": list(dataset.skipped),
    },
    "teachers": [
      {"seed": f.phase.seed, "sha256": f.record["sha256"], "kind": kind(f.phase)}
      for f in done
      if f.phase.shared and f.phase.name == "teacher"
    ],
    "phases": [described(runner, f) for f in done],
  }


def described(runner: Runner, finished: Finished) -> dict[str, Any]:
  """A phase's line in the manifest; its metrics are copied into the workdir."""
  phase = finished.phase
  name = f"seed{phase.seed}-{phase.name}-{phase.key[:8]}.jsonl"
  copy = runner.workdir / "metrics" / name
  atomic_write(copy, (finished.directory / "metrics.jsonl").read_bytes())
  teacher = phase if phase.shared else phase.teacher
  return {
    "seed": phase.seed,
    "name": phase.name,
    "key": phase.key,
    "method": type(phase.method).__module__.rsplit(".", 1)[-1],
    "teacher": kind(teacher) if teacher else None,
    "metrics": str(copy.relative_to(runner.workdir)),
    "sha256": finished.record["sha256"],
    **{key: finished.record[key] for key in ("steps", "seconds", "images_per_second")},
    "peak_memory": finished.record.get("peak_memory"),
  }


def versions() -> dict[str, str]:
  """Of everything that a number depends on."""
  own = {"rkd_jax": rkd_jax.__version__, "python": platform.python_version()}
  return own | {package: metadata.version(package) for package in PACKAGES}


def git_revision() -> str | None:
  """The revision of the code that ran, "+" where it was changed since; None outside a checkout."""
  folder = pathlib.Path(__file__).parent
  try:
    ask = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--abbrev=40"]
    return subprocess.run(
      ask, capture_output=True, text=True, check=True, timeout=10
    ).stdout.strip()
  except (OSError, subprocess.SubprocessError):
    return None
