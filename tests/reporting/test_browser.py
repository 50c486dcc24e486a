"""The pages in a real browser: nothing fetched, nothing wider than the window, print, keyboard."""

import io
import itertools
import pathlib
import shutil
import unicodedata

import browser
import pytest
from test_report import full, page, student

from rkd_jax.reporting import comparison, report

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(browser.FOUND is None, reason=browser.MISSING),
]
QUICKSTART = pathlib.Path(__file__).parents[2] / "results" / "quickstart"
LONG = "a_class_or_method_whose_name_does_not_end_" * 2
# what sticks out of the window, but for what scrolls in a box of its own
WIDE = """[...document.querySelectorAll("body *")].filter(e => !e.closest(".scroll") &&
  e.getBoundingClientRect().right > innerWidth + 1 && !e.closest("svg")).map(e => e.outerHTML)"""
LEVELS = '[...document.querySelectorAll("h1, h2, h3")].map(h => +h.tagName[1])'
UNNAMED = """[...document.querySelectorAll("svg:not([aria-label]):not([aria-hidden])"),
  ...document.querySelectorAll("th:not([scope])"),
  ...document.querySelectorAll("[role=table]:not([aria-label])"),
  ...[...document.querySelectorAll("img")].filter(e => !e.alt)].map(e => e.outerHTML)"""
IDS = '[...document.querySelectorAll("[id]")].map(e => e.id)'
MEANT = """[...document.querySelectorAll("[aria-describedby]")].map(
  e => e.getAttribute("aria-describedby"))"""
LINKED = """[...document.querySelectorAll("a")].map(a => a.getAttribute("href").slice(1))"""
FOCUS = """(() => { const e = document.activeElement, s = getComputedStyle(e);
  return {text: e.textContent, tip: getComputedStyle(e, "::after").content,
  outline: s.outlineStyle, top: e.getBoundingClientRect().top} })()"""


@pytest.fixture(scope="module")
def tab():
  with browser.started() as found:
    yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
  """{name: path} of a run with everything, of one with long names, of old files, of two settings,
  and of a comparison."""
  root, made = tmp_path_factory.mktemp("pages"), {}
  for name, evil in (("everything", "agreement"), ("long", LONG)):
    (root / name).mkdir()
    full(root / name, evil)
    made[name] = root / name / "report.html"
  shutil.copytree(QUICKSTART, root / "quickstart")
  made["quickstart"] = report.write(root / "quickstart")
  (root / "two").mkdir()
  cells = student("kd", 0.9) + student("kd", 0.5, backdoor="blended") + student("rkd", 0.0)
  page(root / "two", cells)
  made["two"] = root / "two" / "report.html"
  runs = [root / name for name in ("everything", "long", "quickstart")]
  made["comparison"] = comparison.write(runs, root / "comparison.html")
  return made


NAMES = ("everything", "long", "quickstart", "two", "comparison")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", NAMES)
def test_it_fits_asks_for_nothing_and_does_not_complain(tab, pages, name, width, dark):
  tab.open(pages[name], width, dark)
  assert tab.said == []
  assert [a for a in tab.asked if not a.startswith("data:")] == [pages[name].as_uri()]
  assert tab.ask("innerWidth") == width
  assert tab.ask("document.documentElement.scrollWidth") <= width
  assert tab.ask(WIDE) == []
  assert (
    tab.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
  ) != dark
  tab.ask("document.querySelectorAll('details').forEach(d => d.open = true)")
  assert tab.ask("document.documentElement.scrollWidth") <= width


def paper(tab, path):
  pypdf = pytest.importorskip("pypdf")
  tab.open(path, 1280, dark=True)  # and yet the paper is white
  pages = pypdf.PdfReader(io.BytesIO(tab.paper())).pages
  text = unicodedata.normalize("NFKC", " ".join(page.extract_text() for page in pages))
  return len(pages), " ".join(text.split())  # without ligatures


def test_on_paper_everything_is_open(tab, pages):
  count, text = paper(tab, pages["quickstart"])
  assert 2 <= count <= 15
  assert "Removed by rkd" in text
  assert "rkd removed the backdoor: ASR" in text
  assert "Every seed, with 95" in text and "Wilson" in text
  assert "teacher.epochs = 8" in text  # within closed details
  assert "Feature variance by stage" in text


def test_the_comparison_on_paper(tab, pages):
  count, text = paper(tab, pages["comparison"])
  assert count >= 1 and "3 runs compared" in text and "Settings that differ" in text


@pytest.mark.parametrize("name", NAMES)
def test_structure_for_who_does_not_see_it(tab, pages, name):
  tab.open(pages[name], 1280)
  levels = tab.ask(LEVELS)
  assert levels[0] == 1 and levels.count(1) == 1
  assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
  assert tab.ask(UNNAMED) == []
  ids = tab.ask(IDS)
  assert len(ids) == len(set(ids))
  assert set(tab.ask(MEANT)) <= set(ids) and set(tab.ask(LINKED)) <= set(ids)


def test_by_keyboard_the_first_stop_skips_and_terms_explain_themselves(tab, pages):
  tab.open(pages["everything"], 1280)
  tab.press("Tab", 9)
  skip = tab.ask(FOCUS)
  assert skip["text"] == "Skip to the numbers" and skip["top"] >= 0
  assert skip["outline"] == "solid"
  tab.press("Tab", 9)
  term = tab.ask(FOCUS)
  assert term["text"] == "ASR" and term["tip"].startswith('"Attack success rate')
  assert term["outline"] == "solid"


@pytest.mark.parametrize("width", [390, 1280])
def test_an_open_explanation_does_not_widen_the_page(tab, pages, width):
  tab.open(pages["everything"], width)
  for number in range(tab.ask("document.querySelectorAll('.term').length")):
    tab.ask(f"document.querySelectorAll('.term')[{number}].focus()")
    assert tab.ask("document.documentElement.scrollWidth") <= width


def test_a_phone_gets_the_terms_where_it_hides_the_heads(tab, pages):
  tab.open(pages["everything"], 390)
  shown = "getComputedStyle(document.querySelector('{}')).display"
  assert tab.ask(shown.format(".key")) == "block"
  assert tab.ask(shown.format(".stack thead")) == "none"
  tab.open(pages["everything"], 1280)
  assert tab.ask(shown.format(".key")) == "none"


def test_a_page_is_small(pages):
  assert all(path.stat().st_size < 1_500_000 for path in pages.values())
