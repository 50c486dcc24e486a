"""A given teacher on the clean hold-out, before anything learns from it: does it see as we do?"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

from rkd_jax import networks, strangers
from rkd_jax.backdoors.base import Backdoor
from rkd_jax.data.sources import Dataset
from rkd_jax.given import Given, Normalisation
from rkd_jax.interop.families.base import USUAL
from rkd_jax.models.network import Network
from rkd_jax.phases import Config

IMAGES = 1000  # of the hold-out at most
TRIED = 250  # of them for each other normalisation
BATCH = 125
POOR = 3.0  # times chance, or half the way from chance to all: below both something is wrong
FOLLOWS = 0.5  # of triggered images: a teacher that does so less often has another trigger, or none
BETTER = 0.05  # by which another normalisation's accuracy must be higher to be named


@dataclasses.dataclass(frozen=True)
class Look:
  """Attributes:
  lines: what is said in the terminal.
  warnings: the same, where something looks wrong.
  record: for the manifest.
  """

  lines: tuple[str, ...]
  warnings: tuple[str, ...]
  record: dict[str, Any]


def look(given: Given, config: Config, dataset: Dataset, backdoor: Backdoor | None = None) -> Look:
  """Measures the given teacher on the first hold-out images, tries the usual normalisations, and
  whether it follows the trigger that the config names, if one is given."""
  images, labels = dataset.holdout.images[:IMAGES], dataset.holdout.labels[:IMAGES]
  network = networks.build(config, given.network, dataset, given.normalisation)
  variables = jax.device_put(given.variables())
  said = answers(network, variables, images, given.normalisation)
  hits, few = said == labels, min(TRIED, len(labels))
  accuracy = float(hits.mean())
  others = {
    name: float((answers(network, variables, images[:few], norm) == labels[:few]).mean())
    for name, norm in USUAL.items()
    if len(norm[0]) == dataset.image_shape[-1] and not same(norm, given.normalisation)
  }
  own = float(hits[:few].mean())
  found = doubts(given, dataset, said, labels, others, own)
  for name in given.about.get("others", ()):
    other = networks.build(config, name, dataset, given.normalisation)
    right = float(
      (answers(other, variables, images[:few], given.normalisation) == labels[:few]).mean()
    )
    others[name] = right
    if right > own + BETTER:
      found.append(
        f"The given teacher looks to be a {name}, whose tensors are the same: {right:.1%} right as "
        f"that, {own:.1%} as a {given.network}. Say --config.teacher.network={name}"
      )
  rate = None
  if backdoor is not None:
    shown = triggered(backdoor, images)
    rate = followed(backdoor, labels, answers(network, variables, shown, given.normalisation))
    if rate is not None and rate < FOLLOWS:
      found.append(
        f"Of the hold-out's other classes the trigger {config.backdoor!r} sends {rate:.1%} to "
        f"class {config.target}: it does not look like this teacher's, so no student can show that "
        "its backdoor is gone. If nobody knows its trigger, say --config.backdoor=unknown "
        "--config.contamination=0"
      )
  record = {
    "sha256": given.sha256,
    "network": given.network,
    "normalisation": given.normalisation,
    "normalisation_source": given.source,
    "classes": list(given.classes),
    "count": given.count,
    "accuracy": accuracy,
    "holdout": len(labels),
    "others": others,
    "trigger_rate": rate,
    "warnings": list(found),
    **{key: given.about[key] for key in ("kind", "family", "place") if key in given.about},
  }
  return Look(tuple(sayings(given, config, accuracy, len(labels))), tuple(found), record)


def sayings(given: Given, config: Config, accuracy: float, count: int) -> list[str]:
  about = given.about
  lines = [f"Given teacher: {given.network}, sha256 {given.sha256[:16]}"]
  if about:
    lines.append(f"  {about['family']}, {given.count} classes, found {about['place']}")
    if given.network != config.teacher.network:
      lines.append("  taken as the file has it; config.teacher.network is not used")
    if about["others"]:
      lines.append(
        f"  its tensors are also those of {', '.join(about['others'])}: if that is meant, say "
        f"--config.teacher.network={about['others'][0]}"
      )
  mean, std = given.normalisation
  lines.append(f"  pixels: mean {mean}, std {std} ({given.source})")
  if given.classes:
    lines.append(f"  our classes are its classes {given.classes}")
  seen = "which it may have been trained on"
  return [*lines, f"  accuracy on {count} clean hold-out images, {seen}: {accuracy:.1%}"]


def doubts(
  given: Given, dataset: Dataset, said: np.ndarray, labels: np.ndarray, others: dict[str, float],
  own: float,
) -> list[str]:  # fmt: skip
  """What looks wrong: the pixels, the classes, or all of it. `own`: accuracy where `others` were
  tried."""
  found, accuracy = [], float((said == labels).mean())
  chance = 1 / dataset.classes
  best = max(others, key=lambda name: others[name], default=None)
  order, matched = assignment(said, labels, dataset.classes)
  if matched > accuracy + max(0.1, 3 * dataset.classes / len(labels)):  # chance matches too
    shown = ",".join(map(str, [(given.classes or range(10**6))[k] for k in order]))
    found.append(
      f"The given teacher's classes look to be in another order: {accuracy:.1%} right, "
      f"{matched:.1%} after the best matching. Compare its list of classes with "
      f"{list(dataset.class_names)[:10]}; what matches here is --config.teacher.classes={shown}"
    )
  elif best and others[best] > own + BETTER:
    found.append(
      f"The given teacher looks mis-normalised: {own:.1%} right, but {others[best]:.1%} of the "
      f"same images with another usual normalisation ({best}). If that is what it was trained "
      f"with, say {strangers.flags(*USUAL[best])}"
    )
  if accuracy < min(POOR * chance, (1 + chance) / 2) and not found:
    found.append(
      f"The given teacher is right on {accuracy:.1%} of the clean hold-out (chance is "
      f"{chance:.1%}): it was trained on something else, on other pixels "
      "(config.teacher.mean, .std) or on other classes (config.teacher.classes). Nothing good can "
      "be learned from it so."
    )
  return found


def assignment(said: np.ndarray, labels: np.ndarray, classes: int) -> tuple[np.ndarray, float]:
  """(which answer matches each class best, one to one; the accuracy that this would give)."""
  table = np.zeros((classes, classes), int)
  np.add.at(table, (labels, said), 1)
  rows, columns = linear_sum_assignment(-table)
  return columns, float(table[rows, columns].sum() / len(labels))


def triggered(backdoor: Backdoor, images: Any) -> np.ndarray:
  """uint8[N, H, W, C]: the images with the trigger, as a file keeps them."""
  keys, found = jax.random.split(jax.random.key(0), len(images)), []
  for start in range(0, len(images), BATCH):  # photographs as floats are large
    some = slice(start, start + BATCH)
    pixels = jnp.asarray(np.asarray(images[some]), jnp.float32) / 255
    seen = backdoor.trigger(pixels, keys[some], "test")
    found.append(np.round(255 * np.asarray(seen)).astype(np.uint8))
  return np.concatenate(found)


def followed(backdoor: Backdoor, labels: np.ndarray, said: np.ndarray) -> float | None:
  """How often images of other classes than the target's go there; None without such images."""
  victims = np.asarray(backdoor.victims(jnp.asarray(labels)))
  hits = said == np.asarray(backdoor.relabel(jnp.asarray(labels)))
  return float(hits[victims].mean()) if victims.any() else None


def same(one: Normalisation, other: Normalisation) -> bool:
  return bool(np.allclose(one, other, atol=5e-4))


def answers(
  network: Network, variables: Any, images: Any, normalisation: Normalisation
) -> np.ndarray:
  """int[N]: the class of each image, uint8[N, H, W, C]; one compiled program for all."""
  pixels = tuple(jnp.asarray(part, jnp.float32).reshape(1, 1, 1, -1) for part in normalisation)
  channels = len(normalisation[0])
  plain = dataclasses.replace(network, mean=(0.0,) * channels, std=(1.0,) * channels)
  size, found = min(BATCH, len(images)), []
  for start in range(0, len(images), size):
    batch = np.asarray(images[start : start + size])
    padded = np.concatenate([batch, np.repeat(batch[:1], size - len(batch), 0)])
    found.append(np.asarray(_answer(plain, variables, padded, *pixels))[: len(batch)])
  return np.concatenate(found)


@functools.partial(jax.jit, static_argnums=0)
def _answer(network: Network, variables: Any, images: jax.Array, mean: Any, std: Any) -> jax.Array:
  seen = (images.astype(jnp.float32) / 255 - mean) / std
  logits = network.apply(variables, seen, train=False)[0].logits
  assert logits is not None
  return logits.argmax(-1)
