"""From roles to a phase's first state: values, the method's state, the survey, cached targets."""

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rkd_jax.compiling import QUICK, Jitted
from rkd_jax.data.stream import Resident, Streamed
from rkd_jax.errors import UserError
from rkd_jax.methods.base import Bound, Example, Role, implements
from rkd_jax.models.network import Network
from rkd_jax.training import checkpoint, sharding, update
from rkd_jax.training.state import Program, TrainState, init_role, role_key

Tree = Any
SURVEY_BATCH = 256  # at least
CACHE_MIB = 256


def example_of(stream: Any, image_shape: tuple[int, ...], classes: int) -> Example:
  """What a method may know of the stream's batches."""
  batch = {
    "image": jax.ShapeDtypeStruct((stream.batch, *image_shape), jnp.float32),
    "label": jax.ShapeDtypeStruct((stream.batch,), jnp.int32),
    "index": jax.ShapeDtypeStruct((stream.batch,), jnp.int32),
  }
  return Example(batch, stream.size, classes)


def fresh(network: Network, key: jax.Array) -> Tree:
  """A network's first variables."""
  return _initialiser(network)(key)


@functools.lru_cache
def _initialiser(network: Network):
  return Jitted(network.init, QUICK)


@functools.lru_cache
def _shapes(network: Network) -> dict[str, tuple[int, ...]]:
  return checkpoint.shapes(jax.eval_shape(network.init, jax.random.key(0)))


def check_given(name: str, network: Network, tree: Tree) -> None:
  """Raises a `UserError` where delivered variables are not those of the role's architecture."""
  wanted, found = _shapes(network), checkpoint.shapes(tree)
  odd = [path for path in {**wanted, **found} if wanted.get(path) != found.get(path)]
  if odd:
    path = odd[-1]  # the head comes last: a mismatch of class counts shows there
    raise UserError(
      f"The network given as {name!r} does not fit the architecture that the config names for it: "
      f"{path} has shape {found.get(path)}, expected {wanted.get(path)} (for {network.classes} "
      f"classes, images {network.image_shape}). Name the architecture and data it was trained on."
    )


def values(
  roles: Mapping[str, Role], given: Mapping[str, Tree], key: jax.Array, example: Example
) -> dict[str, Tree]:
  """{role: variables} of all roles that do not wait for the survey."""
  made: dict[str, Tree] = {}
  seen: dict[str, Any] = {}
  for name, role in roles.items():
    if name in given:
      if isinstance(role.module, Network):
        check_given(name, role.module, given[name])
      made[name] = given[name] if role.module is not None else {"params": given[name]}
    elif role.from_state:
      continue
    elif role.player and not (role.copy or role.init) and isinstance(role.module, Network):
      made[name] = fresh(role.module, role_key(key, name))
    else:
      made[name] = init_role(name, role, role_key(key, name), seen, example)
    tree = made[name]
    seen[name] = tree["params"] if role.module is None else Bound(role.module, tree)
  return made


def begin(
  program: Program, roles: Mapping[str, Role], given: Mapping[str, Tree], stream: Any,
  example: Example, surveyed: bool = False,
) -> tuple[TrainState, dict[str, Tree]]:  # fmt: skip
  """The first state (its metrics not yet named) and the frozen roles, on the devices.

  Args:
    given: {role: variables} from earlier phases.
    surveyed: a checkpoint will replace the state, so its survey is not run (only its structure
      matters).
  """
  mesh, method = program.mesh, program.method
  key = jax.random.fold_in(jax.random.key(stream.seed), update.INIT)
  made = sharding.replicate(mesh, values(roles, given, key, example))
  bound = method.materialize(program.bind(made))
  memory = sharding.replicate(mesh, method.init_state(role_key(key, "state"), bound, example))
  if implements(method, "survey") and not surveyed:
    memory = run_survey(program, made, memory, stream)
    method.check(memory)
  late = {name: role.from_state(memory) for name, role in roles.items() if role.from_state}
  late = {
    name: tree if roles[name].module is not None else {"params": tree}
    for name, tree in late.items()
  }
  late = sharding.replicate(mesh, late)
  trained = {name: made[name] for name, _ in program.players if name in made} | late
  frozen = {name: tree for name, tree in made.items() if name not in trained}
  trained, optimizers, memory = _own(program, trained, memory)
  step = sharding.replicate(mesh, np.int32(0))
  return TrainState(step, trained, optimizers, memory, metrics={}), frozen


def resumed(
  program: Program, roles: Mapping[str, Role], given: Mapping[str, Tree], stream: Any,
  example: Example, checkpoints: checkpoint.Checkpoints,
) -> tuple[TrainState, dict[str, Tree]]:  # fmt: skip
  """The state of the newest whole checkpoint, or the first, and the frozen roles."""

  def first(surveyed: bool) -> tuple[TrainState, dict[str, Tree]]:
    state, frozen = begin(program, roles, given, stream, example, surveyed)
    return update.with_metrics(program, state, frozen, stream.source(0)), frozen

  if checkpoints.latest() is None:
    return first(surveyed=False)
  template, frozen = first(surveyed=True)
  restored = checkpoints.restore(template)
  return (restored[1], frozen) if restored else first(surveyed=False)


@functools.partial(jax.jit, static_argnames="program")
def _own(
  program: Program, trees: dict[str, Tree], memory: Tree
) -> tuple[dict[str, Tree], dict[str, Tree], Tree]:
  """(roles, their optimisers' first states, the method's state) in buffers of their own: the step
  is given them to overwrite, and a delivery or a frozen role must not be overwritten with them."""
  chains = {name: chain for name, chain in program.chains().items() if name in trees}
  optimizers = {name: chain.init(trees[name]["params"]) for name, chain in chains.items()}
  trees, memory = jax.tree.map(jnp.copy, (trees, memory))
  return sharding.keep_whole(program.mesh, (trees, optimizers, memory))


def redraw(
  program: Program, roles: Mapping[str, Role], state: TrainState, frozen: Tree,
  names: tuple[str, ...], seed: int, epoch: int, example: Example,
) -> TrainState:  # fmt: skip
  """The state with these trained roles drawn anew, values and optimiser."""
  key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), update.INIT), epoch)
  others = {**frozen, **{name: tree for name, tree in state.roles.items() if name not in names}}
  given = {
    name: tree if roles[name].module is not None else tree["params"]
    for name, tree in others.items()
  }
  made = values(roles, given, key, example)
  new = sharding.replicate(program.mesh, {name: made[name] for name in names})
  new, optimizers, _ = _own(program, new, ())
  roles, optimizers = {**state.roles, **new}, {**state.optimizers, **optimizers}
  return dataclasses.replace(state, roles=roles, optimizers=optimizers)


def planned(program: Program, source: Mapping[str, Any]) -> dict[str, jax.Array]:
  """The source's one batch as planned, not augmented; `mask` is 0 and the index N on padding."""
  batch, mask = update.pixels(source, update.fetch(program, source, 0)), source["mask"]
  return {**batch, "index": jnp.where(mask > 0, batch["index"], source["size"]), "mask": mask}


@functools.partial(jax.jit, static_argnames="program", donate_argnames="memory")
def _survey(program: Program, made: Tree, memory: Tree, source: Tree) -> Tree:
  method, batch = program.method, planned(program, source)
  key = update.phase_key(source["seed"], update.SURVEY, batch["index"][0])
  memory = method.survey(key, method.materialize(program.bind(made)), memory, batch)
  return sharding.keep_whole(program.mesh, memory)


def survey_batch(program: Program) -> int:
  """Images of a batch of one pass over the data: a multiple of the devices."""
  return -(-SURVEY_BATCH // program.mesh.size) * program.mesh.size


def run_survey(program: Program, made: Tree, memory: Tree, stream: Resident | Streamed) -> Tree:
  """The method's state after one pass over the data."""
  for source in stream.in_order(survey_batch(program)):
    memory = _survey(program, made, memory, source)
  return memory


@functools.partial(jax.jit, static_argnames="program")
def _targets(program: Program, frozen: Tree, source: Tree) -> Tree:
  batch = planned(program, source)
  del batch["mask"]
  key = update.phase_key(source["seed"], update.TARGETS, 0)
  return sharding.keep_whole(program.mesh, program.method.targets(program.bind(frozen), batch, key))


def cache_targets(program: Program, frozen: Tree, stream: Any) -> None:
  """Puts the targets of every example into the stream, where they never change and are small.

  They never change when no image is augmented and the method says so (`cacheable`). Then the frozen
  networks see each example once instead of once an epoch, with the same answers.
  """
  method = program.method
  moves = not program.augment.identity or not method.cacheable
  if not stream.size or moves or not implements(method, "targets"):
    return
  batch = survey_batch(program)
  sources = stream.in_order(batch)
  one = jax.eval_shape(functools.partial(_targets, program), frozen, first := next(sources))
  size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(one)) / batch
  if not size or size * stream.size > CACHE_MIB * 2**20:
    return
  parts = [jax.device_get(_targets(program, frozen, s)) for s in itertools.chain([first], sources)]
  table = jax.tree.map(lambda *leaves: np.concatenate(leaves)[: stream.size], *parts)
  stream.add(targets=sharding.replicate(program.mesh, table))
