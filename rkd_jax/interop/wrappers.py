"""Where in a checkpoint the network is: containers, and prefixes that wrappers put before names."""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

# Averages over the training come first: it is their accuracy that is published.
CONTAINERS = (
  "state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema",
  "state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params",
)  # fmt: skip
PREFIXES = (
  "module.", "model.", "_orig_mod.", "net.", "network.", "backbone.", "ema_model.", "model_ema.",
  "ema.",
)  # fmt: skip
AVERAGED = ("ema.", "ema_model.", "model_ema.")
IGNORED = ("num_batches_tracked", "n_averaged")  # counts of steps: no network computes with them
TRIED = 6  # groups at most


@dataclasses.dataclass(frozen=True)
class Group:
  """Tensors that may be one network's.

  Attributes:
    container: the keys that they lie under; "" where there are none.
    prefix: what stood before each name, "module." and the like.
    tensors: {name without it: array}.
  """

  container: str
  prefix: str
  tensors: Mapping[str, np.ndarray]

  @property
  def place(self) -> str:
    """For people: where it was found."""
    parts = [f"under {self.container!r}"] if self.container else []
    parts += [f"without the prefix {self.prefix!r}"] if self.prefix else []
    return ", ".join(parts) or "at the top"


def groups(tensors: Mapping[str, np.ndarray]) -> list[Group]:
  """The likeliest first: the averaged weights, then the usual containers, then by their number."""
  held: dict[str, dict[str, np.ndarray]] = {}
  for name, array in tensors.items():
    container, _, key = name.rpartition("/")
    if key.rpartition(".")[2] not in IGNORED:
      held.setdefault(container, {})[key] = array
  found = [part for container, arrays in held.items() for part in _parts(container, "", arrays)]
  return sorted(found, key=_rank)[:TRIED]


def _parts(container: str, prefix: str, arrays: dict[str, np.ndarray]) -> Iterable[Group]:
  """Without the prefixes that all names have; averaged weights are a group of their own."""
  while True:
    if averaged := _first(arrays, AVERAGED):
      own = {k.removeprefix(averaged): v for k, v in arrays.items() if k.startswith(averaged)}
      yield from _parts(container, prefix + averaged, own)
      arrays = {k: v for k, v in arrays.items() if not k.startswith(averaged)}
    common = next((p for p in PREFIXES if arrays and all(k.startswith(p) for k in arrays)), "")
    if not common:
      break
    prefix, arrays = prefix + common, {k.removeprefix(common): v for k, v in arrays.items()}
  if arrays:
    yield Group(container, prefix, arrays)


def _first(arrays: Iterable[str], prefixes: tuple[str, ...]) -> str:
  """The prefix that some names, but not all, have."""
  return next((p for p in prefixes if len({key.startswith(p) for key in arrays}) == 2), "")


def _rank(group: Group) -> tuple[int, int, int]:
  last = group.container.rpartition("/")[2]
  known = CONTAINERS.index(last) if last in CONTAINERS else len(CONTAINERS)
  plain = not group.prefix.startswith(AVERAGED)
  return plain, known, -len(group.tensors)
