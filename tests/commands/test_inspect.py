"""The command that looks at a stranger's file: what it prints, and its status."""

import json
import pathlib
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from rkd_jax.commands import inspect
from rkd_jax.interop.summary import non_finite

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def model(tmp_path):
  arrays = {f"layer{i}": np.ones((2, 3), np.float32) for i in range(12)}
  arrays["odd\x1b[31m"] = np.array([np.nan, np.inf, 1.0])
  with open(tmp_path / "model.pth", "wb") as file:  # a path's suffix says nothing
    np.savez(file, **{name.replace("\x1b", "e"): array for name, array in arrays.items()})
  return str(tmp_path / "model.pth")


def test_a_readable_file(model, capsys):
  assert inspect.main([model]) == 0
  said = capsys.readouterr().out
  for part in ("npz", "sha256", "13 (12 float32, 1 float64)", "75 numbers", "2x3", "layer9"):
    assert part in said
  assert "2 in odde[31m" in said and "... and 3 more" in said and "layer11" not in said
  assert "verdict: readable" in said and "not recognised" in said and "not finite" in said
  assert inspect.main([model, "--all"]) == 0
  assert "layer11" in capsys.readouterr().out


def test_as_json(model, capsys):
  assert inspect.main([model, "--json"]) == 0
  found = json.loads(capsys.readouterr().out)
  assert found["kind"] == "npz" and found["count"] == 13 and found["verdict"] == "readable"
  assert found["non_finite"] == {"odde[31m": 2} and found["architecture"] is None
  assert {"name": "layer11", "dtype": "float32", "shape": [2, 3]} in found["tensors"]


def test_a_refused_file(tmp_path, capsys):
  path = tmp_path / "evil.pth"
  path.write_bytes(b"\x80\x02cposix\nsystem\nX\1\0\0\0x\x85R.")
  assert inspect.main([str(path)]) == 2
  assert "refused: " in (said := capsys.readouterr().err) and "posix.system at opcode 1" in said
  assert inspect.main([str(path), "--json"]) == 2
  found = json.loads(capsys.readouterr().out)
  assert found["verdict"] == "refused" and found["globals"] == ["posix.system"]


def test_usage(model, tmp_path, capsys):
  assert inspect.main([str(tmp_path / "missing")]) == 1
  assert "Cannot read" in capsys.readouterr().err
  for wrong in ([], [model, "--what"]):
    with pytest.raises(SystemExit) as caught:
      inspect.main(wrong)
    assert caught.value.code == 1
  assert inspect.main([model, "--sha256", "0"]) == 2


def test_it_needs_neither_jax_nor_torch(model):
  script = (
    "import sys; from rkd_jax.commands import inspect; status = inspect.main([sys.argv[1]])\n"
    "assert not {'jax', 'torch', 'flax', 'orbax'} & set(sys.modules), sorted(sys.modules)\n"
    "sys.exit(status)"
  )
  subprocess.run([sys.executable, "-c", script, model], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("dtype", ["float16", "float64", "complex64", "bfloat16", "float8_e5m2"])
def test_non_finite_numbers_are_counted_whatever_the_strides(dtype):
  array = np.zeros((300, 7, 1100), getattr(ml_dtypes, dtype, None) or dtype)
  assert non_finite(array) == 0
  array[5, 3, 7] = np.nan
  array[6, 2, 8] = np.inf
  assert non_finite(array) == non_finite(array.transpose(2, 0, 1)) == 2
  assert non_finite(np.broadcast_to(array[5, 3], (10**9, 1100))) == 10**9
  assert non_finite(np.ones(3, np.int8)) == non_finite(array[:0]) == 0
