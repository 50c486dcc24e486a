"""Linear networks, on which the worst change of an image is known exactly."""

import jax
import numpy as np

SHAPE = (3, 3, 1)


def score(weights, images):
  """Logits float[B, K] of images [B, 3, 3, 1]; weights [9, K]."""
  return (images.reshape(len(images), -1) - 0.5) @ weights


def network(classes: int = 5, seed: int = 0, scale: float = 1.0):
  weights = scale * jax.random.normal(jax.random.key(seed), (9, classes))
  return jax.tree_util.Partial(score, weights)


def examples(apply, count: int = 24, seed: int = 1):
  """(images in the middle of the box, the classes that the network says, keys)."""
  images = jax.random.uniform(jax.random.key(seed), (count, *SHAPE), minval=0.3, maxval=0.7)
  keys = jax.random.split(jax.random.key(seed + 1), count)
  return images, apply(images).argmax(-1), keys


def distances(apply, images, labels, norm: str) -> np.ndarray:
  """float[B]: how far the nearest point of another class is, as long as the box is wide enough."""
  weights, logits = np.asarray(apply.args[0]), np.asarray(apply(images))
  dual = (lambda w: np.abs(w).sum()) if norm == "linf" else np.linalg.norm
  return np.array(
    [
      min(
        (z[y] - z[k]) / dual(weights[:, y] - weights[:, k]) for k in range(len(z)) if k != y
      )
      for z, y in zip(logits, np.asarray(labels), strict=True)
    ]
  )  # fmt: skip


def sizes(changed, images, norm: str) -> np.ndarray:
  moved = np.asarray(changed - images).reshape(len(images), -1)
  return np.abs(moved).max(1) if norm == "linf" else np.linalg.norm(moved, axis=1)
