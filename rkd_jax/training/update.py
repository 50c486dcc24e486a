"""A Method -> jitted pure programs: prepare the round's batch once, then one turn per player.

Where a round is one turn, or on accelerators, a whole round is one program. On CPU a round of
several turns is dispatched turn by turn, because a loop around convolutions collapses there.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rkd_jax.backdoors import poison
from rkd_jax.compiling import TRAINING, Jitted
from rkd_jax.data import augment
from rkd_jax.methods.base import Aux, Batch, implements
from rkd_jax.training import sharding
from rkd_jax.training.state import Program, TrainState

Tree = Any
# What a phase's random keys are folded with, so that no two uses meet.
INIT, SURVEY, BATCH, TARGETS, TRIGGER, AUGMENT, TURN, SHARED = range(8)


def phase_key(seed: jax.Array, *numbers: jax.Array | int) -> jax.Array:
  """The phase's key folded with each number in turn."""
  return functools.reduce(jax.random.fold_in, numbers, jax.random.key(seed))


def example_keys(seed: jax.Array, use: int, epoch: jax.Array | int, index: jax.Array) -> jax.Array:
  """One key an example: a function of (seed, use, epoch, index) alone, on any number of devices."""
  return jax.vmap(jax.random.fold_in, (None, 0))(phase_key(seed, use, epoch), index)


def pixels(source: Mapping[str, Any], rows: Tree) -> Batch:
  """uint8 rows -> images float32 in [0, 1], triggered as planned: once for all, as a file is."""
  images = rows["image"].astype(jnp.float32) / 255
  labels = rows["label"]
  if source.get("backdoor") is not None:
    keys = example_keys(source["seed"], TRIGGER, 0, rows["index"])
    images, labels = poison.apply(source["backdoor"], images, labels, rows["kind"], keys)
  return {"image": images, "label": labels, "index": rows["index"]}


def fetch(program: Program, source: Mapping[str, Any], step: jax.Array | int) -> Tree:
  """The step's rows, split over the devices: of the source's table, or all that it holds."""
  if "order" not in source:
    return sharding.split(program.mesh, source["rows"])
  order = source["order"]
  take = order[step % order.shape[0]]
  rows = {name: table[take] for name, table in source["rows"].items()}
  return sharding.split(program.mesh, rows)


def prepare(program: Program, state: TrainState, frozen: Tree, source: Tree):
  """The round's (state, batch, targets): rows -> poison -> augment -> method's batch -> targets."""
  method, seed, step = program.method, source["seed"], state.step
  batch = {}
  if "rows" in source:
    batch = pixels(source, fetch(program, source, step))
    if not program.augment.identity:
      keys = example_keys(seed, AUGMENT, source["epoch"], batch["index"])
      batch = augment.apply(program.augment, keys, batch)
  variables = method.materialize(program.bind({**frozen, **state.roles}))
  batch, memory = method.batch(phase_key(seed, BATCH, step), variables, state.memory, batch, step)
  batch = sharding.split(program.mesh, batch)
  if "targets" in source:
    targets = jax.tree.map(lambda table: table[batch["index"]], source["targets"])
  else:
    still = program.still(frozen, state.roles)
    targets = method.targets(program.bind(still), batch, phase_key(seed, TARGETS, step))
  return dataclasses.replace(state, memory=memory), batch, targets


def reduce_terms(
  terms: Mapping[str, Any],
) -> tuple[jax.Array, dict[str, tuple[jax.Array, jax.Array]]]:
  """(sum of the terms' weighted means, {name: (sum, count)}) over the global batch.

  The count of a logged loss term is 1: each batch weighs the same in the log, as in the loss.
  """
  means = {}
  for name, term in terms.items():
    if isinstance(term, tuple):
      value, weight = term
      total = weight.sum()
      weighed = jnp.where(weight > 0, value * weight, 0)  # whatever the value where it is 0
      means[name] = weighed.sum() / jnp.where(total > 0, total, 1)
    else:
      means[name] = jnp.asarray(term)
  loss = sum(means.values(), jnp.zeros(()))
  return loss, {name: (value, jnp.ones(())) for name, value in means.items()}


def count(metric: Any) -> tuple[jax.Array, jax.Array]:
  """A method's metric as (sum, count)."""
  if isinstance(metric, tuple):
    value, weight = metric
    return (value * weight).sum(), weight.astype(jnp.float32).sum()
  metric = jnp.asarray(metric, jnp.float32)
  return metric.sum(), jnp.asarray(float(metric.size))


def add(old: Any, new: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
  """Sums and counts merge by addition; `old` is None before the first."""
  return new if old is None else (old[0] + new[0], old[1] + new[1])


def turn(
  program: Program, player: str, state: TrainState, frozen: Tree, batch: Batch, targets: Tree,
  seed: jax.Array, number: jax.Array,
) -> TrainState:  # fmt: skip
  """One update of the player's roles. `number` counts the turns of the round."""
  method = program.method
  mine = [role for role, owner in program.players if owner == player]
  key = phase_key(seed, TURN, state.step, number)

  def objective(params: dict[str, Tree]) -> tuple[jax.Array, tuple[Aux, dict]]:
    trees = {**frozen, **state.roles}
    trees |= {role: {**trees[role], "params": params[role]} for role in mine}
    variables = method.materialize(program.bind(trees))
    terms, aux = method.loss(player, variables, state.memory, batch, targets, key, state.step)
    loss, metrics = reduce_terms(terms)
    return loss, (aux, metrics | {"loss": (loss, jnp.ones(()))})

  params = {role: state.roles[role]["params"] for role in mine}
  grads, (aux, metrics) = jax.grad(objective, has_aux=True)(params)
  if method.sam:
    grads, _ = jax.grad(objective, has_aux=True)(
      climb(params, grads, method.sam, method.sam_adaptive)
    )

  roles, optimizers = dict(state.roles), dict(state.optimizers)
  chains = program.chains()
  for role in mine:
    updates, optimizers[role] = chains[role].update(grads[role], optimizers[role], params[role])
    roles[role] = {**roles[role], "params": optax.apply_updates(params[role], updates)}
  for role, stats in aux.batch_stats.items():
    if role in roles and "batch_stats" in roles[role]:
      roles[role] = {**roles[role], "batch_stats": stats}
  metrics |= {name: count(metric) for name, metric in aux.metrics.items()}
  many = len(method.turns) > 1
  metrics = {f"{player}/{name}" if many else name: value for name, value in metrics.items()}
  return sharding.keep_whole(
    program.mesh,
    TrainState(
      step=state.step,
      roles=roles,
      optimizers=optimizers,
      memory=state.memory if aux.state is None else aux.state,
      metrics=state.metrics
      | {name: add(state.metrics.get(name), new) for name, new in metrics.items()},
    ),
  )


def share(
  program: Program, player: str, state: TrainState, frozen: Tree, batch: Batch, targets: Tree,
  seed: jax.Array,
) -> Batch:  # fmt: skip
  """The round's batch as the player's turns see it: what they share is computed once for all."""
  method, key = program.method, phase_key(seed, SHARED, state.step)
  if not implements(method, "shared"):
    return batch
  variables = method.materialize(program.bind({**frozen, **state.roles}))
  batch = method.shared(player, variables, state.memory, batch, targets, key, state.step)
  return sharding.split(program.mesh, batch)


def climb(params: Tree, grads: Tree, radius: float, adaptive: bool) -> Tree:
  """The point where SAM takes its gradient: params + radius g/|g|; ASAM: + radius p^2 g / |p g|."""
  if adaptive:
    scaled = jax.tree.map(lambda p, g: jnp.abs(p) * g, params, grads)
    grads = jax.tree.map(lambda p, s: jnp.abs(p) * s, params, scaled)
    norm = optax.tree.norm(scaled)
  else:
    norm = optax.tree.norm(grads)
  return jax.tree.map(lambda p, g: p + radius * g / (norm + 1e-12), params, grads)


def ended(state: TrainState) -> TrainState:
  return dataclasses.replace(state, step=state.step + 1)


def one_round(program: Program, state: TrainState, frozen: Tree, source: Tree) -> TrainState:
  """A whole round as one pure function."""
  state, batch, targets = prepare(program, state, frozen, source)
  number, seed = 0, source["seed"]
  for player, often in program.method.turns:
    seen = share(program, player, state, frozen, batch, targets, seed)

    def once(i, state, player=player, first=number, seen=seen):
      return turn(program, player, state, frozen, seen, targets, seed, first + i)

    state = once(0, state) if often == 1 else jax.lax.fori_loop(0, often, once, state)
    number += often
  return ended(state)


_round = Jitted(one_round, TRAINING, static_argnames="program", donate_argnames="state")
_prepare = functools.partial(jax.jit, static_argnames="program", donate_argnames="state")(prepare)
_turn = Jitted(turn, TRAINING, static_argnames=("program", "player"), donate_argnames="state")
_share = functools.partial(jax.jit, static_argnames=("program", "player"))(share)
_ended = functools.partial(jax.jit, donate_argnames="state")(ended)


def play_round(program: Program, state: TrainState, frozen: Tree, source: Tree) -> TrainState:
  """One round. `state` is donated; `frozen` never is."""
  method, number = program.method, 0
  if sum(often for _, often in method.turns) == 1 or program.mesh.devices.flat[0].platform != "cpu":
    return _round(program, state, frozen, source)
  state, batch, targets = _prepare(program, state, frozen, source)
  for player, often in method.turns:
    seen, seed = batch, source["seed"]
    if implements(method, "shared"):
      seen = _share(program, player, state, frozen, batch, targets, seed)
    for _ in range(often):
      place = _on_device(program.mesh, number)
      state = _turn(program, player, state, frozen, seen, targets, seed, place)
      number += 1
  return _ended(state)


@functools.lru_cache
def _on_device(mesh: jax.sharding.Mesh, number: int) -> jax.Array:
  return sharding.replicate(mesh, np.int32(number))


def with_metrics(program: Program, state: TrainState, frozen: Tree, source: Tree) -> TrainState:
  """The state with a zero for everything that a round logs, so that its structure never changes."""

  def each_player_once(state: TrainState, frozen: Tree, source: Tree) -> TrainState:
    state, batch, targets = prepare(program, state, frozen, source)
    for player, _ in program.method.turns:
      seen = share(program, player, state, frozen, batch, targets, source["seed"])
      state = turn(program, player, state, frozen, seen, targets, source["seed"], jnp.int32(0))
    return state

  after = jax.eval_shape(each_player_once, state, frozen, source)
  zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), after.metrics)
  return dataclasses.replace(state, metrics=sharding.replicate(program.mesh, zeros))


@functools.partial(jax.jit, static_argnames="mesh")
def _zeros(mesh: jax.sharding.Mesh, tree: Tree) -> Tree:
  return sharding.keep_whole(mesh, jax.tree.map(jnp.zeros_like, tree))


def zero_metrics(program: Program, state: TrainState) -> TrainState:
  """The state with its metrics counted from nothing again."""
  return dataclasses.replace(state, metrics=_zeros(program.mesh, state.metrics))
