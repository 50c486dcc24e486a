"""The generated reference is whole: every key of the config, each with a word on what it is."""

import ast
import importlib
import pathlib

import pytest

from docs import reference
from rkd_jax import config, lookup, recipes

ROOT = pathlib.Path(__file__).parents[2]


def test_every_key_is_there_once():
  found = [field.key for field in reference.fields()]
  assert len(found) == len(set(found))
  for key in config.flatten(config.default().to_dict()):
    if key.startswith("config.method.rkd."):
      continue  # a composition: its keys are those of what it is made of
    own, part, *rest = key.split(".")
    shared = f"{own}.<section>.{'.'.join(rest)}"
    assert key in found or (part in reference.SECTIONS and shared in found), key


@pytest.mark.parametrize("field", reference.fields(), ids=lambda field: field.key)
def test_every_key_says_what_it_is(field):
  assert len(field.text) > 3, "a comment beside it in config.py, or a line under Attributes:"


@pytest.mark.parametrize("name", recipes.names())
def test_a_description_is_of_a_field_that_is_there(name):
  part, recipe = reference.method_class(name), recipes.RECIPES.get(name)
  said = [reference.of_class(part)] if part else []
  said += [reference.described(recipe.__doc__)] if recipe else []
  for field in [field for found in said for field in found]:
    assert field in recipes.fields(name) or field == "target", field


def test_comments_beside_above_and_within():
  source = """
def default():
  config = ConfigDict()
  # of the run
  config.seeds = (0, 1)
  config.data = ConfigDict(  # of the data
    {
      "name": "digits",  # or another
      "sizes": {"test": 0.2},
    }
  )
  config.teacher = section(
    "net",
    poison=0.1,  # a share
  )
"""
  assert [path for path, _ in reference.entries(ast.parse(source))] == [
    *[("seeds",), ("data",), ("data", "name"), ("data", "sizes"), ("data", "sizes", "test")],
    *[("teacher",), ("teacher", "poison")],
  ]
  assert reference.comments_of(source) == {
    ("seeds",): "of the run",
    ("data",): "of the data",
    ("data", "name"): "or another",
    ("teacher", "poison"): "a share",
  }


def test_descriptions_of_a_docstring():
  doc = """Does something: well.

  Attributes:
    size: of it,
      in pixels.
    a, b: both.

  Returns:
    nothing: at all.
  """
  assert reference.described(doc) == {"size": "of it, in pixels.", "a": "both.", "b": "both."}


def test_methods_are_in_the_groups_that_their_code_says():
  groups = {name: reference.group(name) for name in recipes.names()}
  assert set(groups.values()) == set(reference.GROUPS)
  assert groups["kd"] == groups["none"] == "Distillation"
  assert groups["agreement"] == "Around another method"
  assert groups["nad"] == "Repairs of the teacher"
  assert groups["adba"] == "Attacks" and groups["detox"] == "Phases of other methods"


def test_text_stays_text():
  assert reference.escaped("a|b *c* `d|e_f` g_h") == r"a\|b \*c\* `d\|e_f` g\_h"


def test_what_is_kept_in_a_page_is_what_would_be_generated():
  kept = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
  wanted = f"<!-- generated: metrics -->\n{reference.metrics_page()}\n<!-- /generated -->"
  assert wanted in kept, f"docs/concepts.md lacks or has an older form of:\n{wanted}"
  filled = reference.fill(kept)
  assert reference.metrics_page() in filled and "generated -->" not in filled


def test_pages_name_every_part():
  page = reference.fill("<!-- generated: config methods -->\n<!-- generated: config triggers -->")
  for name in recipes.names():
    assert f"{{ #method-{name} }}" in page
  for name in lookup.names("backdoors"):
    assert f"{{ #trigger-{name} }}" in page
  page = reference.fill("<!-- generated: config networks -->")
  for name in lookup.names("models"):
    assert f"{{ #network-{name} }}" in page


@pytest.mark.parametrize("name", reference.command_names())
def test_every_command_has_help(name):
  assert importlib.import_module(f"rkd_jax.commands.{name}").__doc__
  assert f"python -m rkd_jax.commands.{name}" in reference.help_of(name)
