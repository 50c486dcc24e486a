"""What changes while a phase trains. All of it is in the checkpoint; nothing else is."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from flax import struct

from rkd_jax.data import seeds
from rkd_jax.data.augment import Augment
from rkd_jax.errors import UserError
from rkd_jax.methods.base import Bound, Example, Method, Role, implements
from rkd_jax.training.optimizer import Optimizer

Tree = Any


@struct.dataclass
class TrainState:
  """Attributes:
  step: int32, rounds done; it is also the position in the data.
  roles: {role: variables} of the trained roles and of those made from `memory` after the survey.
  optimizers: {trained role: optax state}.
  memory: the method's own state.
  metrics: {name: (sum, count)} since they were last logged.
  """

  step: jax.Array
  roles: dict[str, Tree]
  optimizers: dict[str, Tree]
  memory: Tree
  metrics: dict[str, tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Program:
  """All that is compiled into a step. Hashable: equal programs are compiled once a process.

  Attributes:
    method: what is computed.
    modules: ((role, module), ...); bare roles have module None.
    optimizers: ((trained role, its Optimizer), ...).
    players: ((trained role, player), ...).
    rounds: how many the phase has (schedules depend on it).
    augment: what happens to images on the device.
    mesh: where.
  """

  method: Method
  modules: tuple[tuple[str, Any], ...]
  optimizers: tuple[tuple[str, Optimizer], ...]
  players: tuple[tuple[str, str], ...]
  rounds: int
  augment: Augment
  mesh: jax.sharding.Mesh

  def bind(self, trees: Mapping[str, Tree]) -> dict[str, Any]:
    """Raw variables -> what a method sees: callable networks, and bare trees without a module."""
    modules = dict(self.modules)
    return {
      role: tree["params"] if modules[role] is None else Bound(modules[role], tree)
      for role, tree in trees.items()
    }

  def still(self, frozen: Mapping[str, Tree], roles: Mapping[str, Tree]) -> dict[str, Tree]:
    """All roles that nobody trains: the frozen ones, and those of `roles` that a survey made."""
    trained = dict(self.players)
    return {**frozen, **{name: tree for name, tree in roles.items() if name not in trained}}

  def for_prediction(self) -> "Program":
    """The program as far as predictions depend on it: equal ones share one compilation.

    Most methods predict with their student, so theirs is that of a method with nothing else.
    """
    method, modules = self.method, self.modules
    if not (implements(method, "predict") or implements(method, "materialize")):
      method, modules = Method(), tuple(m for m in modules if m[0] == "student")
    return Program(method, modules, (), (), 0, Augment(), self.mesh)

  def chains(self) -> dict[str, Any]:
    """{trained role: optax transformation}."""
    turns, players = dict(self.method.turns), dict(self.players)
    return {
      role: optimizer.chain(self.rounds * turns[players[role]])
      for role, optimizer in self.optimizers
    }


def make_program(
  method: Method,
  roles: Mapping[str, Role],
  rounds: int,
  augment: Augment,
  mesh: jax.sharding.Mesh,
  optimizer: Optimizer,
  overrides: Mapping[str, Mapping[str, Any]] | None = None,
) -> Program:
  """A `Program` whose trained roles use `optimizer`, changed by the role, then by `overrides`."""
  trained = {name: role for name, role in roles.items() if role.player}
  overrides = overrides or {}
  for player, _ in method.turns:
    if player not in {role.player for role in trained.values()}:
      raise UserError(f"{type(method).__module__}: no role is trained by the player {player!r}.")

  def described(name: str) -> Optimizer:
    changes = {**(trained[name].optimizer or {}), **overrides.get(name, {})}
    return optimizer.changed(changes, name)

  return Program(
    method=method,
    modules=tuple((name, role.module) for name, role in roles.items()),
    optimizers=tuple((name, described(name)) for name in trained),
    players=tuple((name, str(role.player)) for name, role in trained.items()),
    rounds=rounds,
    augment=augment,
    mesh=mesh,
  )


def init_role(
  name: str, role: Role, key: jax.Array, made: Mapping[str, Any], example: Example
) -> Tree:
  """Fresh variables of one role ({"params": ...} also for a bare tree)."""
  if role.copy:
    source = made[role.copy]
    return source.variables if isinstance(source, Bound) else {"params": source}
  if role.init:
    tree = role.init(key, made, example)
    return {"params": tree} if role.module is None else tree
  if not role.given:
    return role.module.init(key)
  raise UserError(
    f"Role {name!r} has no values: no phase gives it, and it has neither `init` nor `copy`. "
    f"Name the phase that delivers it."
  )


def role_key(key: jax.Array, name: str) -> jax.Array:
  """A key of the role's own, so that adding a role changes no other's start."""
  return jax.random.fold_in(key, seeds.fold(0, "role", name))
