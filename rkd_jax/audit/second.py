"""Second opinions: cheap statistics of a network that is there already, no search."""

from typing import Any

import numpy as np

from rkd_jax.errors import UserError

STIMULUS = 2.0  # times its largest activation on clean images


def head(variables: Any) -> np.ndarray | None:
  """float[K]: the mean weight of each class in the last layer, over the mean norm of the classes'.

  A target class's weights stand out upwards (Fields et al., "Trojan signatures in DNN weights",
  ICCV workshops 2021). None where the last layer is not called "head".
  """
  kernel = (variables["params"].get("head") or {}).get("kernel")
  if kernel is None:
    return None
  kernel = np.asarray(kernel, np.float64)
  return kernel.mean(0) / max(np.linalg.norm(kernel, axis=0).mean(), 1e-12)


def units(embedding: np.ndarray, logits: np.ndarray, variables: Any) -> np.ndarray | None:
  """float[K]: how far one unit of the embedding alone can push the clean images into each class.

  Unit d is set to twice its largest activation on them; the mean margin of class k, over the median
  margin of the network's own answers, is maximised over d. One unit that rules a class is what ABS
  looks for (Liu et al., CCS 2019); here only in the last layer, where it is linear.

  Args:
    embedding: float[N, D], the input of the last layer on clean images.
    logits: float[N, K].
    variables: whose last layer is called "head"; else None is returned.
  """
  kernel = (variables["params"].get("head") or {}).get("kernel")
  if kernel is None:
    return None
  kernel = np.asarray(kernel, np.float64)
  raised = STIMULUS * embedding.max(0) - embedding
  own = np.sort(logits, -1)
  scale = max(float(np.median(own[:, -1] - own[:, -2])), 1e-6)
  best = np.full(kernel.shape[1], -np.inf)
  for d, row in enumerate(kernel):  # one unit at a time: [N, K] in memory
    pushed = logits + raised[:, d : d + 1] * row
    best = np.maximum(best, _margins(pushed).mean(0))
  return best / scale


def _margins(logits: np.ndarray) -> np.ndarray:
  """float[N, K]: of each class, z_k - max of the others."""
  order = np.sort(logits, -1)
  top = logits == order[:, -1:]
  return logits - np.where(top, order[:, -2:-1], order[:, -1:])


def entropies(
  answer: Any, suspects: np.ndarray, clean: np.ndarray, seed: int = 0, blends: int = 10
) -> np.ndarray:
  """float[M]: the mean entropy, in nats, of the answers to each image added to clean ones.

  STRIP (Gao et al., ACSAC 2019): an image that carries a trigger keeps its answer, so the
  entropy is low.

  Args:
    answer: uint8[N, H, W, C] -> float[N, K] logits.
    suspects: uint8[M, H, W, C].
    clean: uint8[N, H, W, C], clean images to add.
    seed: draws which.
    blends: clean images for each.
  """
  if not len(clean):
    raise UserError("STRIP needs clean images to blend with; there are none.")
  draw = np.random.default_rng(seed)
  total = np.zeros(len(suspects))
  for _ in range(blends):
    partners = clean[draw.integers(len(clean), size=len(suspects))]
    blended = np.clip(suspects.astype(np.int32) + partners, 0, 255).astype(np.uint8)
    logits = answer(blended)
    logits = logits - logits.max(-1, keepdims=True)
    log = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    total -= (np.exp(log) * log).sum(-1)
  return total / blends


def low_entropy(suspects: np.ndarray, clean: np.ndarray, quantile: float = 0.05) -> float:
  """The share of suspects whose entropy is below that quantile of clean images' entropies."""
  return float(np.mean(suspects < np.quantile(clean, quantile))) if len(suspects) else 0.0
