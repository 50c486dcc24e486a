"""python -m rkd_jax.main --config configs/quickstart.py [--config.key=value ...] [--workdir DIR]"""

import pathlib
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from rkd_jax.errors import UserError, nearest

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "A file with get_config(arg).", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Where everything goes; runs/<config>-<hash> by default."
)
_QUIET = flags.DEFINE_bool("quiet", False, "Say nothing but warnings.")

TRY_AGAIN = (
  75  # EX_TEMPFAIL of sysexits.h: preempted, everything saved, start the same command again
)


def parse(argv: Sequence[str]) -> list[str]:
  """Flags from the command line; a `UserError` for a key or a type that does not fit."""
  try:
    return flags.FLAGS(list(argv))
  except (
    flags.Error,
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
    OSError,
    ImportError,
  ) as error:
    raise UserError(explain(argv, error)) from error


def explain(argv: Sequence[str], error: Exception) -> str:
  """What is wrong with the command line."""
  config = _CONFIG.value if flags.FLAGS.is_parsed() or _CONFIG.present else None
  for argument in argv[1:]:
    key = argument.partition("=")[0]
    if key.startswith("--config.") and config is not None:
      known = flattened(config)
      name = key.removeprefix("--")
      if name not in known:
        return f"There is no key {name}. {nearest(name, known).split(' There are:')[0]}"
  return str(error) or type(error).__name__


def config_file() -> pathlib.Path:
  """The file that --config names, without the argument behind its colon."""
  return pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0])


def flattened(config) -> list[str]:
  from rkd_jax.config import flatten

  return list(flatten(config.to_dict()))


def main(argv: Sequence[str]) -> int:
  """Parses, runs, and turns what goes wrong into a message and a status."""
  from rkd_jax.training.loop import Preempted

  try:
    rest = parse(argv)
    if _CONFIG.value is None or len(rest) > 1:
      raise UserError(
        f"Usage: {__doc__}" + (f"\nUnexpected: {' '.join(rest[1:])}" if rest[1:] else "")
      )
    from rkd_jax import config as configs
    from rkd_jax import experiment

    name = config_file().stem
    workdir = _WORKDIR.value or f"runs/{name}-{configs.digest(_CONFIG.value)}"
    experiment.run(_CONFIG.value, pathlib.Path(workdir), name, _QUIET.value)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except Preempted as error:
    print(f"{error} Start the same command again to go on.", file=sys.stderr)
    return TRY_AGAIN
  except KeyboardInterrupt:
    print("interrupted: start the same command again to go on.", file=sys.stderr)
    return 130
  return 0


def cli() -> None:
  """The console script `rkd`."""
  sys.exit(main(sys.argv))


if __name__ == "__main__":
  cli()
