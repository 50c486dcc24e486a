"""What the tests see of one network: a record of plain values, and the triggers that were found."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rkd_jax.audit import inversion, mmbd, second
from rkd_jax.errors import UserError, check_range, nearest
from rkd_jax.models.network import Network
from rkd_jax.training import sharding

TESTS = (*inversion.KINDS, "mmbd", "head", "units", "strip")
VERDICT = ("patch", "l2", "linf", "mmbd", "head")  # whose combination the verdict rests on
BATCH = 128  # images that a network is asked about at a time
FEWEST = 20  # images for an inversion to mean something
KEPT = 10  # inverted triggers of each kind: those of the smallest
BLENDS = 10  # clean images that STRIP adds to each
Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Settings:
  """What is tested, and how long.

  Attributes:
    tests: of `TESTS`.
    steps: of every search.
    batch: images that each class sees in a step of an inversion.
    images: clean images that are used, at most.
    rate: of images that an inverted trigger must send to its class.
    starts: random images per class of `mmbd`.
    seed: draws starts and orders.
  """

  tests: tuple[str, ...] = ("patch", "l2", "linf", "mmbd", "head", "units", "strip")
  steps: int = 60
  batch: int = 8
  images: int = 200
  rate: float = 0.9
  starts: int = 4
  seed: int = 0

  def __post_init__(self):
    for test in self.tests:
      if test not in TESTS:
        raise UserError(f"No test is called {test!r}. {nearest(test, TESTS)}")
    if not self.tests or len(set(self.tests)) < len(self.tests):
      raise UserError(f"The tests are {','.join(self.tests) or 'none'}; name each once.")
    check_range("the audit's images", self.images, FEWEST, 10**9)
    for made in (self.inversion, self.margins):  # they check the rest
      made()

  def inversion(self) -> inversion.Settings:
    return inversion.Settings(self.steps, self.batch, self.rate)

  def margins(self) -> mmbd.Settings:
    return mmbd.Settings(self.steps, self.starts)


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
  """What the auditor has.

  Attributes:
    clean: uint8[N, H, W, C], with `labels` int[N].
    pool: uint8[M, H, W, C], images that may carry a trigger; None where there are none.
  """

  clean: np.ndarray
  labels: np.ndarray
  pool: np.ndarray | None = None


def balanced(labels: np.ndarray, count: int) -> np.ndarray:
  """int[<= count]: rows, of every class as many as there are of the rarest, if that can be."""
  turn = np.zeros(len(labels), int)  # which of its class each image is
  for k in np.unique(labels):
    own = labels == k
    turn[own] = np.arange(own.sum())
  return np.argsort(turn, kind="stable")[:count]


@dataclasses.dataclass(frozen=True)
class Logits:
  """A network's logits: hashable, so networks of one architecture share their programs."""

  network: Network

  def __call__(self, variables: Any, images: jax.Array) -> jax.Array:
    logits = self.network.apply(variables, images, train=False)[0].logits
    if logits is None:
      raise UserError("A network without a last layer gives no answers that could be audited.")
    return logits


def measure(
  network: Network, variables: Any, images: Images, settings: Settings, mesh: Mesh | None = None,
  tick: Callable[[str], None] = lambda test: None,
) -> tuple[Record, dict[str, np.ndarray]]:  # fmt: skip
  """(record, triggers) of one network.

  Args:
    network, variables: whose.
    images: what the auditor has; of the clean ones `settings.images`.
    settings: which tests, how long.
    mesh: of the devices; None: all.
    tick: told each test before it begins.

  Returns:
    The record: {"accuracy", "images", "classes", "tests": {test: {"values": [K] or [1], higher is
    more suspicious, ...}}}, plain values. A test that the network or the images do not allow is
    missing. The triggers of every inversion's `KEPT` smallest classes: {"<kind>/classes": int[n],
    "<kind>/mask": float[n, H, W, 1], "<kind>/pattern": float[n, H, W, C]}.
  """
  mesh = mesh or sharding.make_mesh()
  rows, apply = balanced(images.labels, settings.images), Logits(network)
  known = dataclasses.replace(images, clean=images.clean[rows], labels=images.labels[rows])
  if len(known.labels) < FEWEST or len(np.unique(known.labels)) < 2:
    raise UserError(
      f"There are {len(known.labels)} clean labelled images of {len(np.unique(known.labels))} "
      f"classes; an audit needs {FEWEST} of two classes. Give it more (--holdout)."
    )
  variables = sharding.replicate(mesh, variables)
  answer = Answer(network, variables, mesh)
  logits, embedding = answer(known.clean)
  found: dict[str, Record] = {}
  triggers: dict[str, np.ndarray] = {}
  for test in settings.tests:
    tick(test)
    if test in inversion.KINDS:
      made = inversion.invert(
        apply, variables, known.clean, known.labels, settings.seed, settings.inversion(), test, mesh
      )
      found[test] = _inverted(made)
      triggers |= _triggers(test, made)
    elif test == "mmbd":
      found[test] = _margins(apply, variables, network, logits.shape[1], settings, mesh)
    elif test == "head":
      found[test] = _values(second.head(variables))
    elif test == "units":
      own = None if embedding is None else second.units(embedding, logits, variables)
      found[test] = _values(own)
    elif images.pool is not None and len(images.pool):
      found[test] = _strip(answer, images.pool, known.clean, settings)
  record = {
    "accuracy": float((logits.argmax(-1) == known.labels).mean()),
    "images": len(known.labels),
    "classes": int(logits.shape[1]),
    "tests": {test: one for test, one in found.items() if one},
  }
  return record, triggers


def _inverted(found: inversion.Found) -> Record:
  return {
    "values": plain(-np.log(found.sizes)),
    "sizes": plain(found.sizes),
    "rates": plain(found.rates),
  }


def _triggers(test: str, found: inversion.Found) -> dict[str, np.ndarray]:
  """The smallest classes'."""
  k = np.argsort(found.sizes, kind="stable")[:KEPT].astype(np.int32)
  named = {"mask": found.mask[k], "pattern": found.pattern[k], "classes": k}
  return {f"{test}/{name}": array for name, array in named.items()}


def _margins(
  apply: Logits, variables: Any, network: Network, classes: int, settings: Settings, mesh: Mesh
) -> Record:
  found = mmbd.margins(
    apply, variables, network.image_shape, classes, settings.seed, settings.margins(), mesh
  )
  values = np.log(np.maximum(found, 1e-6))
  return {"values": plain(values), "margins": plain(found), "nominal": mmbd.nominal(found)}


def _strip(answer: "Answer", pool: np.ndarray, clean: np.ndarray, settings: Settings) -> Record:
  ask = lambda images: answer(images)[0]  # noqa: E731
  own, theirs = (
    second.entropies(ask, some, clean, settings.seed, BLENDS) for some in (clean, pool)
  )
  share = second.low_entropy(theirs, own)
  return {"values": [share], "share": share, "pool": len(pool)}


def _values(found: np.ndarray | None) -> Record:
  return {} if found is None else {"values": plain(found)}


def plain(values: Iterable[float]) -> list[float]:
  """Numbers for JSON, seven digits of each.

  Raises:
    UserError: one is not finite: no rank can be told of it.
  """
  found = [float(f"{value:.7g}") for value in values]
  if not np.isfinite(found).all():
    raise UserError(
      "The network answers some images with numbers that are not finite (its weights are too "
      "large), so it cannot be audited."
    )
  return found


class Answer:
  """uint8[N, H, W, C] -> (logits float[N, K], embedding float[N, D] or None) of one network."""

  def __init__(self, network: Network, variables: Any, mesh: Mesh):
    self._network, self._variables, self._mesh = network, variables, mesh

  def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    logits, embeddings = [], []
    for start in range(0, len(images), BATCH):
      batch = np.asarray(images[start : start + BATCH])
      padded = np.concatenate([batch, np.repeat(batch[:1], BATCH - len(batch), 0)])
      seen = sharding.spread(self._mesh, padded.astype(np.float32) / 255)
      found = jax.device_get(_outputs(self._network, self._variables, seen))
      logits.append(found[0][: len(batch)])
      embeddings.append(None if found[1] is None else found[1][: len(batch)])
    whole = None if embeddings[0] is None else np.concatenate(embeddings)
    return np.concatenate(logits).astype(np.float64), whole


@functools.partial(jax.jit, static_argnums=0)
def _outputs(network: Network, variables: Any, images: jax.Array) -> Any:
  outputs = network.apply(variables, images, train=False)[0]
  embedding = outputs.embedding
  logits = jnp.asarray(outputs.logits, jnp.float32)
  return logits, None if embedding is None else embedding.astype(jnp.float32)
