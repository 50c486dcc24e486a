"""The contract of every way of training. A method is one file with a `class Method(base.Method)`.

Only `loss` is required. Everything is a pure function of arrays; a method's fields are its
hyper-parameters, checked when it is made. `variables` maps a role's name to a `Bound` network that
can be called (`variables["student"](images, train=True)`), or to a bare tree of arrays for a role
without a module. A batch is a dict {image float32[B,H,W,C] in [0,1], label int32[B], index
int32[B]}; label is -1 where the defender has none.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
from flax import struct

from rkd_jax.errors import UserError
from rkd_jax.models.network import Outputs

Batch = dict[str, jax.Array]
Tree = Any
OWN = 0x706C7567  # folded into a plug-in's keys


@struct.dataclass
class Bound:
  """A module with its variables: what a method calls. A pytree, so gradients pass through it."""

  module: Any = struct.field(pytree_node=False)
  variables: Tree = None

  def __call__(self, *args, **kwargs):
    return self.module.apply(self.variables, *args, **kwargs)

  @property
  def params(self) -> Tree:
    return self.variables["params"]

  def with_params(self, params: Tree) -> "Bound":
    return dataclasses.replace(self, variables={**self.variables, "params": params})


@dataclasses.dataclass(frozen=True)
class Role:
  """A network or a learned tensor: its architecture, where its values come from, who trains it.

  Values come from an earlier phase's delivery where the phase gives one; else from `from_state`,
  `copy`, `init`, or the module's own `init` (trained roles only), the first that is set.

  Attributes:
    module: a `models.network.Network`, any Flax module, or None for a bare tree of arrays.
    player: whose turns update it; None: frozen.
    optimizer: what differs from the phase's optimiser, as {"name": "adam", "learning_rate": 0.05}.
    init: (key, variables of the roles before it, Example) -> variables ({"params": ...} with a
      module, the bare tree without one).
    copy: another role whose values it starts from.
    from_state: (method state after the survey) -> variables.
  """

  module: Any = None
  player: str | None = None
  optimizer: Mapping[str, Any] | None = None
  init: Callable[..., Tree] | None = None
  copy: str | None = None
  from_state: Callable[[Tree], Tree] | None = None

  @property
  def given(self) -> bool:
    """Whether its values can only come from an earlier phase."""
    drawn = self.player and hasattr(self.module, "init")
    return not (self.from_state or self.copy or self.init or drawn)


class Example(NamedTuple):
  """What a method may know of its data before it sees them.

  Attributes:
    batch: {"image", "label", "index"} as `jax.ShapeDtypeStruct`s, also where a phase has no data.
    size: N, how many examples the phase's data have (0 without data).
    classes: K.
  """

  batch: Mapping[str, jax.ShapeDtypeStruct]
  size: int
  classes: int


@struct.dataclass
class Aux:
  """What `loss` returns beside its terms.

  Attributes:
    batch_stats: {role: its new running statistics}; roles left out keep theirs.
    state: the method's new state; None keeps it.
    metrics: {name: float[B] | (value[B], weight[B]) | scalar}, to be logged.
  """

  batch_stats: dict[str, Tree] = struct.field(default_factory=dict)
  state: Tree = None
  metrics: dict[str, Any] = struct.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Method:
  """Base of all methods; see the module's docstring.

  Class attributes:
    turns: ((player, how often), ...) of one round.
    delivers: {name: role or entry of the state} that later phases may use.
    sam: radius of sharpness-aware minimisation (Foret et al. 2021), 0 for none; `sam_adaptive`
      scales it per parameter (ASAM, Kwon et al. 2021).
    cacheable: an example's `targets` depend on it alone (no key, no neighbours) and `batch` keeps
      every image with its index: so they may be computed once where no image moves.
    part: which data its phase sees where its recipe does not say: "pool", "labelled", or "nothing"
      for a method that invents its images.
    nested: {field: default} of the fields that hold a method, named or described in turn.
    plain: {field: value} of what would be a defence in it, left out: a plug-in is compared with the
      base as that.
  """

  turns: ClassVar[tuple[tuple[str, int], ...]] = (("student", 1),)
  delivers: ClassVar[Mapping[str, str]] = {"student": "student"}
  sam: ClassVar[float] = 0.0
  sam_adaptive: ClassVar[bool] = False
  cacheable: ClassVar[bool] = False
  part: ClassVar[str] = "pool"
  nested: ClassVar[Mapping[str, str]] = {}
  plain: ClassVar[Mapping[str, Any]] = {}

  @property
  def name(self) -> str:
    """What it is called in a config, for messages."""
    return type(self).__module__.rsplit(".", 1)[-1]

  def trains(self) -> dict[str, Any]:
    """What differs from the config's section in how its phase trains, as {"steps": 100}."""
    return {}

  @classmethod
  def complete(
    cls, spec: dict[str, Any], section: Callable[[str], dict[str, Any]] = lambda name: {}
  ) -> dict[str, Any]:
    """A described method with what it leaves open: here, the methods nested in it.

    Args:
      spec: its fields.
      section: a method's name -> its own fields in the config.
    """
    return spec | {field: spec.get(field) or default for field, default in cls.nested.items()}

  def __init_subclass__(cls, **kwargs: Any) -> None:
    """Whoever changes what `cacheable` speaks of says it again."""
    super().__init_subclass__(**kwargs)
    if {"batch", "targets"} & cls.__dict__.keys() and "cacheable" not in cls.__dict__:
      cls.cacheable = False

  def roles(self, networks: Mapping[str, Any]) -> dict[str, Role]:
    """Who takes part, in the order they are made. `networks`: {role: architecture}."""
    return {
      "teacher": Role(network(networks, "teacher")),
      "student": Role(network(networks, "student"), player="student"),
    }

  def init_state(self, key: jax.Array, variables: Mapping[str, Any], example: Example) -> Tree:
    """The method's own state: banks, perturbations, permutations, counters."""
    return ()

  def survey(self, key: jax.Array, variables: Mapping[str, Any], state: Tree, batch: Batch) -> Tree:
    """One pass over the phase's data before step 0: poisoned as planned, not augmented, in order.

    The batch also holds `mask` float32[B], 0 on padding rows (whose index is N: out of range, so
    `state.at[index].set(..., mode="drop")` is safe).
    """
    return state

  def check(self, state: Tree) -> None:
    """Raises a `UserError` if the phase cannot begin with what the survey saw (on the host)."""

  def batch(
    self, key: jax.Array, variables: Mapping[str, Any], state: Tree, batch: Batch, step: jax.Array
  ) -> tuple[Batch, Tree]:
    """Regroups, re-weighs or invents the round's batch. Not differentiated. Once a round."""
    return batch, state

  def taught(self, frozen: Mapping[str, Any], images: jax.Array) -> Outputs:
    """The teacher's `Outputs` as this method teaches them; plug-ins ask here what the teacher says.

    A method that repairs the teacher's features overrides it.
    """
    return frozen["teacher"](images, train=False)[0]

  def targets(self, frozen: Mapping[str, Any], batch: Batch, key: jax.Array) -> Tree:
    """What the frozen roles alone say of the batch; leaves [B, ...]. May be served from a cache."""
    return ()

  def shared(
    self,
    player: str,
    variables: Mapping[str, Any],
    state: Tree,
    batch: Batch,
    targets: Tree,
    key: jax.Array,
    step: jax.Array,
  ) -> Batch:
    """The batch with what all turns of a player have in common, made once before its first turn.

    Not differentiated. The players before it have had their turns: a student's images come from the
    generator as it now is, and are the same in each of the student's turns.
    """
    return batch

  def loss(
    self,
    player: str,
    variables: Mapping[str, Any],
    state: Tree,
    batch: Batch,
    targets: Tree,
    key: jax.Array,
    step: jax.Array,
  ) -> tuple[dict[str, Any], Aux]:
    """The player's loss: {term: (value[B], weight[B]) or scalar}, already times its coefficients.

    A term becomes sum(value * weight) / sum(weight) over the global batch (0 when no weight).
    """
    raise NotImplementedError(f"{type(self)} defines no loss")

  def predict(self, variables: Mapping[str, Any], state: Tree, images: jax.Array) -> jax.Array:
    """Logits float32[B, K] of the network that this phase is about."""
    return variables["student"](images, train=False)[0].logits

  def materialize(self, variables: dict[str, Any]) -> dict[str, Any]:
    """Adds roles whose parameters are computed from others (merging, folding)."""
    return variables

  def reset(self, epoch: int) -> tuple[str, ...]:
    """Trained roles to draw anew (values and optimiser) at the start of this epoch >= 1."""
    return ()

  def stop(self, metrics: Mapping[str, float]) -> bool:
    """Whether to end after a line of metrics (training's since the last, and `holdout_acc`)."""
    return False

  def deliver(self, variables: Mapping[str, Any], state: Tree) -> dict[str, Tree]:
    """{name: variables or array}: what `delivers` names."""
    return found(self.delivers, variables, state)

  def outcome(self, variables: Mapping[str, Any], state: Tree) -> str:
    """What became of what it decides while it trains, in a sentence for the report; "": nothing."""
    return ""


@dataclasses.dataclass(frozen=True)
class Plugin(Method):
  """A method that wraps a method: adds roles, state and terms, and may re-weigh the base's.

  The base's state lives in `state["base"]`, the plug-in's own entries beside it. Each hook first
  does what the base does; a subclass calls `super()` and adds to the result, drawing from
  `self.own(key)`. What it delivers beside the base's it names in `adds`. The base sees the networks
  as `seen` shows them.

  Attributes:
    base: the method that is wrapped.

  Class attributes:
    asks_teacher: what it does that a base without a teacher cannot be asked for, for the message.
  """

  base: Method = dataclasses.field(kw_only=True)
  nested: ClassVar[Mapping[str, str]] = {"base": "kd"}
  asks_teacher: ClassVar[str] = ""

  def own(self, key: jax.Array) -> jax.Array:
    """A key of this plug-in's own: the base draws from the key itself, whatever wraps it."""
    depth, base = 1, self.base
    while isinstance(base, Plugin):
      depth, base = depth + 1, base.base
    return jax.random.fold_in(jax.random.fold_in(key, OWN), depth)

  def seen(self, variables: Mapping[str, Any]) -> Mapping[str, Any]:
    """The networks as the base sees them; a plug-in that repairs one puts it in its place."""
    return variables

  def trains(self):
    return self.base.trains()

  @property
  def turns(self):  # type: ignore[override]
    return self.base.turns

  @property
  def sam(self):  # type: ignore[override]
    return self.base.sam

  @property
  def sam_adaptive(self):  # type: ignore[override]
    return self.base.sam_adaptive

  @property
  def cacheable(self):  # type: ignore[override]
    own = (getattr(type(self), hook) is getattr(Plugin, hook) for hook in ("batch", "targets"))
    return self.base.cacheable and all(own)

  @property
  def part(self):  # type: ignore[override]
    return self.base.part

  adds: ClassVar[Mapping[str, str]] = {}

  @property
  def delivers(self):  # type: ignore[override]
    return {**self.base.delivers, **self.adds}

  def roles(self, networks):
    found = {name: _of_base(role) for name, role in self.base.roles(networks).items()}
    if self.asks_teacher and "teacher" not in found:
      raise UserError(
        f"{self.name} {self.asks_teacher}, but {self.base.name!r} has no teacher. Wrap a method "
        f"that has one, as {self.nested['base'] or 'ofd'}."
      )
    return found

  def init_state(self, key, variables, example) -> dict[str, Tree]:
    return {"base": self.base.init_state(key, variables, example)}

  def survey(self, key, variables, state, batch) -> dict[str, Tree]:
    return {**state, "base": self.base.survey(key, self.seen(variables), state["base"], batch)}

  def check(self, state):
    self.base.check(state["base"])

  def batch(self, key, variables, state, batch, step):
    batch, base = self.base.batch(key, self.seen(variables), state["base"], batch, step)
    return batch, {**state, "base": base}

  def taught(self, frozen, images):
    return self.base.taught(self.seen(frozen), images)

  def targets(self, frozen, batch, key):
    return self.base.targets(self.seen(frozen), batch, key)

  def shared(self, player, variables, state, batch, targets, key, step):
    networks = self.seen(variables)
    return self.base.shared(player, networks, state["base"], batch, targets, key, step)

  def loss(self, player, variables, state, batch, targets, key, step):
    networks = self.seen(variables)
    terms, aux = self.base.loss(player, networks, state["base"], batch, targets, key, step)
    if aux.state is not None:
      aux = dataclasses.replace(aux, state={**state, "base": aux.state})
    return terms, aux

  def predict(self, variables, state, images):
    return self.base.predict(variables, state["base"], images)

  def materialize(self, variables):
    return self.base.materialize(variables)

  def reset(self, epoch):
    return self.base.reset(epoch)

  def stop(self, metrics):
    return self.base.stop(metrics)

  def deliver(self, variables, state):
    return self.base.deliver(variables, state["base"]) | found(self.adds, variables, state)

  def outcome(self, variables, state):
    return self.base.outcome(self.seen(variables), state["base"])


def _of_base(role: Role) -> Role:
  """A base's role, whose values come from the base's own state."""
  own = role.from_state
  return dataclasses.replace(role, from_state=lambda state: own(state["base"])) if own else role


def found(names: Mapping[str, str], variables: Mapping[str, Any], state: Tree) -> dict[str, Tree]:
  """{name: the role's variables, or the entry of the state, that it stands for}."""
  values = {n: variables[at] if at in variables else state[at] for n, at in names.items()}
  return {n: v.variables if isinstance(v, Bound) else v for n, v in values.items()}


def network(networks: Mapping[str, Any], role: str) -> Any:
  """The architecture of a role, or a `UserError` that says how to name one."""
  if role not in networks:
    raise UserError(
      f"The method needs a network {role!r}; the config names {', '.join(networks) or 'none'}. "
      f"Add --config.networks.{role}, as in wideresnet-10-1, to the config."
    )
  return networks[role]


def tapped(taps: Any) -> tuple[str, ...]:
  """Names of stages as a tuple: from a config's list, or from "stage1,stage2"."""
  given = (taps,) if isinstance(taps, str) else tuple(taps)
  return tuple(tap for some in given for tap in some.split(",") if tap)


def implements(method: Method, hook: str) -> bool:
  """Whether a method (or a base it wraps) does anything in this hook."""
  own = getattr(type(method), hook)
  if isinstance(method, Plugin):
    return own is not getattr(Plugin, hook) or implements(method.base, hook)
  return own is not getattr(Method, hook)
