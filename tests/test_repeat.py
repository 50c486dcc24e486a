"""Repeating a step: the same on the host, unrolled in a program, and as an accelerator's loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rkd_jax.repeat import repeat


def step(i, carry):
  x, total = carry["x"], carry["total"]
  return {"x": jnp.sin(x) + 0.1 * i, "total": total + i}


START = {"x": jnp.array([0.3, 2.0]), "total": 0}


def by_hand(times):
  x = np.array([0.3, 2.0], np.float32)
  for i in range(times):
    x = np.sin(x) + np.float32(0.1 * i)
  return x


@pytest.mark.parametrize("times", [0, 1, 5])
@pytest.mark.parametrize("backend", ["cpu", "tpu"])
@pytest.mark.parametrize("compiled", [False, True])
def test_is_the_loop(monkeypatch, times, backend, compiled):
  monkeypatch.setattr(jax, "default_backend", lambda: backend)
  start = jax.tree.map(jnp.asarray, START)
  run = lambda carry: repeat(step, carry, times)  # noqa: E731
  found = (jax.jit(run) if compiled else run)(start)
  np.testing.assert_allclose(found["x"], by_hand(times), rtol=1e-6)
  assert found["total"] == times * (times - 1) // 2


def loops(backend, monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: backend)
  carry = jax.tree.map(jnp.asarray, START)
  text = str(jax.make_jaxpr(lambda c: repeat(step, c, 4))(carry))
  return "while" in text or "scan" in text


def test_only_accelerators_get_a_loop(monkeypatch):
  assert not loops("cpu", monkeypatch) and loops("gpu", monkeypatch) and loops("tpu", monkeypatch)


def test_on_the_host_the_step_is_called_with_numbers():
  seen = []
  repeat(lambda i, carry: seen.append(i) or carry, 0.0, 3)
  assert seen == [0, 1, 2] and all(type(i) is int for i in seen)
