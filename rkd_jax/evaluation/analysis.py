"""What networks make of test images inside: feature variance per stage, and a map of embeddings.

Feature variance of a stage, Var F: the variance of an image's feature map over height, width and
channels, within that image; the mean over images is taken by whoever reads it. That of a backdoored
network is said to be higher (RobustKD, arXiv 2406.03409). Features are the stage's output, as the
next stage gets it. A few hundred test images, a batch at a time; none of it selects anything.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rkd_jax.compiling import QUICK, Jitted
from rkd_jax.data.augment import Augment
from rkd_jax.evaluation.predictions import Questions, _pixels
from rkd_jax.models.network import Network
from rkd_jax.training import sharding
from rkd_jax.training.state import Program

Tree = Any
Arrays = dict[str, np.ndarray]
CLASSES, IMAGES, BATCH = 10, 200, 50  # at most; images at once


def rows(labels: np.ndarray, goals: np.ndarray) -> np.ndarray:
  """int[n]: which test images are looked at: the first of each class, equally many, n <= 200.

  Of more than ten classes ten are taken, the trigger's target (where there is one) among them.

  Args:
    labels, goals: int[N], true classes, and where a trigger leads each image.
  """
  classes, targets = np.unique(labels), np.unique(goals[labels != goals])
  first = targets if len(targets) == 1 else targets[:0]
  classes = np.concatenate([first, np.setdiff1d(classes, first)])[:CLASSES]
  each = max(1, IMAGES // max(1, len(classes)))
  return np.sort(np.concatenate([np.flatnonzero(labels == k)[:each] for k in classes]))


def role(program: Program) -> str | None:
  """Which role's inside a phase is about; "detoxified" stands for a teacher with changed features.

  None where the phase delivers no network (a search for a trigger, say).
  """
  method, modules = program.method, dict(program.modules)
  if hasattr(method, "detoxified"):
    return "detoxified"
  found = (method.delivers.get(name) for name in ("student", "teacher"))
  return next((name for name in found if name and isinstance(modules.get(name), Network)), None)


def network(
  program: Program, trees: Mapping[str, Tree], who: str, clean: Questions, triggered: Questions,
  index: np.ndarray,
) -> Arrays:  # fmt: skip
  """One network's arrays: {"stages": str[S], "clean:variance": float32[n, S], "triggered:variance",
  and where it has an embedding "clean:map": float32[n, 2], "triggered:map", "explained": float32}.

  Args:
    program, trees: of the phase that made it, {role: variables}.
    who: what `role` said of it.
    clean, triggered: the test images, and the same with the trigger.
    index: int[n], which of them.
  """
  program = _quiet(program, who)
  trees = {name: trees[name] for name, _ in program.modules}
  seen = [_looked(program, trees, who, questions, index) for questions in (clean, triggered)]
  arrays = {"stages": np.array(_stages(program, who), np.str_)}
  arrays |= {f"{k}:variance": v for k, (v, _) in zip(("clean", "triggered"), seen, strict=True)}
  return arrays | (plane(*(embedding for _, embedding in seen)) if seen[0][1].size else {})


def plane(clean: np.ndarray, triggered: np.ndarray) -> Arrays:
  """Embeddings float[n, D] each, laid down on the two first principal axes of both together.

  Returns:
    {"clean:map", "triggered:map": float32[n, 2], "explained": the axes' share of the variance};
    nothing where an embedding is not finite. An axis points where its largest entry is positive.
  """
  both = np.concatenate([clean, triggered]).astype(np.float64)
  if not np.isfinite(both).all():
    return {}
  both = both - both.mean(0)
  _, scale, axes = np.linalg.svd(both, full_matrices=False)
  axes = np.pad(axes[:2], ((0, max(0, 2 - len(axes))), (0, 0)))
  largest = np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], 1)
  flat = (both @ (axes * np.where(largest < 0, -1, 1)).T).astype(np.float32)
  total = (scale**2).sum()
  explained = np.float32((scale[:2] ** 2).sum() / total if total else 0)
  return {
    "clean:map": flat[: len(clean)],
    "triggered:map": flat[len(clean) :],
    "explained": np.asarray(explained),
  }


def _quiet(program: Program, who: str) -> Program:
  """The program without what only training needs: equal networks share one compilation."""
  small = program.for_prediction()
  if who in dict(small.modules):
    return small
  return Program(program.method, program.modules, (), (), 0, Augment(), program.mesh)


def _stages(program: Program, who: str) -> tuple[str, ...]:
  return dict(program.modules)["teacher" if who == "detoxified" else who].stages


def _looked(
  program: Program, trees: Tree, who: str, questions: Questions, index: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """(variances float32[n, S], embeddings float32[n, D]) of the images at `index`."""
  found = []
  for start in range(0, len(index), BATCH):  # the last batch is filled up: one shape, one program
    own = index[np.minimum(np.arange(start, start + BATCH), len(index) - 1)].astype(np.int32)
    put = sharding.replicate(program.mesh, (questions.images[own], own))
    images = _pixels(program.mesh, *put, questions.backdoor)
    found.append(jax.device_get(_inside(program, trees, images, who)))
  variances, embeddings = (
    np.concatenate(parts)[: len(index)] for parts in zip(*found, strict=True)
  )
  return variances, embeddings


def _look(
  program: Program, trees: Tree, images: jax.Array, who: str
) -> tuple[jax.Array, jax.Array]:
  variables = program.method.materialize(program.bind(trees))
  changed: Any = program.method
  asked = changed.detoxified(variables) if who == "detoxified" else variables[who]
  outputs, _ = asked(sharding.split(program.mesh, images), train=False)
  features = [outputs.features[stage] for stage in _stages(program, who)]
  embedding = outputs.embedding
  embedding = jnp.zeros((len(images), 0)) if embedding is None else embedding
  spread = jnp.stack([within(feature) for feature in features], -1)
  return sharding.keep_whole(program.mesh, (spread, embedding.astype(jnp.float32)))


_inside = Jitted(_look, QUICK, static_argnames=("program", "who"))


def within(feature: jax.Array) -> jax.Array:
  """float32[B]: the variance within each image of features [B, ...]."""
  return feature.astype(jnp.float32).reshape(len(feature), -1).var(-1)
