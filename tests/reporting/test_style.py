"""Contrast, computed from the style sheet's variables as WCAG 2 says."""

import pathlib
import re

import pytest

import rkd_jax

SHEET = pathlib.Path(rkd_jax.__file__).parent / "reporting" / "style.css.jinja"
TEXT = ("ink", "soft", "link", "good", "bad", "open")
HEAT = [f"h{i}" for i in range(6)]
MARKS = [f"c{i}" for i in range(8)]


def themes():
  """{"light" | "dark": {variable: colour}}; dark changes some of light's."""
  blocks = re.findall(r":root \{(.*?)\}", SHEET.read_text(), re.DOTALL)
  light, dark = (dict(re.findall(r"--(\w+): (#\w+);", block)) for block in blocks[:2])
  return {"light": light, "dark": {**light, **dark}}


def luminance(colour):
  digits = colour[1:] if len(colour) == 7 else "".join(2 * d for d in colour[1:])
  channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
  linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
  return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a, b):
  high, low = sorted((luminance(a), luminance(b)), reverse=True)
  return (high + 0.05) / (low + 0.05)


def test_the_formula():
  assert contrast("#000", "#ffffff") == pytest.approx(21)
  assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_can_be_read(theme):
  colours = themes()[theme]
  pairs = [(name, "paper") for name in (*TEXT, *MARKS)]  # legends name what marks show
  pairs += [(name, "shade") for name in ("ink", "soft")]
  pairs += [("ink", name) for name in HEAT] + [("paper", "ink")]
  for front, back in pairs:
    assert contrast(colours[front], colours[back]) >= 4.5, (theme, front, back)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_marks_can_be_seen_and_heat_told_apart(theme):
  colours = themes()[theme]
  assert all(contrast(colours[name], colours["shade"]) >= 3 for name in MARKS)
  levels = [luminance(colours[name]) for name in HEAT]
  assert levels == sorted(levels, reverse=theme == "light") and len(set(levels)) == 6


def test_both_themes_name_the_same_colours():
  blocks = re.findall(r":root \{(.*?)\}", SHEET.read_text(), re.DOTALL)
  light, dark = (set(re.findall(r"--(\w+):", block)) for block in blocks[:2])
  assert light == dark
