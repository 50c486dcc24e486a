"""Everything random on the host is a pure function of a seed and names."""

import hashlib
import json

import numpy as np


def _digest(seed: int, names: tuple[str | int, ...]) -> bytes:
  # JSON keeps 1 and "1", and ("ab", "c") and ("a", "bc"), apart.
  parts = [int(seed), *(n if isinstance(n, str) else int(n) for n in names)]
  return hashlib.sha256(json.dumps(parts).encode()).digest()


def rng(seed: int, *names: str | int) -> np.random.Generator:
  """A generator of its own for every (seed, names): `rng(3, "order", epoch).permutation(n)`."""
  key = int.from_bytes(_digest(seed, names)[:16], "little")
  return np.random.Generator(np.random.Philox(key=key))


def fold(seed: int, *names: str | int) -> int:
  """A seed in [0, 2**31) for every (seed, names): a phase's, a split's, a teacher's own."""
  return int.from_bytes(_digest(seed, names)[16:20], "little") >> 1
