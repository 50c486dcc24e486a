"""What is not known stays so; which networks a run or a phase has."""

import pathlib

import numpy as np
import pytest

from rkd_jax.errors import UserError
from rkd_jax.export import check, int8, ledger, subject
from rkd_jax.given import Given
from rkd_jax.reporting import exported, files

LABELS = np.array([0, 1, 2, 1])


def test_without_a_known_trigger_asr_and_ra_are_null():
  arrays = {"labels": LABELS, "goals": LABELS, "jax:clean": LABELS, "jax:triggered": LABELS}
  arrays |= {"export:clean": np.array([0, 1, 2, 2]), "export:triggered": LABELS}
  cells = {c.metric: c for c in ledger.counted(arrays, {"variant": "onnx-f32"}, "export")}
  assert (cells["acc"].count, cells["acc"].n) == (3, 4)
  assert cells["asr"].value is None and cells["ra"].value is None
  assert cells["fidelity"].value == 0.75 and cells["fidelity"].attack == "against JAX"


def test_images_that_fill_the_last_batch_count_in_nothing():
  batches = [np.zeros((2, 1, 1, 1), np.float32), np.ones((2, 1, 1, 1), np.float32)]
  here = lambda x: np.stack([x[:, 0, 0, 0], 1 - x[:, 0, 0, 0]], 1)  # noqa: E731
  calls = []

  def there(x):
    calls.append(1)
    return here(x) + (np.array([[0, 0], [0, 100]]) if len(calls) == 2 else 0)

  found = check.compare(here, there, batches, 3)
  assert found.here.tolist() == [1, 1, 0] and found.agreement == 1
  assert found.difference == 0 and found.largest == 1


def test_what_is_too_far_apart():
  said = np.zeros(4, np.int32)
  near = check.Compared(said, said, 0.001, 2.0)
  check.require("it", [near], 1e-3, 0.9)
  with pytest.raises(UserError, match=r"differ by 0\.0021"):
    check.require("it", [check.Compared(said, said, 0.0021, 2.0)], 1e-3, None)
  with pytest.raises(UserError, match=r"agrees with JAX on 75\.0%"):
    other = np.array([0, 0, 0, 1], np.int32)
    check.require("it", [check.Compared(said, other, 9.0, 2.0)], None, 0.9)


def test_a_vits_images_have_the_size_that_it_has_places_for(monkeypatch):
  places = {"params": {"place": np.zeros((1, 10, 64)), "head": {"bias": np.zeros(4)}}}
  monkeypatch.setattr(Given, "variables", lambda self: places)
  found = Given("runs/x/student-1", "vit-64-2-4", ((0.5,), (0.5,)), "0", "student", 4)
  made = subject._of_phase(found, (32, 32, 1), 0)
  assert made.network.image_shape == (12, 12, 1) and made.network.classes == 4
  headless = Given("runs/x/student-1", "resnet-8", ((0.5,), (0.5,)), "0", "student", None)
  monkeypatch.setattr(Given, "variables", lambda self: {"params": {}})
  with pytest.raises(UserError, match="how many classes"):
    subject._of_phase(headless, (32, 32, 1), 0)


def test_int8_needs_images_and_a_method_that_there_is():
  with pytest.raises(UserError, match="there are none"):
    int8.quantized(b"", np.zeros((0, 1, 4, 4), np.float32))
  with pytest.raises(UserError, match="choose one of minmax, entropy, percentile"):
    int8.quantized(b"", np.zeros((1, 1, 4, 4), np.float32), "best")


def test_records_that_are_none(tmp_path: pathlib.Path):
  assert exported.read(tmp_path) == [] and exported.section(tmp_path) is None
  for text in ("[]", '{"schema": 1, "exports": [1]}', '{"schema": 1, "exports": [{"name": "a"}]}'):
    (tmp_path / exported.FILE).write_text(text)
    with pytest.raises(UserError, match="Delete it and export again"):
      exported.read(tmp_path)


def test_a_record_takes_the_place_of_the_one_of_its_name(tmp_path):
  record = {"name": "a", "format": "onnx", "precision": "f32", "file": "a", "cells": [], "jax": []}
  record |= {"check": {}, "latency": []}
  ledger.add(tmp_path, [record])
  ledger.add(tmp_path, [{**record, "name": "b"}, {**record, "file": "c"}])
  assert [(r["name"], r["file"]) for r in exported.read(tmp_path)] == [("b", "a"), ("a", "c")]
  (shown, _) = exported.section(tmp_path)["lines"]
  assert shown["acc"] == "unknown" and shown["size"] == "–"
  assert files.read_json(tmp_path / exported.FILE)["sha256"]
