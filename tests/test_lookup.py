"""Parts are files: what is there is found, what is not is answered by what is."""

import importlib

import pytest

from rkd_jax import lookup
from rkd_jax.errors import UserError, nearest


@pytest.mark.parametrize("kind", lookup.KINDS)
def test_every_named_file_defines_its_part(kind):
  names = lookup.names(kind)
  assert names == sorted(names) and names
  for name in names:
    assert lookup.load(kind, name).__name__ == lookup.KINDS[kind][0]


def test_the_names_are_the_files():
  assert {"kd", "agreement", "supervised"} <= set(lookup.names("methods"))
  assert not {"base", "views"} & set(lookup.names("methods"))
  assert not {"base", "poison", "learned"} & set(lookup.names("backdoors"))


def test_a_wrong_name_is_answered_by_the_nearest_and_all():
  with pytest.raises(
    UserError, match=r"No method is called 'kdd'. Did you mean 'kd'\? There are: "
  ):
    lookup.load("methods", "kdd")
  with pytest.raises(UserError, match=r"No backdoor is called 'zzz'. There are: badnets"):
    lookup.load("backdoors", "zzz")


def test_a_file_added_at_run_time_is_found(tmp_path, monkeypatch):
  package = importlib.import_module("rkd_jax.methods")
  monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
  (tmp_path / "brand_new.py").write_text(
    "import dataclasses\nfrom rkd_jax.methods import kd\n\n"
    "@dataclasses.dataclass(frozen=True)\nclass Method(kd.Method):\n  twist: float = 0.5\n"
  )
  assert "brand_new" in lookup.names("methods")
  method = lookup.build("methods", "brand_new", {"twist": 2.0, "alpha": 0.1})
  assert (method.twist, method.alpha) == (2.0, 0.1)


def test_a_module_of_ones_own(tmp_path, monkeypatch):
  (tmp_path / "my_own_package").mkdir()
  (tmp_path / "my_own_package" / "trick.py").write_text("class Method: pass\nX = 1\n")
  monkeypatch.syspath_prepend(tmp_path)
  assert lookup.load("methods", "my_own_package.trick").__name__ == "Method"
  with pytest.raises(UserError, match="no class 'Backdoor'"):
    lookup.load("backdoors", "my_own_package.trick")
  with pytest.raises(UserError, match=r"Cannot import 'my_own_package.trik'.*Python module"):
    lookup.load("methods", "my_own_package.trik")


def test_wrong_fields():
  with pytest.raises(UserError, match=r"methods/kd has no field 'alhpa'. Did you mean 'alpha'\?"):
    lookup.build("methods", "kd", {"alhpa": 0.5})
  with pytest.raises(UserError, match="methods/agreement cannot be made"):
    lookup.build("methods", "agreement", {})  # has no base
  with pytest.raises(UserError, match="has no field 'parent'"):
    lookup.build("models", "wideresnet", {"parent": None})


def test_nearest_of_nothing():
  assert nearest("x", []) == "There are: none."
