"""One seed's story as phases: how its teacher comes about, and whoever learns from it."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from rkd_jax import lookup, strangers
from rkd_jax.data import seeds
from rkd_jax.data.sources import Dataset
from rkd_jax.errors import UserError, nearest
from rkd_jax.given import Given, Kept
from rkd_jax.methods.attack import Attack
from rkd_jax.methods.base import Method
from rkd_jax.networks import Networks
from rkd_jax.phases import Config, Delivery, Phase, source_of
from rkd_jax.training.optimizer import Optimizer

Spec = dict[str, Any]  # {"name": ..., field: value, "base": Spec}
# a section's keys that stand elsewhere in the settings
ELSEWHERE = {
  "network",
  "method",
  "poison",
  "plan",
  "checkpoint",
  "sha256",
  "mean",
  "std",
  "classes",
}
ATTACKERS = 5  # networks of the attacker's own that say whom to trigger ("boundary")


@dataclasses.dataclass(frozen=True)
class Setup:
  """One seed's story: makes phases of it.

  Attributes:
    config: the run's.
    dataset: what it is about.
    seed: whose teacher, plans, orders and students these are.
    clean_teacher: the control: a teacher trained without poison, all else the same.
    repaired: a teacher that was repaired first takes the place of the given one.
  """

  config: Config
  dataset: Dataset
  seed: int
  clean_teacher: bool = False
  repaired: Delivery | None = None

  def phase(
    self,
    name: str,
    method: Method,
    part: str,
    section: str,
    deliveries: Mapping[str, Delivery | Given] | None = None,
    *,
    shared: bool = False,
    train: Mapping[str, Any] | None = None,
    networks: Mapping[str, str] | None = None,
  ) -> Phase:
    """A phase trained as the config's `section` says, and the method's `trains`.

    Args:
      shared: whether other runs may want it too.
      train: what differs from the section; of its "optimizer", only what differs.
      networks: {role: the teacher's architecture}: whoever trains a teacher trains it as "student".
    """
    config, train = self.config, {**method.trains(), **(train or {})}
    names = {r: config[r].network for r in ("teacher", "student")} | config.networks.to_dict()
    names |= {"teacher": self.given.network} if self.given else {}
    own = networks or {}
    norms = dict.fromkeys(("teacher", *own), self.given.normalisation) if self.given else {}
    found = Networks(config, self.dataset, {**names, **own}, norms)
    roles = method.roles(found)
    trains = {k: v for k, v in config[section].to_dict().items() if k not in ELSEWHERE}
    optimizer = {**trains["optimizer"], **train.pop("optimizer", {})}
    settings = {
      "data": self.dataset.fingerprint,
      "train": {**trains, **train, "optimizer": optimizer},
      "networks": found.asked,
      "normalisation": found.normalisation,
      "models": {role: source_of(type(found[role].module)) for role in found.asked},
      "precision": [config.dtype, config.bn_group],
      "labels": config.labels if part not in ("poisoned", "clean", "nothing") else None,
      "poison": self.poison(part),
    }
    for who, role in roles.items():
      if role.player:  # what is asked of its optimiser is checked before anything is trained
        changes = {**(role.optimizer or {}), **trains["optimizers"].get(who, {})}
        Optimizer(**optimizer).changed(changes, who)
    # whoever learns from labels alone has no place for a teacher
    offered = {r: d for r, d in (deliveries or {}).items() if r in roles or r != "teacher"}
    if lacking := [r for r, role in roles.items() if role.given and r not in offered]:
      raise UserError(
        f"{method.name} begins with what an earlier phase made ({', '.join(lacking)}), and here "
        "none comes before it. It is a stage of a recipe: name that, as 'abd' for 'retrospection'."
      )
    given = tuple(sorted(offered.items()))
    text = json.dumps(settings, sort_keys=True)
    return Phase(name, method, part, given, self.seed, text, shared)

  # The attacker's side.

  @functools.cached_property
  def given(self) -> Given | None:
    """The teacher that the config names a checkpoint of; None where one is trained here."""
    if not self.config.teacher.checkpoint:
      return None
    return strangers.find(self.config.teacher, self.dataset)

  @property
  def teacher_network(self) -> str:
    """The teacher's architecture: of a given one that which its file has."""
    return (self.given or self.config.teacher).network

  def poison(self, part: str) -> dict[str, Any] | None:
    """The trigger that is in a part of the data: which, how much of it, on whom."""
    config = self.config
    rate = {"poisoned": config.teacher.poison, "pool": config.contamination}.get(part, 0)
    if not rate:
      return None
    plan = config.teacher.plan if part == "poisoned" else config.plan
    fields = config.trigger.get(config.backdoor, ConfigDict()).to_dict()
    source = None if self.learned else source_of(lookup.load("backdoors", config.backdoor))
    named = {"name": config.backdoor, "source": source, "target": config.target, "fields": fields}
    made_by = self.trigger.phase.key if self.trigger else None
    scored_by = [phase.key for phase in self.attackers()] if part == "pool" else []
    return {**named, "rate": rate, "plan": plan, "made_by": made_by, "scored_by": scored_by}

  @property
  def learned(self) -> bool:
    """Whether the backdoor's trigger is trained (a method that delivers it)."""
    return not lookup.defines("backdoors", self.config.backdoor)

  @functools.cached_property
  def attack(self) -> Method | None:
    """The method that trains the trigger; None for a fixed one."""
    if not self.learned:
      return None
    name = self.config.backdoor
    fields = self.config.method.get(name, ConfigDict()).to_dict()
    method = make_method({"name": name, "target": self.config.target, **fields})
    if "trigger" not in method.delivers:
      raise UserError(f"{name!r} is no backdoor. {nearest(name, [*lookup.names('backdoors')])}")
    return method

  @functools.cached_property
  def trigger(self) -> Delivery | None:
    """Where a trained trigger comes from: a search on a benign teacher, or the teacher's phase."""
    if self.attack is None:
      return None
    if isinstance(self.attack, Attack):
      given = {"teacher": self.benign["student"]}
      search = self.phase("trigger", self.attack, "clean", "teacher", given, shared=True)
      return search["trigger"]
    return self.phase("teacher", self.attack, "clean", "teacher", shared=True)["trigger"]

  @functools.cached_property
  def planted(self) -> Delivery:
    """The backdoored teacher, or the one that was given."""
    own = {"student": self.teacher_network}
    if self.given:
      made, method = {"student": self.given}, Kept()
      one = dataclasses.replace(self, seed=0)  # the same network, whatever the seed
      phase = one.phase("teacher", method, "nothing", "teacher", made, shared=True, networks=own)
      return phase["student"]
    if self.config.backdoor == "none":
      return self.benign["student"]
    if self.trigger is None:
      method, part = self.teaching, "poisoned"
      phase = self.phase("teacher", method, part, "teacher", shared=True, networks=own)
      return phase["student"]
    if not isinstance(self.attack, Attack):
      return self.trigger.phase["teacher"]
    search, attack = self.trigger.phase, self.attack
    found = {name: search[name] for name in attack.delivers if name != "trigger"}
    given = {"student": self.benign["student"], **found}
    planted = self.phase(
      "teacher", attack.plant(), "poisoned", "teacher", given,
      shared=True, train=attack.planting(), networks=own,
    )  # fmt: skip
    return planted["student"]

  @functools.cached_property
  def benign(self) -> Phase:
    """A teacher without any backdoor: the control, and what two-step attacks start from."""
    own = {"student": self.config.teacher.network}
    return self.phase("teacher", self.teaching, "clean", "teacher", shared=True, networks=own)

  @property
  def teaching(self) -> Method:
    """How a teacher is trained on labels: plainly, or so that it withstands attacks, say."""
    name = self.config.teacher.method
    method = make_method({"name": name, **self.config.method.get(name, ConfigDict()).to_dict()})
    if set(method.roles(dict.fromkeys(("teacher", "student")))) != {"student"}:
      raise UserError(
        f"config.teacher.method is {name!r}, which needs more networks than the one it trains. "
        "Choose one that learns from labels alone, as 'supervised' or 'pgd_at'."
      )
    return method

  def attackers(self) -> list[Phase]:
    """The attacker's own witnesses, where the pool's plan needs their opinion: other labels, other
    seeds, trained as the defender would."""
    if self.config.plan != "boundary":
      return []
    own = [seeds.fold(self.seed, "attacker", number) for number in range(ATTACKERS)]
    return [dataclasses.replace(self, seed=seed).alone() for seed in own]

  # The defender's side.

  @property
  def teacher(self) -> Delivery:
    """Whom students learn from."""
    if self.repaired:
      return self.repaired
    return self.benign["student"] if self.clean_teacher else self.planted

  def alone(self, part: str = "labelled", number: int = 1) -> Phase:
    """A student that never meets a teacher: the baseline, and the first witness. `number`: above 1,
    another training of it."""
    section = "student" if part == "clean" else "labelled"
    name = f"alone-{part}" + (f"-{number}" if number > 1 else "")
    return self.phase(name, make_method({"name": "supervised"}), part, section)

  def student(self, name: str, method: Method, given: Mapping[str, Delivery]) -> Phase:
    """A student of the teacher, on the data that its method wants."""
    return self.phase(name, method, method.part, "student", {"teacher": self.teacher, **given})


def make_method(spec: Mapping[str, Any]) -> Method:
  """{"name": ..., field: value, "base": {...}} -> the Method, those nested in it made likewise."""
  part = lookup.load("methods", spec["name"])
  fields = part.complete({field: value for field, value in spec.items() if field != "name"})
  for field in part.nested:
    inner = fields[field]
    fields[field] = make_method({"name": inner} if isinstance(inner, str) else inner)
  return lookup.build("methods", spec["name"], fields)
