"""No training: a network that was made elsewhere takes its place among the phases."""

import dataclasses

from rkd_jax.methods import base


@dataclasses.dataclass(frozen=True)
class Method(base.Method):
  """Keeps the given network as it is. Its one role's values come from a file."""

  part = "nothing"

  def roles(self, networks):
    return {"student": base.Role(base.network(networks, "student"), player="student")}

  def trains(self):
    return {"steps": 0, "epochs": 0}

  def loss(self, player, variables, state, batch, targets, key, step):
    return {}, base.Aux()
