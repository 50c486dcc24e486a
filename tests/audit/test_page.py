"""What the report makes of an audit.json, whoever wrote it."""

import numpy as np
import pytest

from rkd_jax.errors import UserError
from rkd_jax.reporting import audit, report, results
from rkd_jax.reporting.files import write_json
from rkd_jax.reporting.verdict import Verdict

EVIL = "<img src=x onerror=alert(1)>"


def network(name="seed0/kd", word="nothing found", **fields):
  tests = {"patch": {"values": [-1.0, -2, -3], "sizes": [2.7, 7.4, 20.1], "rates": [1, 1, 1]}}
  tests["patch"] |= {"index": 4.2, "suspect": 1, "p": 0.048}
  tests["strip"] = {"values": [0.08], "share": 0.08, "index": 0.4, "suspect": None, "p": 0.5}
  made = {"name": name, "verdict": word, "sentence": "Why.", "doubts": [], "tests": tests}
  return made | fields


def folder(path, *networks, **fields):
  made = {"schema": 1, "alpha": 0.05, "complete": True, "networks": list(networks)}
  line = {"network": "flat", "method": "kd", "count": 20, "accuracy": [0.9, 0.95], "trained": {}}
  write_json(path / "audit.json", made | {"calibrations": [line]} | fields)
  return path


def test_nothing_without_a_file(tmp_path):
  assert audit.read(tmp_path, []) is None and audit.saw([], None) == []


def test_the_lines(tmp_path):
  found = audit.read(folder(tmp_path, network()), ["cat", "dog", "fox"])
  patch, strip = found["lines"]
  assert patch["suspect"] == "dog" and patch["size"] == "7.4 of 7.4" and patch["p"] == "0.048"
  assert strip["suspect"] == "–" and strip["size"].startswith("8.0")
  assert "flat (kd): 20 clean networks, students of clean teachers" in found["calibrations"][0]
  assert not found["partial"] and found["pictures"] == []


def test_the_suspected_class_is_drawn(tmp_path):
  (tmp_path / "audit").mkdir()
  arrays = {"patch/classes": np.array([0, 1]), "patch/mask": np.zeros((2, 4, 4, 1))}
  arrays |= {"patch/pattern": np.zeros((2, 4, 4, 3))}
  arrays |= {"l2/classes": np.array([2]), "l2/mask": np.ones((1, 4, 4, 1))}
  arrays |= {"l2/pattern": np.full((1, 4, 4, 3), -0.5)}
  np.savez(tmp_path / "audit" / "x.npz", **arrays)
  one = network(triggers="../../audit/x.npz")  # whatever it says, only the folder audit/ is read
  found = audit.read(folder(tmp_path, one), ["cat", "dog", "fox"])
  patch, l2 = found["pictures"][0]["kinds"]
  assert patch["title"] == "Smallest patch, to dog" and l2["title"].endswith("to fox")
  assert patch["image"].startswith("data:image/png;base64,") and "dog" in patch["alt"]


def test_what_is_broken_is_named_and_what_is_odd_is_shown_as_text(tmp_path):
  odd = network(EVIL, EVIL, tests={"patch": 3, EVIL: {"values": ["x", None]}}, doubts=EVIL)
  folder(tmp_path, odd, {}, alpha="x", calibrations=[{}, 5])
  results.write(tmp_path / "results.json", {}, [])
  text = report.write(tmp_path).read_text()
  assert EVIL not in text and "&lt;img" in text
  (tmp_path / "audit").mkdir()
  (tmp_path / "audit" / "x.npz").write_bytes(b"PK\x03\x04 no")
  folder(tmp_path, network(triggers="audit/x.npz"))
  with pytest.raises(UserError, match=r"x\.npz is broken"):
    report.write(tmp_path)
  (tmp_path / "audit.json").write_text("{")
  with pytest.raises(UserError, match=r"audit\.json"):
    report.write(tmp_path)


def test_an_unknown_verdict_says_what_the_audit_saw(tmp_path):
  found = audit.read(
    folder(tmp_path, network(), network("seed1/kd", "suspicious"), network("seed0/none")), []
  )
  given = [
    Verdict("kd", "unknown", "kd: unknown."),
    Verdict("rkd", "unknown", "rkd: unknown."),
    Verdict("none", "removed", "Removed."),
  ]
  kd, rkd, none = audit.saw(given, found)
  assert kd.outcome == "unknown"
  assert kd.sentence == "kd: unknown. The audit: nothing found / suspicious."
  assert rkd == given[1] and none == given[2]


def test_an_audit_that_was_interrupted_says_so(tmp_path):
  results.write(tmp_path / "results.json", {}, [])
  folder(tmp_path, network(), complete=False)
  text = report.write(tmp_path).read_text()
  assert "The audit was interrupted" in text and "says that nothing was found" in text
  assert 'href="#audit"' in text
