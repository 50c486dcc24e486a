"""The reference pages, made from the code: every key of a config, every command.

What a key means is said once, where it is defined: in a comment beside it in `rkd_jax/config.py`,
or under "Attributes:" ("Args:" for a recipe) in the docstring of the part that has the field.
"""

import ast
import contextlib
import dataclasses
import functools
import importlib
import inspect
import io
import os
import pkgutil
import re
import textwrap
import tokenize
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

from absl import flags

from rkd_jax import commands, config, lookup, main, recipes
from rkd_jax.data.augment import Augment
from rkd_jax.networks import NOT_IN_NAMES
from rkd_jax.reporting.formats import METRICS
from rkd_jax.training.optimizer import Optimizer

SECTIONS = ("teacher", "student", "labelled")
PARTS = {"augment": Augment, "optimizer": Optimizer}  # of a section
GROUPS = {
  "Distillation": "Trained from a teacher, or from labels alone.",
  "Around another method": "Each wraps its `base`: a method's name, or a description of one.",
  "Repairs of the teacher": "Each changes the teacher first; its `base` then learns from that one.",
  "Attacks": "Each trains its trigger. It is named by `config.backdoor`, not by `config.methods`.",
  "Phases of other methods": "They train no student of their own.",
}
Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Field:
  """One key of the config: how it is written, what it is until it is said, what it means."""

  key: str
  kind: str
  default: Any
  text: str


def fields() -> list[Field]:
  """Every key of the config, in the order of the page."""
  found = [*run_fields(), *section_fields()]
  for name in recipes.names():
    found += method_fields(name)
  for name in lookup.names("backdoors"):
    found += trigger_fields(name)
  return found


# Where descriptions stand.


def order(function: Callable) -> list[Path]:
  """The paths of the keys that a function sets, as they stand in its source."""
  return [path for path, _ in entries(ast.parse(textwrap.dedent(inspect.getsource(function))))]


@functools.cache
def comments(function: Callable) -> dict[Path, str]:
  """{path of a key: the comment beside or above it} in a function that makes a config."""
  return comments_of(textwrap.dedent(inspect.getsource(function)))


def comments_of(source: str) -> dict[Path, str]:
  """The same of its source."""
  spans = [(p, at.lineno, at.end_lineno or 0) for p, at in entries(ast.parse(source))]
  found: dict[Path, list[str]] = {}
  for token in tokenize.generate_tokens(io.StringIO(source).readline):
    if token.type != tokenize.COMMENT or token.string == "# fmt: skip":
      continue
    line, alone = token.start[0], token.line.strip() == token.string
    inside = [s for s in spans if s[1] <= line <= s[2] and not alone]
    after = sorted((s for s in spans if s[1] > line), key=lambda s: s[1])
    nearest = min(inside, key=lambda s: s[2] - s[1]) if inside else after[0]
    found.setdefault(nearest[0], []).append(token.string.lstrip("# "))
  return {path: " ".join(lines) for path, lines in found.items()}


def entries(tree: ast.AST, above: Path = ()) -> Iterator[tuple[Path, Any]]:
  """(path, node) of every key that is set: by assignment, in a dict, as a keyword."""
  for node in ast.iter_child_nodes(tree):
    path = above
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
      path = tuple(ast.unparse(node.targets[0]).split(".")[1:])
      yield path, node
    elif isinstance(node, ast.keyword) and node.arg and above:
      path = (*above, node.arg)
      yield path, node
    elif isinstance(node, ast.Dict):
      for key, value in zip(node.keys, node.values, strict=True):
        if isinstance(key, ast.Constant):
          yield (*above, str(key.value)), _span(key, value)
          yield from entries(ast.Expr(value), (*above, str(key.value)))
      continue
    yield from entries(node, path)


def _span(key: ast.expr, value: ast.expr) -> ast.expr:
  """The value's node, from the line of its key on."""
  value.lineno = key.lineno
  return value


def described(text: str | None) -> dict[str, str]:
  """{field: description} of a docstring's "Attributes:" and "Args:"."""
  found: dict[str, str] = {}
  for section in re.findall(
    r"^(?:Attributes|Args):\n((?:[ ]+.*\n?|\n)+)", inspect.cleandoc(text or ""), re.MULTILINE
  ):
    for names, said in re.findall(
      r"^([\w, ]+): ((?:.|\n(?=[ ]|\n))*)", textwrap.dedent(section), re.MULTILINE
    ):
      found |= dict.fromkeys(re.split(r",\s*", names), " ".join(said.split()))
  return found


def of_class(part: type) -> dict[str, str]:
  """The same of a class and what it inherits from, its own words first."""
  found: dict[str, str] = {}
  for base in reversed(part.__mro__):
    found |= described(base.__dict__.get("__doc__"))
  return found


# What the keys are.


def kind(value: Any, annotation: Any = None) -> str:
  """The type of a value, as the reader is told it."""
  if isinstance(value, tuple):
    inner = kind(value[0]) if value else str(annotation or "str").partition("[")[2].split(",")[0]
    return f"several {inner}"
  return {"bool": "true or false"}.get(type(value).__name__, type(value).__name__)


def leaves(tree: Mapping[str, Any], above: Path = ()) -> Iterator[tuple[Path, Any]]:
  """(path, value) of a config's keys; an empty part is one."""
  for key, value in tree.items():
    if isinstance(value, Mapping) and value:
      yield from leaves(value, (*above, key))
    else:
      yield (*above, key), value


def run_fields() -> list[Field]:
  """The keys of a run that are no part's: data, labels, backdoor, devices."""
  made, said = config.default().to_dict(), comments(config.default)
  own = {key: value for key, value in made.items() if key not in (*SECTIONS, "method", "trigger")}
  own |= {s: {k: made[s][k] for k in set(made[s]) - set(section())} for s in SECTIONS}
  keys, place = dict(leaves({k: v for k, v in own.items() if v != {}})), order(config.default)
  return [
    Field(".".join(("config", *path)), kind(keys[path]), keys[path], _text(said, path))
    for path in sorted(keys, key=lambda path: (len(path), place.index(path)))
  ]


def section() -> dict[str, Any]:
  """The keys that all sections share."""
  return config.section("").to_dict()


def section_fields() -> list[Field]:
  """How a kind of phase trains; `<section>` stands for each of `SECTIONS`."""
  said, made = comments(config.section), config.default().to_dict()
  place = order(config.section)
  place += [(key, f.name) for key, part in PARTS.items() for f in dataclasses.fields(part)]
  found = []
  for path in sorted(dict(leaves(section())), key=lambda p: (len(p), place.index(p))):
    part = PARTS.get(path[0])
    text = of_class(part).get(path[1], "") if part else _text(said, path)
    values = {name: _at(made[name], path) for name in SECTIONS}
    known = {name: value for name, value in values.items() if value is not None}
    shown = list(known.values())
    default = shown[0] if all(value == shown[0] for value in shown) else known
    found.append(Field(f"config.<section>.{'.'.join(path)}", kind(shown[0]), default, text))
  return found


def _at(tree: Any, path: Path) -> Any:
  for key in path:
    tree = tree.get(key) if isinstance(tree, Mapping) else None
  return tree


def _text(said: Mapping[Path, str], path: Path) -> str:
  return next((said[path[:n]] for n in range(len(path), 0, -1) if path[:n] in said), "")


def method_class(name: str) -> Any:
  """The class behind a method's name; None where it is a recipe alone."""
  return lookup.load("methods", name) if name in lookup.names("methods") else None


def method_fields(name: str) -> list[Field]:
  """The fields that `config.method.<name>` takes, the recipe's own included."""
  part, recipe = method_class(name), recipes.RECIPES.get(name)
  said = (of_class(part) if part else {}) | (described(recipe.__doc__) if recipe else {})
  types = {f.name: f.type for f in dataclasses.fields(part)} if part else {}
  return [
    Field(
      f"config.method.{name}.{field}",
      "method" if field in recipes.nested(name) else kind(value, types.get(field)),
      value,
      said.get(field, ""),
    )
    for field, value in recipes.fields(name).items()
  ]


def trigger_fields(name: str) -> list[Field]:
  said = of_class(lookup.load("backdoors", name))
  return [
    Field(f"config.trigger.{name}.{field}", kind(value), value, said.get(field, ""))
    for field, value in config.trigger_fields(name).items()
  ]


def group(name: str) -> str:
  """The heading that a method stands under."""
  if name in recipes.REPAIRS:
    return "Repairs of the teacher"
  if recipes.is_plugin(name):
    return "Around another method"
  if config.delivers_trigger(name):
    return "Attacks"
  part = method_class(name)
  trains = part is None or ("student" in part.delivers and part().trains().get("epochs") != 0)
  return "Distillation" if trains else "Phases of other methods"


# Pages.


def run_page() -> str:
  return table(run_fields())


def section_page() -> str:
  return table(section_fields(), "config.<section>.")


def methods_page() -> str:
  lines = []
  for heading, intro in GROUPS.items():
    lines += [f"### {heading}", "", intro, ""]
    for name in recipes.names():
      if group(name) == heading:
        lines += part_lines("method", name, method_fields(name), summary(name))
    if heading == "Around another method":
      lines += ["#### rkd { #method-rkd }", "", COMPOSED, "", composition(config.RKD), ""]
  return "\n".join(lines)


COMPOSED = """Our own recipe: a composition of the above, no class of its own. Its keys are those of
the methods it is made of, as `config.method.rkd.base.amplitude`."""


def composition(spec: Mapping[str, Any]) -> str:
  found = [Field(f"config.method.rkd.{'.'.join(p)}", "", v, "") for p, v in leaves(spec)]
  return "\n".join(f"- `{field.key}`: {shown(field.default)}" for field in found)


def triggers_page() -> str:
  lines = []
  for name in lookup.names("backdoors"):
    text = module_summary("backdoors", name)
    doc = first(lookup.load("backdoors", name).__doc__)
    lines += part_lines("trigger", name, trigger_fields(name), f"{text}\n\n{doc}")
  return "\n".join(lines)


def networks_page() -> str:
  lines = []
  for name in lookup.names("models"):
    part = lookup.load("models", name)
    said = of_class(part)
    own = [
      Field(f.name, kind(f.default), f.default, said.get(f.name, ""))
      for f in dataclasses.fields(part)
      if f.init and f.name not in NOT_IN_NAMES
    ]
    text = f"{module_summary('models', name)}\n\n{first(part.__doc__)}"
    lines += [f"#### {name} {{ #network-{name} }}", "", escaped(text), "", table(own), ""]
  return "\n".join(lines)


def summary(name: str) -> str:
  """What a method is: the first words of its file, of its recipe, and of its class."""
  part, recipe = method_class(name), recipes.RECIPES.get(name)
  said = [module_summary("methods", name)] if part else []
  said += [first(recipe.__doc__)] if recipe else []
  said += [first(part.__doc__)] if part else []
  return "\n\n".join(said)


def module_summary(kind_of: str, name: str) -> str:
  return first(importlib.import_module(f"rkd_jax.{kind_of}.{name}").__doc__)


def first(doc: str | None) -> str:
  """The first paragraph of a docstring."""
  return inspect.cleandoc(doc or "").partition("\n\n")[0]


def part_lines(kind_of: str, name: str, own: list[Field], text: str) -> list[str]:
  lines = [f"#### {name} {{ #{kind_of}-{name} }}", "", escaped(text), ""]
  above = f"config.{kind_of}.{name}."
  rows = [f"In `{above[:-1]}`:", "", table(own, above), ""] if own else ["It has no fields.", ""]
  return lines + rows


def table(found: list[Field], above: str = "") -> str:
  """Keys as rows, without what stands `above` them all."""
  lines = ["| Key | Type | Default | Meaning |", "| --- | --- | --- | --- |"]
  for field in found:
    text = escaped(field.text.removesuffix("."))
    key = field.key.removeprefix(above)
    lines.append(f"| `{key}` | {field.kind} | {shown(field.default)} | {text} |")
  return "\n".join(lines)


def shown(value: Any) -> str:
  """A default, as the command line takes it."""
  if isinstance(value, Mapping):
    return ", ".join(f"{key}: {shown(inner)}" for key, inner in value.items()) or "none"
  if isinstance(value, tuple | list):
    return f"`{','.join(map(str, value))}`" if value else "none"
  if isinstance(value, float):
    return f"`{value:.6g}`"
  return f"`{str(value).lower() if isinstance(value, bool) else value}`" if value != "" else "empty"


def escaped(text: str) -> str:
  """Plain text as Markdown: what a docstring does not mean as markup stays as it is."""
  parts = re.split(r"(`[^`]*`)", text)
  plain = (re.sub(r"([*_<>\[\]{}^~|])", r"\\\1", part) for part in parts[::2])
  code = (part.replace("|", r"\|") for part in parts[1::2])
  mixed = [*plain]
  for at, part in enumerate(code):
    mixed.insert(2 * at + 1, part)
  return "".join(mixed)


# Commands.


def command_names() -> list[str]:
  return sorted(module.name for module in pkgutil.iter_modules(commands.__path__))


def main_page() -> str:
  """The flags of `rkd_jax.main`."""
  own = flags.FLAGS.get_key_flags_for_module(main)
  lines = ["| Flag | Default | Meaning |", "| --- | --- | --- |"]
  lines += [f"| `--{f.name}` | {shown(f.default)} | {escaped(f.help or '')} |" for f in own]
  return "\n".join(lines)


def commands_page() -> str:
  """The help of every command."""
  lines = []
  for name in command_names():
    lines += [f"## {name}", "", "```text", help_of(name).strip(), "```", ""]
  return "\n".join(lines)


def help_of(name: str) -> str:
  """What `python -m rkd_jax.commands.<name> --help` prints."""
  command, printed = importlib.import_module(f"rkd_jax.commands.{name}"), io.StringIO()
  with (
    mock.patch.dict(os.environ, {"COLUMNS": "88"}),
    contextlib.redirect_stdout(printed),
    contextlib.suppress(SystemExit),
  ):
    command.main(["--help"])
  return printed.getvalue()


def metrics_page() -> str:
  """What the report's terms mean."""
  lines = ["| term | in `results.json` | meaning |", "| --- | --- | --- |"]
  lines += [f"| {name} | `{key}` | {escaped(text)} |" for key, (name, text) in METRICS.items()]
  return "\n".join(lines)


PAGES: dict[str, Callable[[], str]] = {
  "config run": run_page,
  "config section": section_page,
  "config methods": methods_page,
  "config triggers": triggers_page,
  "config networks": networks_page,
  "flags": main_page,
  "commands": commands_page,
  "metrics": metrics_page,
}


def fill(markdown: str) -> str:
  """A page with what is generated in the places that name it: `<!-- generated: config run -->`.

  What lies between such a line and `<!-- /generated -->` is made again.
  """
  kept = re.sub(
    r"<!-- generated: ([\w ]+) -->\n(?:(?!<!-- ).*\n)*<!-- /generated -->",
    lambda found: PAGES[found[1]](),
    markdown,
  )
  return re.sub(r"<!-- generated: ([\w ]+) -->", lambda found: PAGES[found[1]](), kept)
