"""How small is the perturbation into the target class beside those into others? For docs/abd.md.

  PYTHONPATH=. python benchmarks/abd_sizes.py WORKDIR... --out results/inside_abd/sizes.json

Reads what finished second stages of `abd` (`unlearning`) found in the workdirs' phases: by l_1
norm, by l_2 norm, and by the geometric mean of the two (`unlearning.sizes`), the target's and the
least other class's, over the median of all.
"""

import argparse
import pathlib
from typing import Any

import jax.numpy as jnp
import measure
import numpy as np
import orbax.checkpoint as ocp

from rkd_jax.methods import unlearning
from rkd_jax.reporting.files import write_json

TARGET = 0  # of all configs here


def beside(sizes: np.ndarray) -> dict[str, Any]:
  """The target's, and the least other class's, over the median."""
  found = sizes / np.median(sizes)
  others = np.delete(found, TARGET)
  return {"target": float(found[TARGET]), "least_other": float(others.min())}


def found(phase: pathlib.Path) -> dict[str, Any] | None:
  """What one finished phase found; None if it sought nothing by class."""
  roles = ocp.PyTreeCheckpointer().restore(str((phase / "final").resolve()))["roles"]
  if unlearning.SEEKER not in roles:
    return None
  deltas = jnp.asarray(roles[unlearning.SEEKER]["params"])
  lengths, sizes = (np.asarray(f(deltas)) for f in (unlearning.lengths, unlearning.sizes))
  return {"l1": beside(lengths), "l2": beside(sizes**2 / lengths), "size": beside(sizes)}


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("workdirs", type=pathlib.Path, nargs="+")
  parser.add_argument("--out", type=pathlib.Path, required=True)
  options = parser.parse_args()
  report = {}
  for workdir in options.workdirs:
    for done in sorted(workdir.glob("phases/seed*/*/done.json")):
      name = f"{workdir.name}/{done.parent.parent.name}"
      if (sizes := found(done.parent)) is not None:
        if name in report:
          raise SystemExit(f"{workdir} has two second stages of {done.parent.parent.name}.")
        report[name] = sizes
        print(name, sizes)
  if not report:
    raise SystemExit("No finished second stage by class (`unlearning`) is in these workdirs.")
  options.out.parent.mkdir(parents=True, exist_ok=True)
  write_json(options.out, {"schema": 1, **measure.context(), "found": report})


if __name__ == "__main__":
  main()
