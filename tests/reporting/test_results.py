"""results.json and the files under it."""

import dataclasses
import errno
import json
import os

import numpy as np
import pytest

from rkd_jax.errors import UserError
from rkd_jax.evaluation.metrics import Proportion
from rkd_jax.reporting import files, results
from rkd_jax.reporting.results import Cell


def cell(metric="asr", value: float | None = 0.5, **fields):
  return Cell(metric=metric, value=value, network="student", method="kd", **fields)


def test_round_trip(tmp_path):
  path = tmp_path / "results.json"
  cells = [
    Cell(metric="acc", network="student", seed=3, **Proportion(3, 4).fields()),
    Cell(metric="asr", network="student", seed=3, value=None),
  ]
  results.write(path, {"config_name": "x"}, cells)
  manifest, again = results.read(path)
  assert manifest == {"config_name": "x"} and again == cells
  assert json.loads(path.read_text())["cells"][1]["value"] is None


def test_cells_that_differ_only_in_their_numbers_are_refused(tmp_path):
  with pytest.raises(ValueError, match="two cells agree"):
    results.write(tmp_path / "r.json", {}, [cell(value=0.1), cell(value=0.2, n=3)])
  assert not (tmp_path / "r.json").exists()
  results.write(tmp_path / "r.json", {}, [cell(seed=0), cell(seed=1), cell(seed=1, oracle=True)])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("nan"), "0.5"])
def test_what_is_no_number_is_refused(value):
  with pytest.raises(ValueError, match="missing value is None"):
    cell(value=value)
  with pytest.raises(ValueError, match="missing value is None"):
    cell(ci95=(0.0, value))


def test_unknown_metric_names_the_nearest():
  with pytest.raises(ValueError, match="'transfer_ratio'"):
    cell(metric="transfer_rate")


@pytest.mark.parametrize(
  "change, match",
  [
    (lambda d: d | {"schema": 2}, "schema 2"),
    (lambda d: [d], "schema 'list'"),
    (lambda d: d | {"cells": None}, '"cells"'),
    (lambda d: d | {"cells": [d["cells"][0] | {"asr": 1}]}, "'asr' is unknown"),
    (lambda d: d | {"cells": [{"metric": "asr"}]}, "is missing"),
    (lambda d: d | {"cells": [d["cells"][0] | {"metric": "best"}]}, "'best'"),
    (lambda d: d | {"cells": [d["cells"][0] | {"ci95": 1}]}, "does not fit"),
    (lambda d: d | {"cells": d["cells"] * 2}, "two cells agree"),
  ],
)
def test_files_that_are_not_ours_are_refused(tmp_path, change, match):
  path = tmp_path / "results.json"
  results.write(path, {}, [cell()])
  path.write_text(json.dumps(change(json.loads(path.read_text()))))
  with pytest.raises(UserError, match=match) as error:
    results.read(path)
  assert str(path) in str(error.value)


@pytest.mark.parametrize("text", ['{"schema": 1, "cel', '{"value": NaN}', "\xff"])
def test_broken_json_is_a_user_error(tmp_path, text):
  path = tmp_path / "results.json"
  path.write_bytes(text.encode("latin-1"))
  with pytest.raises(UserError, match="broken"):
    files.read_json(path)


def test_missing_json_is_a_user_error(tmp_path):
  with pytest.raises(UserError, match="no file"):
    files.read_json(tmp_path / "results.json")


def test_select():
  cells = [cell(seed=0), cell(seed=1), cell(seed=1, teacher="clean"), cell("acc", seed=1)]
  assert results.select(cells, seed=1, metric="asr", teacher=None) == [cells[1]]
  with pytest.raises(ValueError, match="'seed'"):
    results.select(cells, sed=1)


def test_over_seeds_takes_the_worst_by_direction():
  asr = results.over_seeds([cell(value=0.2, seed=2), cell(value=0.4, seed=1)])
  assert asr["points"] == [0.4, 0.2] and asr["worst"] == 0.4
  assert asr["mean"] == pytest.approx(0.3) and asr["interval"] == (0.0, 1.0)
  acc = results.over_seeds([cell("acc", 0.9, seed=1), cell("acc", 0.8, seed=2)])
  assert acc["worst"] == 0.8
  one = results.over_seeds([cell(value=0.2)])
  assert (one["mean"], one["interval"]) == (0.2, None)


def test_an_unknown_seed_might_be_the_worst():
  summary = results.over_seeds([cell(value=0.0, seed=0), cell(value=None, seed=1)])
  assert summary == {"mean": None, "worst": None, "points": [0.0, None], "interval": None}


def test_over_seeds_refuses_mixed_metrics():
  with pytest.raises(ValueError, match="acc"):
    results.over_seeds([cell("acc"), cell("asr")])
  with pytest.raises(ValueError, match="none"):
    results.over_seeds([])


def test_fields_are_those_of_the_design():
  names = """dataset labels threat contamination network method base teacher backdoor attack norm
    eps metric count n value ci95 unit seed teacher_seed variant at oracle"""
  assert list(results.FIELDS) == names.split()
  with pytest.raises(dataclasses.FrozenInstanceError):
    cell().value = 1.0  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
  "code, words",
  [
    (errno.ENOSPC, "Free some space"),
    (errno.EROFS, "read-only"),
    (errno.EACCES, "may not write"),
    (errno.EIO, "Look at that folder"),
  ],
)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch, call, code, words):
  path = tmp_path / "report.html"
  files.atomic_write(path, "old")

  def fail(*_):
    raise OSError(code, os.strerror(code))

  monkeypatch.setattr(os, call, fail)
  with pytest.raises(UserError, match=words) as error:
    files.atomic_write(path, "new")
  assert str(path) in str(error.value) and os.strerror(code) in str(error.value)
  assert path.read_text() == "old" and os.listdir(tmp_path) == ["report.html"]


def test_atomic_write_makes_folders_and_takes_bytes(tmp_path):
  files.atomic_write(tmp_path / "a" / "b", b"\x00")
  assert (tmp_path / "a" / "b").read_bytes() == b"\x00"
  with pytest.raises(UserError, match="Cannot write"):
    files.atomic_write(tmp_path / "a" / "b" / "c", "a file is no folder")


def test_json_of_what_it_is_not_is_refused(tmp_path):
  with pytest.raises(ValueError, match="Out of range"):
    files.write_json(tmp_path / "x", {"loss": float("nan")})
  with pytest.raises(TypeError, match="object"):
    files.write_json(tmp_path / "x", {"loss": object()})
  files.write_json(tmp_path / "x", {"path": tmp_path, "n": np.int32(3)})
  assert files.read_json(tmp_path / "x") == {"path": str(tmp_path), "n": 3}
