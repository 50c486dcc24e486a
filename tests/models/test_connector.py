"""Connectors: every tap on its own, as a 1x1 convolution and a norm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from jax.sharding import NamedSharding, PartitionSpec

from rkd_jax.methods.base import Bound
from rkd_jax.models.connector import Connector
from rkd_jax.models.norm import BatchNorm
from rkd_jax.training import sharding

TWO = Connector((("stage1", 3, 5), ("stage2", 4, 2)))


def features(batch=8, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(1))
  first = jax.random.normal(keys[0], (batch, 4, 4, 3), dtype)
  return {"stage1": first, "stage2": jax.random.normal(keys[1], (batch, 2, 2, 4), dtype)}


def test_shapes_and_names():
  variables = TWO.init(jax.random.key(0))
  found = jax.tree.map(jnp.shape, variables)
  assert found["params"]["stage1"] == {
    "conv": {"kernel": (1, 1, 3, 5)}, "norm": {"scale": (5,), "bias": (5,)},
  }  # fmt: skip
  assert found["batch_stats"]["stage2"] == {"norm": {"mean": (2,), "var": (2,)}}
  connected, _ = Bound(TWO, variables)(features(), train=True)
  assert {tap: x.shape for tap, x in connected.items()} == {
    "stage1": (8, 4, 4, 5), "stage2": (8, 2, 2, 2),
  }  # fmt: skip


def test_it_is_a_convolution_and_a_norm():
  variables, x = TWO.init(jax.random.key(0)), features()
  connected, stats = TWO.apply(variables, x, train=True)
  kernel = variables["params"]["stage1"]["conv"]["kernel"][0, 0]
  normed, moved = BatchNorm().apply(
    {kind: variables[kind]["stage1"]["norm"] for kind in variables},
    x["stage1"] @ kernel, True, mutable=["batch_stats"],
  )  # fmt: skip
  np.testing.assert_allclose(connected["stage1"], normed, rtol=1e-5, atol=1e-5)
  small.close(stats["stage1"]["norm"], moved["batch_stats"], rtol=1e-5)
  calm, still = TWO.apply(variables, x, train=False)
  small.close(still, variables["batch_stats"], 0, 0)
  expected = x["stage1"] @ kernel / np.sqrt(1 + 1e-5)
  np.testing.assert_allclose(calm["stage1"], expected, rtol=1e-5, atol=1e-5)


def test_first_weights_have_variance_two_over_the_teachers_channels():
  wide = Connector((("a", 300, 200),))
  kernel = wide.init(jax.random.key(0))["params"]["a"]["conv"]["kernel"]
  assert kernel.mean() == pytest.approx(0, abs=2e-3)
  assert kernel.var() == pytest.approx(2 / 200, rel=0.02)


def test_precision_and_groups_are_told():
  half = Connector(TWO.taps, jnp.bfloat16, bn_group=4)
  variables = half.init(jax.random.key(0))
  assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {"float32"}
  connected, _ = half.apply(variables, features(dtype=jnp.bfloat16), train=True)
  assert connected["stage1"].dtype == jnp.bfloat16
  parts = [
    TWO.apply(variables, jax.tree.map(lambda x, i=i: x[4 * i : 4 * i + 4], features()), True)[0]
    for i in range(2)
  ]
  expected = jnp.concatenate([part["stage2"] for part in parts])
  grouped, _ = Connector(TWO.taps, bn_group=4).apply(variables, features(), train=True)
  np.testing.assert_allclose(grouped["stage2"], expected, rtol=1e-5, atol=1e-5)


def test_equal_connectors_are_one_to_the_compiler():
  again = Connector((("stage1", 3, 5), ("stage2", 4, 2)))
  assert again == TWO and hash(again) == hash(TWO)
  assert hash(Connector(TWO.taps, jnp.bfloat16)) is not None


def test_eight_devices_are_one():
  variables, mesh = TWO.init(jax.random.key(0)), sharding.make_mesh(8)
  step = jax.jit(lambda v, x: TWO.apply(v, x, train=True))
  split = jax.device_put(features(16), NamedSharding(mesh, PartitionSpec("data")))
  everywhere = sharding.replicate(mesh, variables)
  small.close(step(everywhere, split), step(variables, features(16)), rtol=1e-4, atol=1e-5)
