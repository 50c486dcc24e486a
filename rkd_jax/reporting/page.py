"""What every page is made with: the templates, the glossary, other people's values as text."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jinja2

import rkd_jax
from rkd_jax.reporting import svg, verdict
from rkd_jax.reporting.files import atomic_write
from rkd_jax.reporting.formats import METRICS, NOT_MEASURED, WORDS, percent

TERMS = {**WORDS, **METRICS}


def write(path: pathlib.Path, template: str, context: Mapping[str, Any]) -> pathlib.Path:
  """Renders a template with `context` into `path`, whole or not at all."""
  shared = {
    "terms": TERMS,
    "marker": svg.marker,
    "version": rkd_jax.__version__,
    "first": "comparison",
    "limits": {
      "asr": percent(verdict.REMOVED_ASR),
      "carried": percent(verdict.REMOVED_CARRIED),
      "lost": f"{100 * verdict.LOST:g}\u202f%",
    },
  }
  atomic_write(path, _environment().get_template(template).render(**shared, **context))
  return path


def _environment() -> jinja2.Environment:
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader("rkd_jax", "reporting"),
    autoescape=True,  # class names, paths and configs are other people's text
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters["words"] = words
  return environment


def mapping(value: Any) -> Mapping[str, Any]:
  """The value if it is a mapping, else an empty one: a manifest may have been written by anyone."""
  return value if isinstance(value, Mapping) else {}


def mappings(value: Any) -> list[Mapping[str, Any]]:
  """The mappings in a list."""
  return [v for v in value if isinstance(v, Mapping)] if isinstance(value, (list, tuple)) else []


def methods(config: Mapping[str, Any]) -> list[str]:
  """The methods in the config's order: names, or mappings with a name."""
  given = config.get("methods") or config.get("method") or []
  given = given if isinstance(given, (list, tuple)) else [given]
  return [str(m.get("name") if isinstance(m, Mapping) else m) for m in given]


def given(looked: Mapping[str, Any]) -> dict[str, str]:
  """What a teacher that was made elsewhere said of the clean hold-out; {} where none was given."""
  accuracy, warnings = looked.get("accuracy"), looked.get("warnings") or []
  if not isinstance(accuracy, (int, float)):
    return {}
  mean, std = looked.get("normalisation") or ([], [])
  pixels = f"mean {words(mean)}; std {words(std)} ({words(looked.get('normalisation_source'))})"
  return {
    "Network": words(looked.get("network")),
    "Pixels": pixels,
    "First look": f"{percent(accuracy)} of {words(looked.get('holdout'))} clean hold-out images are"
    " right, which it may have been trained on.",
  } | ({"Doubts": " ".join(map(str, warnings))} if warnings else {})


def phase(given: Mapping[str, Any]) -> dict[str, str]:
  """A phase of the manifest as a line of a table."""
  shown = {key: given.get(key) for key in ("method", "name", "seed", "teacher", "steps")}
  line = {key: NOT_MEASURED if value is None else words(value) for key, value in shown.items()}
  return line | {key: amount(given.get(key)) for key in ("seconds", "images_per_second")}


def amount(value: Any) -> str:
  return f"{value:,.1f}" if isinstance(value, (int, float)) else NOT_MEASURED


def words(value: Any) -> str:
  """A manifest's entry on one line."""
  if value is None or value == "" or value == [] or value == {}:
    return "unknown"
  if isinstance(value, Mapping):
    return ", ".join(f"{key} {words(item)}" for key, item in value.items())
  if isinstance(value, (list, tuple)):
    return ", ".join(words(item) for item in value)
  return str(value)
