"""What results/audit says follows from the statistics beside it."""

import importlib.util
import json
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FILES = sorted((ROOT / "results" / "audit").glob("*.json"))


@pytest.fixture(scope="module")
def benchmark():
  spec = importlib.util.spec_from_file_location("audit_benchmark", ROOT / "benchmarks" / "audit.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_counts_follow_from_the_statistics(benchmark, file):
  made = json.loads(file.read_text())
  assert made["counts"] == json.loads(json.dumps(benchmark.counts(made["networks"])))
  assert made["counts"]["references"] >= benchmark.SMALL


def test_there_is_something_to_count():
  assert FILES


def test_what_is_asked_for(benchmark):
  assert benchmark.many("badnets,adba:3", 10) == {"badnets": 10, "adba": 3}
  assert benchmark.many("", 10) == {}


def test_the_usual_rules(benchmark):
  sizes = {"patch": {"sizes": [1.0, 9, 10, 11, 10]}, "mmbd": {"nominal": 0.04}}
  assert benchmark.neural_cleanse(sizes) and benchmark.margins(sizes)
  even = {"patch": {"sizes": [9.0, 10, 11, 10, 10.5]}, "mmbd": {"nominal": None}}
  assert not benchmark.neural_cleanse(even) and not benchmark.margins(even)
