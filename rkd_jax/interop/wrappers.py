"""Where in a checkpoint the network is: containers, and prefixes that wrappers put before names."""

import dataclasses
import re
from collections.abc import Iterable, Mapping

import numpy as np

# Averages over the training come first: it is their accuracy that is published.
CONTAINERS = (
  "state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema",
  "state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params",
)  # fmt: skip
# Around a part of a network: DataParallel, torch.compile, FSDP, activation checkpointing.
INNER = re.compile(
  r"(?<=\.)((module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+"
)
AVERAGED = ("ema.", "ema_model.", "model_ema.")
IGNORED = ("num_batches_tracked", "n_averaged")  # counts of steps: no network computes with them
TRIED, DEEP = 12, 8  # groups at most, and prefixes of one


@dataclasses.dataclass(frozen=True)
class Group:
  """Tensors that may be one network's.

  Attributes:
    container: the keys that they lie under; "" where there are none.
    prefix: what stood before each name: "module.", or whatever all have in common.
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
  """Without the prefixes that all names have, then with them, for whoever knows the names so;
  averaged weights are a group of their own."""
  whole = arrays
  for _ in range(DEEP):
    if averaged := _first(arrays, AVERAGED):
      own = {k.removeprefix(averaged): v for k, v in arrays.items() if k.startswith(averaged)}
      yield from _parts(container, prefix + averaged, own)
      arrays = {k: v for k, v in arrays.items() if not k.startswith(averaged)}
    firsts = {k.partition(".")[0] + "." for k in arrays}
    common = firsts.pop() if len(firsts) == 1 else ""
    if not common or not all(k.startswith(common) for k in arrays):
      break
    prefix, arrays = prefix + common, {k.removeprefix(common): v for k, v in arrays.items()}
  if arrays:
    yield Group(container, prefix, _plain(arrays))
    if len(arrays) == len(whole) and prefix:
      yield Group(container, prefix.removesuffix(_taken(whole, arrays)), whole)


def _taken(whole: dict[str, np.ndarray], arrays: dict[str, np.ndarray]) -> str:
  """What the names have lost at their beginning."""
  return next(iter(whole)).removesuffix(next(iter(arrays)))


def _plain(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Without what wrappers around parts of the network put into names, if names stay apart."""
  found = {INNER.sub("", name): array for name, array in arrays.items()}
  return found if len(found) == len(arrays) else arrays


def _first(arrays: Iterable[str], prefixes: tuple[str, ...]) -> str:
  """The prefix that some names, but not all, have."""
  return next((p for p in prefixes if len({key.startswith(p) for key in arrays}) == 2), "")


def _rank(group: Group) -> tuple[bool, int, int]:
  last = group.container.rpartition("/")[2]
  known = CONTAINERS.index(last) if last in CONTAINERS else len(CONTAINERS)
  plain = not group.prefix.startswith(AVERAGED)
  return plain, known, -len(group.tensors)
