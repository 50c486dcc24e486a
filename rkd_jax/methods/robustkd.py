"""RobustKD: feature distillation from a teacher whose features were detoxified (arXiv 2406.03409).

A plug-in around a feature distillation (`ofd`, or `attention`): whatever the base asks of the
teacher, its features have been changed first as `detox` learned to. `variant="paper"` is the paper
read literally; "tuned" is our best form within its idea so far (see docs/robustkd.md).
"""

import dataclasses
from typing import Any, ClassVar

from rkd_jax.errors import UserError
from rkd_jax.methods import base
from rkd_jax.methods.detox import Method as Detox

# What a variant means where a spec leaves it open, beside the config's own fields of the names. The
# paper's feature variance is that of the detoxified teacher (`detox`); its distillation has none.
VARIANTS: dict[str, dict[str, Any]] = {
  "paper": {"base": {"name": "ofd"}, "detox": {"name": "detox"}},
  "tuned": {
    "base": {"name": "ofd", "variance": "views", "variance_weight": (0.0, 10.0, 100.0)},
    "detox": {"name": "detox", "combine": "convex", "learning_rate": 1e-3, "weight": 10.0},
  },
}


@dataclasses.dataclass(frozen=True)
class Method(base.Plugin):
  """The base, taught by the detoxified teacher.

  Attributes:
    base: the feature distillation; empty: the variant's, `ofd`.
    detox: how the features were changed (its learned tensors are the role "mask"); empty: the
      variant's.
    variant: "paper" or "tuned": what base and detox are where they are not given.
  """

  detox: Detox = dataclasses.field(kw_only=True)
  variant: str = "paper"
  nested: ClassVar = {"base": "", "detox": ""}
  asks_teacher: ClassVar = "detoxifies the teacher's features"

  def __post_init__(self):
    if not isinstance(self.detox, Detox):
      raise UserError(
        f"robustkd.detox is {self.detox.name!r}, which detoxifies no features. Name 'detox', or "
        "describe it, as {'name': 'detox', 'cap': 0.2}."
      )

  @classmethod
  def complete(cls, spec, section=lambda name: {}):
    variant = spec.get("variant", "paper")
    if variant not in VARIANTS:
      raise UserError(f"robustkd.variant is {variant!r}; choose {' or '.join(VARIANTS)}.")
    meant = {field: section(own["name"]) | own for field, own in VARIANTS[variant].items()}
    return spec | {field: spec.get(field) or meant[field] for field in cls.nested}

  def roles(self, networks):
    return {**super().roles(networks), "mask": base.Role()}

  def seen(self, variables):
    return {**variables, "teacher": self.detox.detoxified(variables)}
