import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from rkd_jax.errors import UserError
from rkd_jax.models import norm


def draw(shape=(8, 5, 5, 3), seed=0):
  return 2 + 3 * jax.random.normal(jax.random.key(seed), shape)


def variables(channels=3):
  keys = jax.random.split(jax.random.key(7), 4)
  scale, bias, mean, var = (jax.random.uniform(k, (channels,), minval=0.5) for k in keys)
  stats = {"mean": mean, "var": var}
  return {"params": {"scale": scale, "bias": bias}, "batch_stats": stats}


def run(module, x, train=True, values=None):
  y, updated = module.apply(values or variables(x.shape[-1]), x, train, mutable=["batch_stats"])
  return y, updated["batch_stats"]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(8, 5, 5, 3), (8, 3)])
def test_global_batch_is_flax(train, dtype, shape):
  x = draw(shape).astype(dtype)
  flax = nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=dtype)
  expected, updated = flax.apply(variables(), x, mutable=["batch_stats"])
  y, stats = run(norm.BatchNorm(dtype=dtype), x, train)
  assert y.dtype == dtype
  np.testing.assert_allclose(np.float32(y), np.float32(expected), rtol=1e-6, atol=1e-6)
  for name in ("mean", "var"):
    assert stats[name].dtype == jnp.float32
    np.testing.assert_allclose(stats[name], updated["batch_stats"][name], rtol=1e-6)


def test_gradients_are_flax():
  x, values = draw(), variables()

  def loss(apply):
    def total(params, x):
      y, _ = apply({**values, "params": params}, x)
      return (y**3).mean()

    return jax.grad(total, (0, 1))(values["params"], x)

  flax = nn.BatchNorm(use_running_average=False, momentum=0.9)
  expected = loss(lambda v, x: flax.apply(v, x, mutable=["batch_stats"]))
  actual = loss(lambda v, x: run(norm.BatchNorm(), x, values=v))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), actual, expected
  )


def test_groups_are_normalised_alone():
  x = draw()
  y, stats = run(norm.BatchNorm(group=4), x)
  halves = [run(norm.BatchNorm(), half) for half in (x[:4], x[4:])]
  np.testing.assert_allclose(y, jnp.concatenate([half[0] for half in halves]), rtol=1e-6, atol=1e-6)
  for name in ("mean", "var"):
    np.testing.assert_allclose(stats[name], sum(half[1][name] for half in halves) / 2, rtol=1e-6)


@pytest.mark.parametrize("group", [3, 16, 0])
def test_batch_must_be_a_multiple_of_the_group(group):
  with pytest.raises(UserError, match="batch of 8 examples"):
    run(norm.BatchNorm(group=group), draw())
  run(norm.BatchNorm(group=group), draw(), train=False)  # nothing is grouped in evaluation


@pytest.mark.parametrize("train", [True, False])
def test_init_moves_nothing_and_captures_nothing(train):
  values = norm.BatchNorm(group=32).init(jax.random.key(0), draw((1, 4, 4, 3)), train)
  assert set(values) == {"params", "batch_stats"}
  assert (values["batch_stats"]["mean"] == 0).all() and (values["batch_stats"]["var"] == 1).all()


def test_training_mode_without_mutable_statistics():
  y = norm.BatchNorm().apply(variables(), draw(), True)
  np.testing.assert_allclose(y, run(norm.BatchNorm(), draw())[0])


def test_constant_input_has_finite_gradients():
  def total(x):
    return (run(norm.BatchNorm(), x)[0] ** 2).sum()

  gradient = jax.grad(lambda x: (jax.grad(total)(x) ** 2).sum())(jnp.full((4, 2, 2, 3), 1e3))
  assert np.isfinite(gradient).all()


@pytest.mark.parametrize("group", [None, 2, 8, 16])
def test_eight_devices_are_one(group):
  module, x = norm.BatchNorm(group=group), draw((16, 4, 4, 3))
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
  expected, actual = (
    jax.jit(lambda x: run(module, x))(x),
    jax.jit(lambda x: run(module, x))(sharded),
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), actual, expected
  )


def test_groups_within_a_device_exchange_nothing():
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  x = jax.device_put(draw((16, 4, 4, 3)), NamedSharding(mesh, PartitionSpec("data")))

  def program(group):
    return jax.jit(lambda x: run(norm.BatchNorm(group), x)[0]).lower(x).compile().as_text()

  assert "all-reduce" in program(None)
  assert not [word for word in ("all-reduce", "all-gather", "permute") if word in program(2)]
