"""Attacks by the names that a config has."""

import functools
import re
from collections.abc import Callable
from typing import Any

from rkd_jax.adversarial import apgd, autoattack, base, pgd, square
from rkd_jax.errors import UserError, nearest

WHOLE: dict[str, Callable[..., Any]] = {
  "fgsm": functools.partial(pgd.PGD, steps=1, random_start=False),
  "apgd-ce": apgd.APGD,
  "apgd-dlr": functools.partial(apgd.APGD, loss="dlr"),
  "apgd-t": functools.partial(autoattack.Several, kind="apgd-t"),
  "fab-t": functools.partial(autoattack.Several, kind="fab-t"),
  "square": square.Square,
  "autoattack": autoattack.AutoAttack,
}
COUNTED = {  # a name, a number of steps, perhaps "x" and a number of restarts
  "pgd": pgd.PGD,
  "mim": functools.partial(pgd.PGD, momentum=1.0, random_start=False),
  "cw": functools.partial(pgd.PGD, loss="cw"),
}


def make(name: str, norm: str, eps: float) -> base.Attack:
  """The attack "fgsm", "pgd-20", "pgd-20x5" (five restarts), "mim-10", "cw-30", "apgd-ce", ...

  FGSM's one step is as long as the radius; other step sizes are 2.5 eps / steps.

  Raises:
    UserError: no attack has the name, or the ball is none.
  """
  if name in WHOLE:
    size = {"step_size": eps} if name == "fgsm" else {}
    return WHOLE[name](eps=eps, norm=norm, **size)
  found = re.fullmatch(r"([a-z]+)-(\d+)(?:x(\d+))?", name)
  if not found or found[1] not in COUNTED:
    known = [*WHOLE, *(f"{kind}-<steps>" for kind in COUNTED)]
    raise UserError(f"No attack is called {name!r}. {nearest(name, known)}")
  restarts = int(found[3] or 1)
  return COUNTED[found[1]](eps=eps, norm=norm, steps=int(found[2]), restarts=restarts)
