"""The default config, its checks, and the networks it names.

`default()` holds every key there is, so a locked config refuses unknown ones. Method and trigger
fields are read from their dataclasses: a new file is configurable the moment it exists.
"""

import dataclasses
import hashlib
import json
from typing import Any

from ml_collections import ConfigDict

from rkd_jax import lookup, recipes
from rkd_jax.data.augment import Augment
from rkd_jax.errors import UserError, check_range, nearest
from rkd_jax.phases import Config
from rkd_jax.training.optimizer import Optimizer

# Our own recipe: a composition, no class of its own (docs/robustkd.md says why).
RKD = {
  "name": "agreement",
  "rounds": 2,
  "within": 0.1,
  "seconds": (0, 2),
  "sure": (0.0, 0.7),
  "base": {
    "name": "consistency",
    "view": "warped_blend",
    "amplitude": (0.0, 0.25, 0.5),
    "base": "kd",
  },
}
DTYPES = ("float32", "bfloat16")  # of the computation
FREE = ("method", "trigger", "networks", "optimizers")  # sections with keys of one's own


def default() -> Config:
  """Every key of a run's config, with its default."""
  config: Config = ConfigDict()
  config.seeds = (0, 1, 2)  # each its own teacher, poison plan, data order and student
  config.methods = ("none", "kd", "agreement")  # what is compared: names or labels of methods
  config.labels = 0.05  # fraction of the training images that the defender has labels for
  # fraction of the defender's images that carry the trigger, all of them unlabelled
  config.contamination = 0.02
  # a file of backdoors/, or a method that delivers a trigger; "none": there is none
  config.backdoor = "badnets"
  config.target = 0  # the class that the trigger is to bring about
  config.plan = "random"  # who of the pool carries the trigger, one of `backdoors.plans`
  config.clean_teacher_seeds = -1  # how many seeds also run the clean-teacher control (-1: all)
  config.all_labels_control = True  # the trigger's natural rate on a student taught all labels
  config.data = ConfigDict(
    {
      "name": "digits",  # or "tfds:<name>", "folder:<path>" (a zip file too), "npz:<file>"
      "data_dir": "",  # where TFDS finds its data, and folders begin; "": TFDS's own, and here
      "split_seed": 0,  # draws the parts
      "holdout": 0.1,  # the clean hold-out: a fraction of the images, or from 1 on a count
      "test": 0.2,  # the same for the test part, where the data set has none
      "train": 0.0,  # what of the rest is used, a fraction or a count; 0: all
      "size": 0,  # images are resized and cropped to squares; 0: they stay as they are
      "memory_mib": 2048,  # a folder that takes more as pixels stays on disk
      "skip_corrupt": False,  # leave out images that cannot be read, and say so
      "unlabelled": "",  # folder or zip file of further images for the student; "": none
    }
  )
  config.teacher = section(
    "wideresnet-16-2",
    method="supervised",  # how it is trained: "pgd_at" or "trades" make it withstand attacks
    poison=0.1,  # fraction of the teacher's training images that carry the trigger
    plan="random",  # who of them does, one of `backdoors.plans`
    # a teacher that was made elsewhere: the folder of a phase, or a stranger's file; "": none
    checkpoint="",
    sha256="",  # what that file's bytes (of a phase: its arrays) must be; "": whatever they are
    mean=(),  # of the pixels that it saw, in [0, 1], per channel; (): that of whose network it is
    std=(),  # the same
    classes=(),  # which of its classes is each of the data's, by index; (): they are the same
  )
  config.student = section("wideresnet-10-1")
  config.labelled = section("", epochs=100)  # whatever trains on the labelled part alone
  del config.labelled.network
  config.networks = ConfigDict({"shadow": "wideresnet-10-2"})  # further architectures, by role
  config.eval = ConfigDict(
    {
      # how many test images the finished networks get right under attack, see `adversarial/`
      "adversarial": ConfigDict(
        {
          "attacks": ("pgd-20",),  # names, as "fgsm", "pgd-20", "pgd-20x5", "autoattack"
          "norm": "linf",  # of the changes: "linf" or "l2"
          "eps": (),  # their largest sizes, in pixels of (0, 1]; (): nobody is attacked
          "images": 200,  # how many test images, of every class as many; 0: all
          "analysis": False,  # also what the numbers rest on, see `adversarial/analysis.py`
        }
      )
    }
  )
  config.dtype = "float32"  # of the computation; parameters and statistics are float32
  config.bn_group = 0  # examples per BatchNorm group; 0: the whole batch
  config.devices = 0  # how many of those that JAX sees; 0: all
  config.save_every = 200  # steps between checkpoints
  config.eval_batch = 256  # images that a network is asked about at a time
  config.teachers_dir = ""  # where teachers are shared between runs; "": <workdir>/../teachers
  config.method = ConfigDict({name: recipes.fields(name) for name in recipes.names()})
  config.method.rkd = ConfigDict(RKD)
  config.trigger = ConfigDict({name: trigger_fields(name) for name in lookup.names("backdoors")})
  return config


def section(network: str, **changes: Any) -> Config:
  """How one kind of phase trains."""
  fields = {
    "network": network,  # a file of models/ and its first fields: "wideresnet-16-2"
    "epochs": 10,  # passes over the phase's images
    "steps": 0,  # rounds; where not 0, in place of epochs
    "rounds_per_epoch": 100,  # of a phase without data
    "batch_size": 64,  # images a round, over all devices
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
  for section, key in ((config, "methods"), (config.eval.adversarial, "attacks")):
    section[key] = tuple(part for name in section[key] for part in name.split(",") if part)


def check_keys(config: Config, known: Any = None, path: str = "config") -> None:
  """Raises a `UserError` where a config's keys are not those of `known`: the default's."""
  known = known or default()
  for key in config:
    if key not in known:
      raise UserError(f"{path}.{key} is no key of a config. {nearest(key, known)}")
  for key, value in known.items():
    if key not in config or isinstance(value, ConfigDict) != isinstance(config[key], ConfigDict):
      raise UserError(f"The config lacks {path}.{key}. Begin with rkd_jax.config.default().")
    if isinstance(value, ConfigDict) and key not in FREE:
      check_keys(config[key], value, f"{path}.{key}")


def check(config: Config) -> None:
  """Raises a `UserError` for what can be known to be wrong without the data."""
  check_range("config.labels", config.labels, 0, 1)
  check_range("config.contamination", config.contamination, 0, 1)
  check_range("config.teacher.poison", config.teacher.poison, 0, 1)
  for key in ("save_every", "eval_batch"):
    check_range(f"config.{key}", config[key], 1, 10**9)
  check_range("config.data.size", config.data.size, 0, 4096)
  check_range("config.data.memory_mib", config.data.memory_mib, 0, 10**9)
  check_range("config.devices", config.devices, 0, 10**6)
  check_range("config.bn_group", config.bn_group, 0, 10**9)
  if config.dtype not in DTYPES:
    raise UserError(f"config.dtype is {config.dtype!r}; choose one of {', '.join(DTYPES)}.")
  whole = all(isinstance(seed, int) and seed >= 0 for seed in config.seeds)
  if not config.seeds or not whole or len(set(config.seeds)) < len(config.seeds):
    raise UserError(
      f"config.seeds is {config.seeds}; give distinct whole numbers >= 0, as --config.seeds=0,1,2"
    )
  for key in ("teacher", "student", "labelled"):
    check_section(key, config[key])
  known = [*lookup.names("backdoors"), *filter(delivers_trigger, recipes.names())]
  if config.backdoor not in known and "." not in config.backdoor:
    raise UserError(f"No backdoor is called {config.backdoor!r}. {nearest(config.backdoor, known)}")
  check_given(config)
  if not recipes.specs(config):
    raise UserError("config.methods is empty; name at least one, as --config.methods=none,kd")


def check_given(config: Config) -> None:
  """The same for a teacher that was made elsewhere, and for a trigger that nobody knows."""
  given, unknown = config.teacher.checkpoint, config.backdoor == "unknown"
  if config.backdoor == "none" and given:
    raise UserError(
      "config.backdoor is 'none', but nobody knows that of a teacher that was made elsewhere. Say "
      "--config.backdoor=unknown."
    )
  if unknown and not given:
    raise UserError(
      "config.backdoor is 'unknown', but the teacher is trained here, so its trigger is known. "
      "Name a teacher that was made elsewhere, as --config.teacher.checkpoint=FILE, or a backdoor."
    )
  if config.backdoor in ("none", "unknown") and config.contamination:
    raise UserError(
      f"config.backdoor is {config.backdoor!r}, so there is no trigger to put on images: say "
      "--config.contamination=0 as well."
    )
  if given and delivers_trigger(config.backdoor):
    raise UserError(
      f"The trigger of {config.backdoor!r} is trained together with its teacher, but the teacher "
      "is given. Choose 'unknown', or a trigger that is not trained."
    )
  for key in ("sha256", "mean", "std", "classes"):
    if config.teacher[key] and not given:
      raise UserError(f"config.teacher.{key} is set, but no config.teacher.checkpoint.")
  if len(config.teacher.mean) != len(config.teacher.std) or min(config.teacher.std, default=1) <= 0:
    raise UserError(
      f"config.teacher.mean is {config.teacher.mean} and config.teacher.std {config.teacher.std}: "
      "give one number per channel in each, of pixels in [0, 1], and each std above 0, as "
      "--config.teacher.mean=0.5,0.5,0.5 --config.teacher.std=0.5,0.5,0.5"
    )


def check_section(name: str, section: Config) -> None:
  """The same for one kind of phase."""
  check_range(f"config.{name}.batch_size", section.batch_size, 1, 10**9)
  check_range(f"config.{name}.rounds_per_epoch", section.rounds_per_epoch, 1, 10**9)
  for key in ("steps", "epochs"):
    check_range(f"config.{name}.{key}", section[key], 0, 10**9)
  if not section.steps and not section.epochs:
    raise UserError(f"config.{name}: steps and epochs are both 0; one must be more.")
  Augment(**section.augment)
  Optimizer(**section.optimizer)


def delivers_trigger(name: str) -> bool:
  """Whether the method is an attack that trains its trigger."""
  known = name in lookup.names("methods") and not recipes.is_plugin(name)
  return known and "trigger" in lookup.load("methods", name).delivers


def identity(config: Config) -> dict[str, Any]:
  """The config as plain values, without what cannot change a result: where things lie, how often
  they are saved, on how many devices."""
  plain = json.loads(json.dumps(config.to_dict()))
  for key in ("devices", "save_every", "eval_batch", "teachers_dir"):
    del plain[key]
  for key in ("data_dir", "memory_mib"):
    del plain["data"][key]
  return plain


def digest(config: Config) -> str:
  """Eight hex digits over the config."""
  text = json.dumps(identity(config), sort_keys=True)
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
