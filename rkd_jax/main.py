"""python -m rkd_jax.main --config configs/quickstart.py [--config.key=value ...] [--workdir DIR]"""

import importlib
import pathlib
import pkgutil
import re
import sys
import traceback
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from rkd_jax import commands, heap, hosts
from rkd_jax.errors import UserError, nearest
from rkd_jax.reporting import terminal
from rkd_jax.reporting.terminal import VERBOSITY

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "A file with get_config(arg).", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "The workdir; runs/<config>-<hash> by default.")
_QUIET = flags.DEFINE_bool("quiet", False, "Say nothing but warnings; --verbosity=quiet.")

HELP = """Runs a config to its report, or goes on with it where it was stopped.

  --config FILE[:ARG]   a file with get_config(arg), as configs/quickstart.py:smoke
  --config.KEY=VALUE    another value of one of its keys, as --config.student.epochs=20
  --workdir DIR         where everything goes; runs/<config>-<hash> by default
  --verbosity WORD      quiet (warnings alone), normal, or debug (also the place of an error)

docs/config.md says what the keys are. What runs leave is looked at with the commands"""
LOST = """{}
Most likely another process of the run has died: look at what it said. Then start them all again
with the same command; it goes on from the last checkpoint."""
WRONG, TRY_AGAIN, INTERRUPTED = 2, 75, 130  # 75: EX_TEMPFAIL, everything saved, start again


def parse(argv: Sequence[str]) -> tuple[ConfigDict, str]:
  """(config, its name) from the command line; a `UserError` for whatever does not fit."""
  try:
    rest = flags.FLAGS(list(argv))[1:]
    if rest or not flags.FLAGS["config"].present:
      raise UserError(f"Usage: {__doc__}" + (f"\nUnexpected: {' '.join(rest)}" if rest else ""))
    config = _CONFIG.value
    file = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0]
    config.to_dict()  # a file that could not be loaded fails only when it is used
  except UserError:
    raise
  except Exception as error:  # absl, ml_collections and the config file each raise their own
    raise UserError(explain(argv, error)) from error
  return config, pathlib.Path(file).stem


def verbosity(argv: Sequence[str]) -> tuple[str, list[str]]:
  """How much is said, and the command line without it: absl has a flag of that name for itself."""
  rest, given = [], "normal"
  words = iter(argv)
  for word in words:
    flag, equals, value = word.partition("=")
    if flag not in ("--verbosity", "-verbosity"):
      rest.append(word)
      continue
    given = value if equals else next(words, "")
    if given not in VERBOSITY:
      raise UserError(f"--verbosity is {given!r}; choose one of {', '.join(VERBOSITY)}.")
  return given, rest


def explain(argv: Sequence[str], error: BaseException) -> str:
  """What is wrong with a command line, from the error that parsing it raised."""
  text = str(error).replace("\\'", "'").replace("\\n", "\n")
  if missing := re.match(r"\W*'(\w+)'\W*(Did you mean \"\w+\")?", text):
    given = next((a for a in argv if a.partition("=")[0].endswith(f".{missing[1]}")), "")
    hint = f" {missing[2]}?" if missing[2] else elsewhere(missing[1])
    return (
      f"The config has no key {missing[1]!r} ({given}).{hint} All keys are in rkd_jax/config.py."
    )
  if wrong := re.match(r"flag --?(\S+?)=(.*): \W*(invalid|could|Non-bool)", text, re.DOTALL):
    wanted = {"invalid": "a whole number", "could": "a number", "Non-bool": "true or false"}
    return f"--{wrong[1]} is {wrong[2]!r}; give {wanted[wrong[3]]}."
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  if "Failed loading config file" in text or "'get_config'" in text:
    rest = iter(argv)
    found = (
      a.partition("=")[2] or next(rest, "") for a in rest if a.partition("=")[0] == "--config"
    )
    wanted = next(found, "")
    return f"Cannot load the config {wanted!r}: {lines[-1]}"
  return lines[-1] if "Traceback" in text else text


def elsewhere(key: str) -> str:
  """In which of the default config's sections such a key stands, as a sentence; "" for nowhere."""
  from rkd_jax import config as configs

  paths = configs.flatten(configs.default().to_dict())
  found = [f"--{path}=" for path in paths if path.split(".")[2:] == [key]]
  return f" Did you mean {' or '.join(found)}?" if found else ""


def main(argv: Sequence[str]) -> int:
  """Parses, runs, and turns what goes wrong into a message and a status."""
  terminal.ready()
  if {"--help", "-h", "-help", "--helpfull"} & {*argv[1:]}:
    print(f"Usage: {__doc__}\n\n{HELP}\n{', '.join(_commands())}: rkd COMMAND --help.")
    return 0
  said = "normal"
  try:
    said, argv = verbosity(argv)
    config, name = parse(argv)
    return run(config, name, "quiet" if _QUIET.value else said)
  except UserError as error:
    return hosts.leave(failed(error, said))
  except OSError as error:
    what = f"{error.strerror or error}: {error.filename or 'a file'}. Nothing is half-written."
    return hosts.leave(failed(what, said, error))
  except KeyboardInterrupt:
    print("Interrupted. Start the same command again to go on.", file=sys.stderr)
    return hosts.leave(INTERRUPTED)


def run(config: ConfigDict, name: str, said: str) -> int:
  """JAX is imported here, once the command line is known to be right."""
  heap.keep()
  hosts.join()
  import jax

  from rkd_jax import config as configs
  from rkd_jax import experiment, workdir
  from rkd_jax.training import checkpoint
  from rkd_jax.training.loop import Preempted

  checkpoint.hush_threads()
  configs.check_keys(config)
  configs.normalise(config)
  directory = _WORKDIR.value or f"runs/{name}-{configs.digest(config)}"
  try:
    experiment.run(config, workdir.path(directory), name, said == "quiet", said == "debug")
  except Preempted as error:
    if hosts.first():
      print(f"{error} Start the same command again to go on.", file=sys.stderr)
    return TRY_AGAIN
  except (UserError, OSError):
    raise
  except Exception as error:
    if hosts.count() == 1:
      raise
    if not isinstance(error, jax.errors.JaxRuntimeError):
      traceback.print_exception(error)
      return hosts.leave(1)
    failed(LOST.format(hosts.line(error)), said, error)
    return hosts.leave(TRY_AGAIN)
  return 0


def failed(error: UserError | str, said: str, cause: BaseException | None = None) -> int:
  """Says what went wrong; with `--verbosity=debug` also where."""
  if said == "debug":
    traceback.print_exception(cause or error)  # type: ignore[arg-type]
  print(f"error: {error}", file=sys.stderr)
  return WRONG


def _commands() -> list[str]:
  return [module.name for module in pkgutil.iter_modules(commands.__path__)]


def cli() -> None:
  """The console script `rkd`: a run, or as `rkd verify DIR` one of the commands."""
  command, known = "".join(sys.argv[1:2]), _commands()
  if command in known:
    part = importlib.import_module(f"rkd_jax.commands.{command}")
    sys.exit(part.main(sys.argv[2:]))
  if command and not command.startswith("-"):
    sys.exit(failed(f"No command is called {command!r}. {nearest(command, known)}", "normal"))
  sys.exit(main(sys.argv))


if __name__ == "__main__":
  sys.exit(main(sys.argv))
