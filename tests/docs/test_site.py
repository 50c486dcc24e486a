"""The site is built strictly, and asks nothing of the network."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

pytest.importorskip("mkdocs")
pytest.importorskip("material")
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
  folder = tmp_path_factory.mktemp("site")
  build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
  environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # of its theme, about its own future
  subprocess.run(build, cwd=ROOT, env=environment, check=True, timeout=300)
  return folder


@pytest.mark.slow
def test_every_page_is_built_and_filled(site):
  for page in [*(ROOT / "docs").glob("*.md"), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]:
    built = (site / f"{page.stem}.html").read_text(encoding="utf-8")
    assert "generated:" not in built, page
  assert not list(site.rglob("*.py"))


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(site):
  for page in site.rglob("*.html"):
    built = page.read_text(encoding="utf-8")
    loaded = re.findall(r"<(?:script|img|iframe)[^>]*src=[\"']?([^\"' >]+)", built)
    loaded += re.findall(r"<link[^>]*href=[\"']?([^\"' >]+)", built)
    assert not [address for address in loaded if "//" in address], page
  for sheet in site.rglob("*.css"):
    assert not re.findall(r"url\([\"']?https?:", sheet.read_text(encoding="utf-8")), sheet


@pytest.mark.slow
def test_links_between_pages_lead_somewhere(site):
  pages = {page: page.read_text(encoding="utf-8") for page in site.glob("*.html")}
  ids = {page: set(re.findall(r" id=[\"']?([^\"' >]+)", built)) for page, built in pages.items()}
  for page, built in pages.items():
    for target in re.findall(r"<a [^>]*href=[\"']?([^\"' >]+)", built):
      if ":" in target or page.name == "404.html":
        continue
      path, _, anchor = target.partition("#")
      other = (page.parent / path).resolve() if path not in ("", ".") else page
      assert other.exists(), (page.name, target)
      assert not anchor or anchor.startswith("__") or anchor in ids[other], (page.name, target)
