"""What MkDocs does with the pages beside copying them: see `mkdocs.yml`.

Fills in the reference, takes pages of the repository's root into the site, and leads their links,
which are relative to where the file lies in the repository, to where it lies in the site.
"""

import os
import pathlib
import re
from typing import Any

import reference  # MkDocs looks beside this file
from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parents[1]
INCLUDED = ("CONTRIBUTING.md", "CHANGELOG.md")  # pages of the site that lie above docs/


def on_files(files: Any, config: Any) -> Any:
  """Adds the pages of the root."""
  for name in INCLUDED:
    files.append(File.generated(config, name, content=(ROOT / name).read_text(encoding="utf-8")))
  return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
  """Links, then what is generated (which has none)."""
  own = page.file.src_uri
  folder = ROOT if own in INCLUDED else (ROOT / "docs" / own).parent
  return reference.fill(relinked(markdown, folder))


def relinked(markdown: str, folder: pathlib.Path) -> str:
  """Links of a file in `folder`, for the site. One to a file that is no page becomes its text."""

  def link(found: re.Match) -> str:
    mark, text, target, anchor = found.groups()
    path = pathlib.Path(os.path.normpath(folder / target))
    if path.is_relative_to(ROOT / "docs"):
      return f"{mark}[{text}]({path.relative_to(ROOT / 'docs')}{anchor or ''})"
    name = str(path.relative_to(ROOT))
    return f"{mark}[{text}]({name}{anchor or ''})" if name in INCLUDED else text

  return re.sub(r"(!?)\[([^\]]*)\]\((?!\w+:)([^)\s#]+)(#[^)\s]*)?\)", link, markdown)
