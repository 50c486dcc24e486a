"""What the documentation says is so: examples run, commands parse, links lead somewhere.

The tutorial has a test of its own, `test_tutorial.py`; the built site `test_site.py`.
"""

import gzip
import importlib.util
import pathlib
import re
import shlex
import sys
import tomllib
import urllib.parse
from unittest import mock

import numpy as np
import pytest
import yaml
from absl import flags
from ml_collections import ConfigDict, config_flags

import rkd_jax
from docs import reference
from rkd_jax import backdoors, config, experiment, methods, models, recipes
from rkd_jax.backdoors import plans
from rkd_jax.backdoors.badnets import Backdoor as Badnets
from rkd_jax.commands import table
from rkd_jax.data import sources
from rkd_jax.errors import UserError
from rkd_jax.reporting import results
from rkd_jax.setup import make_method

# ml_collections loads config files in a way that Python is going to drop
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
ROOT = pathlib.Path(__file__).parents[2]
DOCUMENTS = [
  *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "launch/README.md"),
  *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")),
  *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "results").glob("*/README.md")),
]
EXAMPLES = {
  "docs/adding-a-method.md": ["rkd_jax/methods/confident.py", "my_package/steady.py"],
  "docs/adding-a-trigger.md": ["rkd_jax/backdoors/stripes.py"],
  "docs/adding-an-architecture.md": ["rkd_jax/models/convnet.py"],
  "docs/adding-a-dataset.md": ["rkd_jax/data/sources.py"],
}
TOOLS = ("ruff", "pyright", "pre-commit", "mkdocs", "chromium")


def text(document: str) -> str:
  return (ROOT / document).read_text(encoding="utf-8")


def prose(document: str) -> str:
  """The text without its fenced blocks, with what is generated in it."""
  return re.sub(r"^```.*?^```$", "", reference.fill(text(document)), flags=re.DOTALL | re.MULTILINE)


def blocks(document: str, language: str) -> list[str]:
  """The fenced blocks of a language."""
  return re.findall(rf"^```{language}\n(.*?)^```$", text(document), re.DOTALL | re.MULTILINE)


def examples() -> dict[str, str]:
  """{path: code} of the blocks that begin with a comment that names their file."""
  found = {}
  for document in EXAMPLES:
    for block in blocks(document, "python"):
      if named := re.match(r"# (\S+\.py)\n", block):
        found[named[1]] = block
  return found


@pytest.fixture
def written(tmp_path, monkeypatch):
  """The examples as files: in folders of the package's own, and as a package of the user's."""
  before = set(sys.modules)
  for path, code in examples().items():
    if path != "rkd_jax/data/sources.py":
      (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
      (tmp_path / path).write_text(code, encoding="utf-8")
  for package in (methods, backdoors, models):
    folder = tmp_path / package.__name__.replace(".", "/")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
  monkeypatch.syspath_prepend(tmp_path)
  yield tmp_path
  for name in set(sys.modules) - before:
    if name.endswith((".confident", ".stripes", ".convnet")) or name.startswith("my_package"):
      del sys.modules[name]


def get_config(file: str, *arguments: str) -> ConfigDict:
  """A config as the command line makes it."""
  values = flags.FlagValues()
  config_flags.DEFINE_config_file("config", None, "", flag_values=values, lock_config=True)
  flags.DEFINE_string("workdir", None, "", flag_values=values)
  words = ["main", f"--config={ROOT / file}", *arguments]
  with mock.patch.object(sys, "argv", words):  # where config_flags looks for overrides
    assert values(words) == ["main"]
  found = values["config"].value
  config.normalise(found)
  return found


def commands() -> list[tuple[str, list[str]]]:
  """(document, words) of each command line in the documents' bash blocks, and within lines."""
  found = []
  for document in DOCUMENTS:
    if document == "docs/tutorial.md":
      continue  # run as they stand, by test_tutorial.py
    inline = re.findall(r"`((?:python|pip|rkd|mkdocs) [^`]+)`", prose(document))
    for block in [*blocks(document, "bash"), *inline]:
      for line in block.splitlines():
        words = shlex.split(line, comments=True)
        while "&&" in words:
          at = words.index("&&")
          found.append((document, words[:at]))
          words = words[at + 1 :]
        found += [(document, words)] if words else []
  return found


def test_the_examples_are_there_and_short():
  assert list(examples()) == [path for paths in EXAMPLES.values() for path in paths]
  for path, code in examples().items():
    assert len(code.splitlines()) <= 55, path
  assert len(examples()["rkd_jax/methods/confident.py"].splitlines()) <= 50


@pytest.mark.slow
def test_the_examples_run(written):
  asked = get_config(
    "configs/quickstart.py:smoke",
    "--config.methods=none,kd,confident,my_package.steady",
    "--config.method.confident.sure=0.2",
    "--config.backdoor=stripes",
    "--config.teacher.network=convnet-8",
    "--config.student.network=convnet-4",
  )
  asked.clean_teacher_seeds, asked.all_labels_control = 0, False
  for section in (asked.teacher, asked.student, asked.labelled):
    section.steps = 2
  asked.data.test, asked.data.holdout = 40.0, 40.0
  page = experiment.run(asked, written / "run", "docs", quiet=True)
  assert page.exists()
  _, cells = results.read(page.with_name("results.json"))
  for method in ("none", "kd", "confident", "my_package.steady"):
    (asr,) = results.select(cells, method=method, network="student", metric="asr")
    assert asr.n == 36 and asr.backdoor == "stripes"
  (kept,) = results.select(cells, metric="kept")
  assert kept.method == "my_package.steady" and 0 < kept.count <= kept.n
  assert table.main([str(written / "run")]) == 0


def test_a_module_of_ones_own_takes_its_fields_from_a_config_file(written):
  (code,) = [b for b in blocks("docs/adding-a-method.md", "python") if b.startswith("config.")]
  made = config.default()
  exec(code, {"config": made})
  config.check(made)
  method = make_method(recipes.specs(made)["steady"])
  assert (method.blends, type(method.base).__module__) == (8, "rkd_jax.methods.kd")


def idx(*sizes: int, content: np.ndarray) -> bytes:
  """An array as a gzipped idx file."""
  head = bytes([0, 0, 8, len(sizes)]) + np.array(sizes, ">i4").tobytes()
  return gzip.compress(head + content.astype(np.uint8).tobytes())


def test_the_example_of_a_data_set_loads(tmp_path, monkeypatch):
  monkeypatch.setattr(sources, "SOURCES", dict(sources.SOURCES))
  exec(examples()["rkd_jax/data/sources.py"], dict(vars(sources)))
  for name, size in (("train", 40), ("t10k", 8)):
    images, labels = np.arange(size * 64), np.arange(size) % 4
    folder = tmp_path / "shapes"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(idx(size, 8, 8, content=images))
    (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(idx(size, content=labels))
  loaded = sources.load("idx:shapes", str(tmp_path), 0, 4, 0)
  assert (len(loaded.train), loaded.classes, loaded.image_shape) == (36, 4, (8, 8, 1))
  assert loaded.test.images[1, 7, 7, 0] == 127 and loaded.test.labels.tolist() == [0, 1, 2, 3] * 2
  with pytest.raises(UserError, match=r"needs .*none"):
    sources.load("idx:none", str(tmp_path), 0, 4, 0)


def test_the_example_of_a_plan_is_exact(monkeypatch):
  monkeypatch.setattr(plans, "PLANS", dict(plans.PLANS))
  (code,) = [b for b in blocks("docs/adding-a-trigger.md", "python") if b.startswith("def ")]
  exec(code, dict(vars(plans)))
  kinds = plans.plan("oldest", Badnets(), 0, np.arange(10), 0.3)
  assert kinds.tolist() == [1, 1, 1, *[0] * 7] and kinds.dtype == np.int8


def test_a_label_of_ones_own_is_a_method_with_other_fields():
  (code,) = [b for b in blocks("docs/config.md", "python") if "patient" in b]
  made = config.default()
  exec(code, {"config": made})
  config.check(made)
  assert recipes.specs(made)["patient"]["rounds"] == 4


def anchors(document: pathlib.Path) -> list[str]:
  """What the headings of a page are linked as."""
  page = prose(str(document.relative_to(ROOT)))
  slugs = []
  for heading in re.findall(r"^#+ (.*)$", page, re.MULTILINE):
    named = re.search(r"{ #(\S+) }$", heading)
    slugs += [named[1] if named else re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")]
  return slugs


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files_and_headings(document):
  for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
    if ":" in target:
      address = urllib.parse.urlsplit(target)
      assert address.scheme == "https" and re.fullmatch(r"[\w-]+(\.[\w-]+)+", address.netloc), (
        target
      )
      continue
    path, _, anchor = target.partition("#")
    file = (ROOT / document).parent / path if path else ROOT / document
    assert file.resolve().is_relative_to(ROOT) and file.exists(), target
    assert not anchor or anchor in anchors(file.resolve()), target


def test_no_two_headings_of_a_page_have_one_anchor():
  for document in DOCUMENTS:
    found = anchors(ROOT / document)
    assert document == "CHANGELOG.md" or len(found) == len(set(found)), document


@pytest.mark.parametrize("document", DOCUMENTS)
def test_paths_in_the_text_exist(document):
  examples_of_ours = [path for paths in EXAMPLES.values() for path in paths]
  for path in re.findall(
    r"`((?:rkd_jax|configs|tests|docs|launch|results|benchmarks|\.ci)/[\w./-]*)`", text(document)
  ):
    assert path in examples_of_ours or (ROOT / path).exists(), path


@pytest.mark.parametrize("document", DOCUMENTS)
def test_keys_of_the_config_exist(document, written):
  known = config.flatten(config.default().to_dict())
  for key in re.findall(r"--(config\.[a-z_0-9.]+[a-z_0-9])", text(document)):
    assert key in known, key
  parts = {".".join(key.split(".")[:n]) for key in known for n in range(2, 8)}
  for key in re.findall(r"`(config\.[a-z_.]+)`", prose(document)):
    assert key in parts or key == "config.json", key


@pytest.mark.parametrize("document, words", commands())
def test_command_lines_are_right(document, words, written):
  if words[0] in ("python", "rkd") and words[1:]:
    module = words[2] if words[1] == "-m" else None
    script = words[0] == "rkd" or (ROOT / words[1]).exists()
    assert importlib.util.find_spec(module) if module else script, words
    if "--config" in words:
      at = words.index("--config")
      config.check(get_config(words[at + 1], *words[at + 2 :]))
  elif words[:2] == ["pip", "install"]:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = re.findall(r"\.\[(\w+)\]", " ".join(words))
    assert set(asked) <= set(extras["optional-dependencies"])
  elif "/" in words[0]:
    assert (ROOT / words[0]).exists()
  else:
    assert words[0] in TOOLS, words


def test_the_readme_begins_with_the_two_commands():
  found = [" ".join(words) for document, words in commands() if document == "README.md"]
  assert found[:4] == [
    "pip install -e .",
    "python -m rkd_jax.main --config configs/quickstart.py",
    "pip install -e .[test]",
    "python -m pytest",
  ]


def test_the_readme_has_a_place_for_its_table(tmp_path):
  copy = tmp_path / "README.md"
  copy.write_text(text("README.md"), encoding="utf-8")
  table.insert(copy, "quickstart", "| here |")
  assert "<!-- table:quickstart -->\n| here |\n<!-- /table -->" in copy.read_text(encoding="utf-8")


CONFIGS = [p for p in (ROOT / "configs").glob("*.py") if "def get_config(" in p.read_text()]


@pytest.mark.parametrize("file", sorted(path.name for path in CONFIGS))
def test_configs_say_how_they_are_run_and_pass_the_checks(file):
  config.check(get_config(f"configs/{file}"))
  assert f"python -m rkd_jax.main --config configs/{file}" in text(f"configs/{file}")


def test_one_version():
  project = tomllib.loads(text("pyproject.toml"))["project"]
  citation = yaml.safe_load(text("CITATION.cff"))
  assert project["version"] == rkd_jax.__version__ == citation["version"]
  assert project["license"] == citation["license"] == "Apache-2.0"
  assert "Version 2.0, January 2004" in text("LICENSE")
