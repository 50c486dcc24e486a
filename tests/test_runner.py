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
