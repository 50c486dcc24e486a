"""What a runner does beside its phases."""

import jax
import pytest

from rkd_jax import runner


@pytest.mark.parametrize(("most", "left"), [(10**6, 1), (0, 0)])
def test_compiled_programs_are_forgotten_where_there_are_too_many(monkeypatch, most, left):
  @jax.jit
  def program(x):
    return x + 1

  program(1.0)
  monkeypatch.setattr(runner, "MAPPINGS", most)
  runner.make_room()
  assert program._cache_size() == left
  assert program(2.0) == 3.0


def test_what_earlier_sittings_took_counts(tmp_path, monkeypatch):
  clock = iter((0.0, 5.0, 100.0, 102.0, 200.0, 201.0))
  monkeypatch.setattr(runner.time, "monotonic", lambda: next(clock))
  path = tmp_path / "spent.json"
  runner.Spent(path, 0).save()  # 5 s, then it is stopped
  assert runner.Spent(path, 40).seconds() == 7.0
  assert runner.Spent(path, 0).seconds() == 1.0  # its checkpoint was lost: begun anew


def test_peak_memory_is_in_bytes():
  peak = runner.peak_memory()
  assert peak["host"] > 50e6 and (peak["device"] is None or peak["device"] >= 0)
