"""AutoAttack (Croce and Hein 2020, arXiv 2003.01690): several attacks, each on who is left.

Its standard version: APGD on cross-entropy, APGD towards nine targets, FAB-T towards nine, and 5000
queries of Square. Every target is a stage of its own. A stage sees those whom no stage before has
fooled, in batches of fixed sizes, so nothing is compiled again; after each stage all is saved, and
an interrupted run goes on from there.
"""

import dataclasses
import hashlib
import io
import pathlib
import time
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rkd_jax.adversarial import apgd, base, fab, square
from rkd_jax.errors import UserError, check_range

TARGETS = 9
SMALLEST = 8  # examples of a batch: fewer are filled up
Stage = tuple[str, base.Attack]


@dataclasses.dataclass(frozen=True)
class AutoAttack(base.Attack):
  """The composition. Called as any attack; `run` also says who fell to what, and what it cost."""

  def stages(self, classes: int) -> Iterator[Stage]:
    """(name, attack) in order."""
    ball = {"eps": self.eps, "norm": self.norm}
    ranks = range(2, min(TARGETS + 2, classes + 1))
    yield "apgd-ce", apgd.APGD(**ball)
    if classes >= apgd.NEED["dlr-t"]:
      yield from ((f"apgd-t {rank}", apgd.APGD(loss="dlr-t", rank=rank, **ball)) for rank in ranks)
    yield from ((f"fab-t {rank}", fab.FAB(rank=rank, **ball)) for rank in ranks)
    yield "square", square.Square(rescaled=False, **ball)

  def __call__(self, apply, images, labels, keys):
    return jnp.asarray(run(self, apply, images, labels, keys).images)


@dataclasses.dataclass(frozen=True)
class Several(AutoAttack):
  """One kind of stages alone: towards every target in turn, on who is left.

  Attributes:
    kind: "apgd-t" or "fab-t".
  """

  kind: str = "apgd-t"

  def stages(self, classes):
    yield from (s for s in super().stages(classes) if s[0].startswith(self.kind))


@dataclasses.dataclass
class Outcome:
  """Attributes:
  images: float32[N, H, W, C]: what fools, where something does; else the image as it was.
  said: int32[N]: the class of each.
  by: the stage that fooled each: 0 for who was wrong before, -1 for who withstood.
  stages: [{"stage", "left" before it, "fooled", "forward", "backward" passes, "seconds"}].
  warnings: sentences that say why the numbers may be too good.
  """

  images: np.ndarray
  said: np.ndarray
  by: np.ndarray
  stages: list[dict[str, Any]]
  warnings: list[str]


def run(
  attack: AutoAttack, apply: Any, images: Any, labels: Any, keys: jax.Array, *, batch: int = 256,
  resume: pathlib.Path | None = None,
) -> Outcome:  # fmt: skip
  """The attack's stages, one after another.

  Args:
    attack: what to compose.
    apply, images, labels, keys: as of any attack; N examples.
    batch: at once.
    resume: a file that is written after each stage, and gone on from.

  Raises:
    UserError: what an attack refuses; a file that was made of something else.
  """
  check_range("AutoAttack's batch", batch, 1, 10**9)
  images, labels = np.asarray(images, np.float32), np.asarray(labels, np.int32)
  found = Outcome(images.copy(), labels.copy(), np.zeros(len(images), np.int32), [], [])
  if not len(images):
    return found
  logits = _clean(attack, apply, images, labels, batch)
  found.said = logits.argmax(-1).astype(np.int32)
  found.by = np.where(found.said == labels, -1, 0).astype(np.int32)
  found.warnings += list(_warned(apply, images, labels, logits, batch))
  mark = _digest(attack, apply, images, labels, keys)
  done = _resumed(resume, mark, found) if resume else 0
  stages = list(attack.stages(logits.shape[-1]))
  if not stages:
    found.warnings.append(f"{logits.shape[-1]} classes leave {attack} nothing to aim at.")
  for number, (name, stage) in enumerate(stages, 1):
    if number <= done:
      continue
    _stage(number, name, stage, apply, images, labels, keys, batch, found)
    if resume:
      _save(resume, mark, found)
  found.warnings += list(_square_warning(found))
  return found


def _stage(number, name, stage, apply, images, labels, keys, batch, found: Outcome) -> None:
  left, began, spent = np.flatnonzero(found.by < 0), time.monotonic(), np.zeros(2, int)
  for rows in _buckets(left, batch):
    own = jax.vmap(jax.random.fold_in, (0, None))(keys[rows], number)  # no two stages draw the same
    given = jnp.asarray(images[rows]), jnp.asarray(labels[rows]), own
    changed, *passes = stage.counted(apply, *given)
    said = np.asarray(jax.device_get(base.logits_of(apply, changed))).argmax(-1)
    hit = said != labels[rows]
    found.images[rows[hit]] = np.asarray(jax.device_get(changed))[hit]
    found.said[rows[hit]] = said[hit]
    found.by[rows[hit]] = number
    spent += [passes[0] + len(rows), passes[1]]
  found.stages.append(
    {
      "stage": name,
      "left": len(left),
      "fooled": int((found.by == number).sum()),
      "forward": int(spent[0]),
      "backward": int(spent[1]),
      "seconds": time.monotonic() - began,
    }
  )


def _buckets(left: np.ndarray, batch: int) -> Iterator[np.ndarray]:
  """The rows in batches of `batch`, its half, its quarter, ...; the last one is filled up."""
  at, size = 0, batch
  while at < len(left):
    while size > SMALLEST and len(left) - at <= size // 2:
      size //= 2
    own = left[at : at + size]
    yield np.resize(own, size)
    at += size


def _clean(attack, apply, images, labels, batch) -> np.ndarray:
  """The logits float32[N, K] of the images; a `UserError` for what cannot be attacked."""
  parts = []
  for start in range(0, len(images), batch):
    rows = np.resize(np.arange(start, min(start + batch, len(images))), min(batch, len(images)))
    got = base.checked(attack, apply, jnp.asarray(images[rows]), labels[rows])
    parts.append(np.asarray(jax.device_get(got))[: min(batch, len(images) - start)])
  return np.concatenate(parts)


@jax.jit
def _steepness(apply: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
  slope = jax.grad(lambda x: base.cross_entropy(apply(x), labels).sum())(images)
  return jnp.abs(slope).max((1, 2, 3))


def _warned(apply, images, labels, logits, batch) -> Iterator[str]:
  """What the reference implementation also warns of."""
  if logits.min() >= 0 and np.allclose(logits.sum(-1), 1, atol=1e-3):
    yield "The network's outputs look like probabilities; attacks need logits."
  if logits.shape[-1] < 4:
    yield f"{logits.shape[-1]} classes: the targeted losses need four, so some stages cannot run."
  some = jnp.asarray(images[:batch])
  twice = [np.asarray(jax.device_get(base.logits_of(apply, some))) for _ in range(2)]
  if not np.allclose(twice[0], twice[1], atol=1e-6):
    yield (
      "The network answers twice differently: AutoAttack here averages over no draws, so such a "
      "network is not attacked properly."
    )
  flat = float(np.mean(np.asarray(_steepness(apply, some, jnp.asarray(labels[:batch]))) == 0))
  if flat > 0.1:
    yield (
      f"The gradient is 0 in every pixel of {100 * flat:.0f} % of the images: attacks that need "
      "one are blind there."
    )


def _square_warning(found: Outcome) -> Iterator[str]:
  last = found.stages[-1] if found.stages else {}
  if last.get("stage") == "square" and last["fooled"] > 0.002 * len(found.by):
    yield (
      f"Square fooled {last['fooled']} of {len(found.by)} images that no gradient had led to: "
      "gradients seem to be hidden."
    )


# What is kept between stages. Of a broken file numpy, zipfile and zlib each raise their own.

_BROKEN = (
  *(OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, EOFError, MemoryError),
  *(RuntimeError, SyntaxError, zipfile.BadZipFile, zlib.error),
)


def _digest(attack: AutoAttack, apply: Any, images, labels, keys: jax.Array) -> str:
  """Of the network its arrays: what it answers differs in the last bits from process to process."""
  text = hashlib.sha256(repr(attack).encode())
  for array in (images, labels, jax.random.key_data(keys), *jax.tree.leaves(apply)):
    array = np.ascontiguousarray(jax.device_get(array))
    text.update(f"{array.dtype} {array.shape};".encode())
    text.update(array.tobytes())
  return text.hexdigest()


def _save(path: pathlib.Path, mark: str, found: Outcome) -> None:
  names = ("left", "fooled", "forward", "backward", "seconds")
  table = {f"stage:{name}": [stage[name] for stage in found.stages] for name in names}
  arrays = {"images": found.images, "said": found.said, "by": found.by, **table}
  buffer = io.BytesIO()
  kept = {"mark": np.array(mark), "names": np.array([s["stage"] for s in found.stages])}
  np.savez(buffer, allow_pickle=False, **kept, **{k: np.asarray(v) for k, v in arrays.items()})
  path.parent.mkdir(parents=True, exist_ok=True)
  beside = path.with_name(path.name + ".part")
  beside.write_bytes(buffer.getvalue())
  beside.replace(path)


def _resumed(path: pathlib.Path, mark: str, found: Outcome) -> int:
  """How many stages the file has; fills the outcome with them."""
  if not path.exists():
    return 0
  try:
    with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
      kept = {name: file[name] for name in file.files}
      made, names = str(kept["mark"]), [str(name) for name in kept["names"]]
  except _BROKEN as error:
    raise UserError(
      f"{path} is damaged ({error}). Remove it, and the attack begins anew."
    ) from error
  if made != mark:
    raise UserError(
      f"{path} was made from other images, another network or another attack, or with other random "
      "keys. Name another file, or remove it."
    )
  found.images, found.said, found.by = kept["images"], kept["said"], kept["by"]
  fields = [name for name in kept if name.startswith("stage:")]
  for number, name in enumerate(names):
    numbers = {field.removeprefix("stage:"): kept[field][number].item() for field in fields}
    found.stages.append({"stage": name, **numbers})
  return len(names)
