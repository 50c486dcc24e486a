"""The default config, its checks, and the networks it names.

`default()` holds every key there is, so a locked config refuses unknown ones. Method and trigger
fields are read from their dataclasses: a new file is configurable the moment it exists.
"""

import dataclasses
import hashlib
import json
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from rkd_jax import lookup, recipes
from rkd_jax.data.augment import Augment
from rkd_jax.data.sources import Dataset
from rkd_jax.errors import UserError, check_range, nearest
from rkd_jax.models.network import Network
from rkd_jax.phases import Config
from rkd_jax.training.optimizer import Optimizer


def default() -> Config:
  """Every key of a run's config, with its default."""
  config: Config = ConfigDict()
  config.seeds = (0, 1, 2)  # each its own teacher, poison plan, data order and student
  config.methods = ("none", "kd", "agreement")
  config.labels = 0.05  # fraction of the training images that the defender has labels for
  config.contamination = (
    0.02  # fraction of the defender's images that carry the trigger, unlabelled
  )
  config.backdoor = "badnets"  # a file of backdoors/, or a method that delivers teacher and trigger
  config.target = 0  # the class that the trigger is to bring about
  config.clean_teacher_seeds = -1  # how many seeds also run the clean-teacher control (-1: all)
  config.all_labels_control = True  # the trigger's natural rate on a student taught all labels
  config.data = ConfigDict(
    {
      "name": "digits",  # or "tfds:<name>"
      "data_dir": "",  # where TFDS finds its data; "": its own default
      "split_seed": 0,
      "holdout": 0.1,  # clean hold-out, and test where the data set has none: a fraction or a count
      "test": 0.2,
      "train": 0.0,  # of what is left: a fraction or a count; 0: all
    }
  )
  config.teacher = section("wideresnet-16-2", epochs=10, poison=0.1)
  config.student = section("wideresnet-10-1", epochs=10)
  config.labelled = section("", epochs=100)  # whatever trains on the labelled part alone
  del config.labelled.network
  config.networks = ConfigDict({"shadow": "wideresnet-10-2"})  # further architectures, by role
  config.dtype = "float32"  # of the computation; parameters and statistics are float32
  config.bn_group = 0  # examples per BatchNorm group; 0: the whole batch
  config.devices = 0  # 0: all
  config.save_every = 200  # steps between checkpoints
  config.eval_batch = 256
  config.teachers_dir = ""  # where teachers are shared between runs; "": <workdir>/../teachers
  config.method = ConfigDict({name: recipes.fields(name) for name in recipes.names()})
  config.trigger = ConfigDict({name: trigger_fields(name) for name in lookup.names("backdoors")})
  return config


def section(network: str, **changes: Any) -> Config:
  """How one kind of phase trains."""
  fields = {
    "network": network,  # a file of models/ and its first fields: "wideresnet-16-2"
    "epochs": 10,
    "steps": 0,  # rounds; where not 0, in place of epochs
    "batch_size": 64,
    "augment": dataclasses.asdict(Augment()),
    "optimizer": dataclasses.asdict(Optimizer()),
    "optimizers": ConfigDict(),  # {role: what differs for it}
  }
  return ConfigDict(fields | changes)


def trigger_fields(name: str) -> dict[str, Any]:
  part = lookup.load("backdoors", name)
  return {f.name: f.default for f in dataclasses.fields(part) if f.name != "target"}


def normalise(config: Config) -> None:
  """Makes one form of what can be said in two: `method` with a name, `--config.methods=none,kd`."""
  if "name" in config.method:
    config.methods = (config.method.name,)
  config.methods = tuple(part for name in config.methods for part in name.split(",") if part)


def check(config: Config) -> None:
  """Raises a `UserError` for what can be known to be wrong before any work."""
  check_range("config.labels", config.labels, 0, 1)
  check_range("config.contamination", config.contamination, 0, 1)
  check_range("config.teacher.poison", config.teacher.poison, 0, 1)
  if not config.seeds:
    raise UserError("config.seeds is empty; give at least one, as --config.seeds=0,1,2")
  whole = all(isinstance(seed, int) and seed >= 0 for seed in config.seeds)
  if not whole or len(set(config.seeds)) < len(config.seeds):
    raise UserError(f"config.seeds={config.seeds}: seeds are distinct whole numbers >= 0.")
  for key in ("teacher", "student", "labelled"):
    part = config[key]
    if part.batch_size < 1 or (part.steps < 1 and part.epochs < 1):
      raise UserError(f"config.{key}: batch_size and epochs (or steps) must be at least 1.")
    Augment(**part.augment)
    Optimizer(**part.optimizer)
  known = lookup.names("backdoors") + [n for n in recipes.names() if delivers_trigger(n)]
  if config.backdoor not in known and "." not in config.backdoor:
    raise UserError(f"No backdoor is called {config.backdoor!r}. {nearest(config.backdoor, known)}")
  for spec in recipes.specs(config).values():
    recipes.phases(recipes.Setup(config, "", config.seeds[0]), spec)


def delivers_trigger(name: str) -> bool:
  return name in lookup.names("methods") and "trigger" in lookup.load("methods", name).delivers


def network(config: Config, name: str, dataset: Dataset) -> Network:
  """The architecture "file-a-b" for this data: the file's first fields are a, b."""
  kind, *numbers = name.split("-")
  part = lookup.load("models", kind)
  order = [f.name for f in dataclasses.fields(part) if f.init and f.name not in ("parent", "name")]
  try:
    fields: dict[str, Any] = {order[i]: int(number) for i, number in enumerate(numbers)}
  except (ValueError, IndexError) as error:
    raise UserError(
      f"Cannot read the network {name!r}: after the file's name come whole numbers for its fields "
      f"{', '.join(order)}, as in wideresnet-16-2."
    ) from error
  fields |= {"classes": dataset.classes, "dtype": jnp.dtype(config.dtype).type}
  fields |= {"bn_group": config.bn_group or None}
  known = {field: value for field, value in fields.items() if field in order}
  return Network(
    lookup.build("models", kind, known), dataset.image_shape, dataset.mean, dataset.std
  )


def digest(config: Config) -> str:
  """Eight hex digits over the config."""
  text = json.dumps(config.to_dict(), sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()[:8]


def flatten(tree: Any, prefix: str = "config") -> dict[str, Any]:
  """{"config.a.b": value}."""
  if not isinstance(tree, dict):
    return {prefix: list(tree) if isinstance(tree, tuple) else tree}
  found = {}
  for key, value in tree.items():
    found |= flatten(value, f"{prefix}.{key}")
  return found


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
  """Lines that say where two configs differ."""
  a, b = flatten(old), flatten(new)
  keys = sorted({*a, *b})
  return [f"{k}: {a.get(k)!r} there, {b.get(k)!r} now" for k in keys if a.get(k) != b.get(k)]
