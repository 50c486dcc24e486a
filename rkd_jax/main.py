"""python -m rkd_jax.main --config configs/quickstart.py [--config.key=value ...] [--workdir DIR]"""

import pathlib
import re
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from rkd_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "A file with get_config(arg).", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "The workdir; runs/<config>-<hash> by default.")
_QUIET = flags.DEFINE_bool("quiet", False, "Say nothing but warnings.")

WRONG, TRY_AGAIN, INTERRUPTED = 2, 75, 130  # 75: EX_TEMPFAIL, everything saved, start again


def parse(argv: Sequence[str]) -> tuple[ConfigDict, str]:
  """(config, its name) from the command line; a `UserError` for whatever does not fit."""
  try:
    rest = flags.FLAGS(list(argv))[1:]
    config = _CONFIG.value
    file = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0]
    if config is not None:
      config.to_dict()  # a file that could not be loaded fails only when it is used
  except UserError:
    raise
  except Exception as error:  # absl, ml_collections and the config file each raise their own
    raise UserError(explain(argv, error)) from error
  if config is None or rest:
    raise UserError(f"Usage: {__doc__}" + (f"\nUnexpected: {' '.join(rest)}" if rest else ""))
  return config, pathlib.Path(file).stem


def explain(argv: Sequence[str], error: BaseException) -> str:
  """What is wrong with a command line, from the error that parsing it raised."""
  text = str(error).replace("\\'", "'").replace("\\n", "\n")
  if missing := re.match(r"\W*'(\w+)'\W*(Did you mean \"\w+\")?", text):
    given = next((a for a in argv if a.partition("=")[0].endswith(f".{missing[1]}")), "")
    hint = f" {missing[2]}?" if missing[2] else ""
    return (
      f"The config has no key {missing[1]!r} ({given}).{hint} All keys are in rkd_jax/config.py."
    )
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  if "Failed loading config file" in text or "'get_config'" in text:
    rest = iter(argv)
    found = (
      a.partition("=")[2] or next(rest, "") for a in rest if a.partition("=")[0] == "--config"
    )
    wanted = next(found, "")
    return f"Cannot load the config {wanted!r}: {lines[-1]}"
  return lines[-1] if "Traceback" in text else text


def main(argv: Sequence[str]) -> int:
  """Parses, runs, and turns what goes wrong into a message and a status."""
  try:
    config, name = parse(argv)
    from rkd_jax import (
      config as configs,
    )  # JAX is imported once the command line is known to be right
    from rkd_jax import experiment
    from rkd_jax.training.loop import Preempted
  except UserError as error:
    return failed(error)

  try:
    configs.normalise(config)
    workdir = _WORKDIR.value or f"runs/{name}-{configs.digest(config)}"
    experiment.run(config, pathlib.Path(workdir), name, _QUIET.value)
  except UserError as error:
    return failed(error)
  except OSError as error:
    return failed(
      f"{error.strerror or error}: {error.filename or 'a file'}. Nothing is half-written."
    )
  except Preempted as error:
    print(f"{error} Start the same command again to go on.", file=sys.stderr)
    return TRY_AGAIN
  except KeyboardInterrupt:
    print("Interrupted. Start the same command again to go on.", file=sys.stderr)
    return INTERRUPTED
  return 0


def failed(error: UserError | str) -> int:
  print(f"error: {error}", file=sys.stderr)
  return WRONG


def cli() -> None:
  """The console script `rkd`."""
  sys.exit(main(sys.argv))


if __name__ == "__main__":
  cli()
