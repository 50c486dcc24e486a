"""Who is poisoned, whatever the trigger: plans that an attacker would choose against a defence.

A plan is `f(backdoor, seed, labels int[N], rate, score float[N] or None) -> int8[N]` of CLEAN,
POISONED and COVER; exactly round(rate * N) are not CLEAN. It uses the backdoor's victims and labels
only, never its trigger. `labels` are the true ones, -1 where nobody knows. For one seed a higher
rate takes the same examples and more. To add a plan, write the function and name it in `PLANS`.

The attacks on agreement filters (keep an image where teacher and witness say the same) are those
of this project; what each borrows is said with it.
"""

from collections.abc import Callable

import numpy as np

from rkd_jax.backdoors.base import CLEAN, COVER, POISONED, Backdoor
from rkd_jax.data import seeds
from rkd_jax.errors import UserError, check_range, nearest

Plan = Callable[[Backdoor, int, np.ndarray, float, np.ndarray | None], np.ndarray]


def plan(
  name: str,
  backdoor: Backdoor,
  seed: int,
  labels: np.ndarray,
  rate: float,
  score: np.ndarray | None = None,
) -> np.ndarray:
  """int8[N]: the plan of this name, a key of `PLANS`."""
  check(name)
  return PLANS[name](backdoor, seed, labels, rate, score)


def check(name: str) -> None:
  """Raises a `UserError` if there is no plan of this name."""
  if name not in PLANS:
    raise UserError(f"No poison plan is called {name!r}. {nearest(name, PLANS)}")


def random(backdoor, seed, labels, rate, score):
  """The backdoor's own: drawn from all, the target class included (BadNets, Gu et al. 2017)."""
  return backdoor.plan(seed, labels, rate)


def target_only(backdoor, seed, labels, rate, score):
  """Images of the target class alone: teacher and witness agree on them, so none is dropped.

  Which images are taken is that of clean-label attacks (Turner et al. 2019, arXiv:1912.02771).
  """
  inside = _inside(backdoor, labels)
  return _kinds(labels, _first(seed, inside, _count(labels, rate), "images of the target class"))


def boundary(backdoor, seed, labels, rate, score):
  """Victims with the highest scores, ties drawn: those whose wrong label a witness may share.

  A score is what the attacker's own witnesses say, as the mean probability of the target given the
  triggered image. Choosing whom to poison is as in Xia et al. 2022 (arXiv:2204.12281).
  """
  if score is None:
    raise UserError("The plan 'boundary' needs a score: who is poisoned first.")
  if np.shape(score) != np.shape(labels) or not np.isfinite(score).all():
    raise UserError(f"score must be {len(labels)} finite numbers, one an example.")
  count = _count(labels, rate)
  return _kinds(labels, _first(seed, _victims(backdoor, labels), count, "victims", score))


def ladder(backdoor, seed, labels, rate, score):
  """Half of the target class (the larger half), half victims.

  The first are kept by the first round of a filter and teach its student the trigger; as the next
  witness it then agrees with the teacher on the second.
  """
  count, outside = _count(labels, rate), _victims(backdoor, labels)
  kept = _first(seed, _inside(backdoor, labels), count - count // 2, "images of the target class")
  return _kinds(labels, [*kept, *_first(seed, outside, count // 2, "victims")])


def cover(backdoor, seed, labels, rate, score):
  """Half POISONED (the larger half), half COVER: triggered with the label kept.

  Covers make the trigger alone a weak sign, so that poisoned images do not stand apart in a
  network's features (Tang et al. 2021, arXiv:1908.00686; Qi et al. 2023, ICLR). They matter only
  where labels are: for the teacher's data. In the pool both kinds are triggered images.
  """
  everyone = np.ones(len(labels), bool)
  chosen = _first(seed, everyone, _count(labels, rate), "images")
  return _kinds(labels, chosen[0::2], chosen[1::2])


PLANS: dict[str, Plan] = {
  "random": random,
  "target_only": target_only,
  "boundary": boundary,
  "ladder": ladder,
  "cover": cover,
}


def _victims(backdoor, labels):
  return np.asarray(backdoor.victims(labels))


def _inside(backdoor, labels):
  """bool[N]: of the target class; a label of -1 is unknown."""
  return ~_victims(backdoor, labels) & (np.asarray(labels) >= 0)


def _count(labels, rate):
  check_range("The poison rate", rate, 0, 1)
  return round(rate * len(labels))


def _first(seed, among, count, what, score=None):
  """int64[count]: the first of a random order, or of the highest score, where `among` bool[N]."""
  order = seeds.rng(seed, "plan").permutation(len(among))
  order = order[among[order]]
  if len(order) < count:
    raise UserError(
      f"The plan wants {count} {what} to poison, but there are {len(order)}. Lower the rate."
    )
  if score is not None:
    order = order[np.argsort(-np.asarray(score, np.float64)[order], kind="stable")]
  return order[:count]


def _kinds(labels, poisoned, covers=()):
  kinds = np.full(len(labels), CLEAN, np.int8)
  kinds[np.asarray(poisoned, int)] = POISONED
  kinds[np.asarray(covers, int)] = COVER
  return kinds
