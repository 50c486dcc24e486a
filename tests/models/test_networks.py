import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from rkd_jax.errors import UserError
from rkd_jax.models import resnet, wideresnet
from rkd_jax.models.network import Network

SMALL = {
  "wrn": wideresnet.Model(depth=10, widen=2, classes=5),
  "resnet-A": resnet.Model(depth=8, width=8, classes=5),
  "resnet-B": resnet.Model(depth=8, width=8, classes=5, shortcut="B"),
}
each_model = pytest.mark.parametrize("module", SMALL.values(), ids=SMALL.keys())


def wrap(module, shape=(8, 8, 3)):
  channels = shape[-1]
  return Network(module, shape, (0.4,) * channels, (0.25,) * channels)


def images(batch=8, shape=(8, 8, 3)):
  return jax.random.uniform(jax.random.key(1), (batch, *shape))


@functools.lru_cache
def ready(module):
  """A network and random variables, those of the norms too."""
  network, rng = wrap(module), np.random.default_rng(0)

  def random(leaf):
    if leaf.ndim == 1:
      return rng.uniform(0.5, 1.5, leaf.shape).astype("float32")
    return rng.normal(0, (2 / np.prod(leaf.shape[:-1])) ** 0.5, leaf.shape).astype("float32")

  return network, jax.tree.map(random, jax.eval_shape(network.init, jax.random.key(0)))


@functools.lru_cache
def compiled(network, **options):
  return jax.jit(functools.partial(network.apply, **options))


def run(network, values, x, **options):
  return compiled(network, **options)(values, x)


def at(tree, path):
  return functools.reduce(lambda subtree, name: subtree[name], path, tree)


def close(actual, expected, rtol=1e-4, atol=1e-5):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol, atol), actual, expected)


def dtypes(tree):
  return {leaf.dtype.name for leaf in jax.tree.leaves(tree)}


@pytest.mark.parametrize(
  ("module", "published"),
  [
    (wideresnet.Model(16, 1), 175_066),
    (wideresnet.Model(16, 2), 691_674),
    (wideresnet.Model(40, 2), 2_243_546),
    (wideresnet.Model(28, 4), 5_849_050),
    (wideresnet.Model(28, 10), 36_479_194),
    (resnet.Model(20), 269_722),
    (resnet.Model(32), 464_154),
    (resnet.Model(44), 658_586),
    (resnet.Model(56), 853_018),
    (resnet.Model(110), 1_727_962),
    (resnet.Model(20, shortcut="B"), 272_474),
    (resnet.Model(56, shortcut="B"), 855_770),
  ],
)
def test_parameter_counts(module, published):
  values = jax.eval_shape(wrap(module, (32, 32, 3)).init, jax.random.key(0))
  assert sum(leaf.size for leaf in jax.tree.leaves(values["params"])) == published


@pytest.mark.parametrize(
  ("build", "near"),
  [
    (lambda: wideresnet.Model(depth=17), "16 and 22"),
    (lambda: wideresnet.Model(depth=4), "10 and 16"),
    (lambda: resnet.Model(depth=18), "14 and 20"),
    (lambda: resnet.Model(depth=20, shortcut="C"), "'A'"),
  ],
)
def test_impossible_architectures(build, near):
  with pytest.raises(UserError, match=near):
    build()


@each_model
@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 15, 4), (32, 32, 3)])
def test_any_image(module, shape):
  outputs = wrap(module, shape).shapes(batch=2)
  height, width = (-(-side // 4) for side in shape[:2])
  channels = outputs.embedding.shape[-1]
  assert outputs.logits.shape == (2, 5)
  assert outputs.features["stage3"].shape == (2, height, width, channels)


@each_model
def test_outputs(module):
  network, values = ready(module)
  outputs, stats = run(network, values, images(), train=False)
  assert network.stages == tuple(outputs.features) == tuple(outputs.pre_relu)
  assert outputs.bn == {} and network.classes == 5
  close(stats, values["batch_stats"], 0, 0)
  head = values["params"]["head"]
  expected = jnp.dot(outputs.embedding, head["kernel"]) + head["bias"][None]
  close(outputs.logits, expected)
  deepest = outputs.pre_relu["stage3"]
  close(outputs.embedding, jax.nn.relu(deepest).mean((1, 2)))
  for path in network.margin_bn.values():
    assert set(at(values["params"], path)) == {"scale", "bias"}


@each_model
@pytest.mark.parametrize("train", [True, False])
def test_margin_bn_makes_pre_relu(module, train):
  """Its bias arrives in pre_relu one to one, and alone where there is no shortcut beside it."""
  network, values = ready(module)

  def pre_relu(stage, scale, shift):
    params = jax.tree.map(lambda leaf: leaf, values["params"])
    norm = at(params, network.margin_bn[stage])
    norm["scale"], norm["bias"] = norm["scale"] * scale, norm["bias"] + shift
    outputs, _ = run(network, {**values, "params": params}, images(), train=train)
    return outputs.pre_relu[stage], norm["bias"].reshape(1, 1, 1, -1)

  for stage in network.stages:
    before, after = pre_relu(stage, 1, 0)[0], pre_relu(stage, 1, 1)[0]
    close(after, before + 1)
    if isinstance(module, wideresnet.Model):
      flat, bias = pre_relu(stage, 0, 0)
      close(flat, jnp.broadcast_to(bias, flat.shape))


@each_model
def test_identity_edit_changes_nothing(module):
  network, values = ready(module)
  plain = run(network, values, images(), train=True)
  edited = run(network, values, images(), train=True, edit=lambda stage, tensor: tensor)
  close(edited, plain, 0, 0)


@each_model
def test_edit_acts_downstream_only(module):
  network, values = ready(module)

  @jax.jit
  def zero_stage2(values, x):
    seen = {}

    def edit(stage, tensor):
      seen[stage] = tensor
      return 0 * tensor if stage == "stage2" else tensor

    return network.apply(values, x, train=False, edit=edit)[0], seen

  plain, _ = run(network, values, images(), train=False)
  edited, seen = zero_stage2(values, images())
  close(edited.features["stage1"], plain.features["stage1"])
  close(edited.pre_relu["stage1"], plain.pre_relu["stage1"])
  assert not edited.features["stage2"].any()
  assert (edited.logits != plain.logits).all()
  assert not np.allclose(edited.features["stage3"], plain.features["stage3"])
  if isinstance(module, wideresnet.Model):  # raw sums; their pre_relu is a norm of the edited one
    close(plain.features["stage1"], seen["stage1"])
    path = network.margin_bn["stage2"]
    norm, stats = at(values["params"], path), at(values["batch_stats"], path)
    of_zero = norm["bias"] - stats["mean"] * norm["scale"] / jnp.sqrt(stats["var"] + 1e-5)
    close(edited.pre_relu["stage2"][0, 0, 0], of_zero)
  else:
    assert not edited.pre_relu["stage2"].any()
    close(plain.pre_relu["stage1"], seen["stage1"])
    close(plain.features["stage1"], jax.nn.relu(seen["stage1"]))


@each_model
@pytest.mark.parametrize("train", [True, False])
def test_capture(module, train):
  network, values = ready(module)
  outputs, stats = run(network, values, images(), train=train, capture=True)
  leaves, _ = jax.tree.flatten_with_path(values["batch_stats"])
  assert set(outputs.bn) == {"/".join(key.key for key in path[:-1]) for path, _ in leaves}
  for path, inputs in outputs.bn.items():
    before, after = (at(tree, path.split("/"))["mean"] for tree in (values["batch_stats"], stats))
    close(after, 0.9 * before + 0.1 * inputs.mean((0, 1, 2)) if train else before)


def test_convs_in_forward_order():
  convs = wrap(wideresnet.Model(16, 2)).convs
  assert len(convs) == 16 and convs[0] == ("conv", "kernel")
  last = ["block0/conv1", "block0/conv2", "block0/shortcut", "block1/conv1", "block1/conv2"]
  assert ["/".join(path) for path in convs[-5:]] == [f"stage3_{name}/kernel" for name in last]
  assert len(wrap(resnet.Model(20)).convs) == 19
  assert len(wrap(resnet.Model(20, shortcut="B")).convs) == 21


def test_convs_of_a_network_whose_shapes_are_known_already():
  network = wrap(wideresnet.Model(16, 1, classes=13))  # one that no other test has
  init = network.init
  jax.eval_shape(init, jax.random.key(0))  # JAX keeps what it traced as long as `init` lives
  assert len(network.convs) == 15  # no shortcut in the first stage


@each_model
def test_bn_group(module):
  network, values = ready(module)
  grouped = wrap(module.clone(bn_group=4))
  outputs, stats = run(grouped, values, images(), train=True)
  halves = [run(network, values, half, train=True) for half in jnp.split(images(), 2)]
  close(outputs.logits, jnp.concatenate([half[0].logits for half in halves]))
  close(stats, jax.tree.map(lambda a, b: (a + b) / 2, halves[0][1], halves[1][1]))
  with pytest.raises(UserError, match="multiple of bn_group"):
    run(grouped, values, images(6), train=True)


@pytest.mark.parametrize("name", ["wrn", "resnet-B"])
@pytest.mark.parametrize("group", [None, 2, 8])
def test_eight_devices_are_one(name, group):
  network = wrap(SMALL[name].clone(bn_group=group))
  values, batch = ready(SMALL[name])[1], images(16)
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  everywhere = jax.device_put(values, NamedSharding(mesh, PartitionSpec()))
  sharded = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
  step = compiled(network, train=True)
  close(step(everywhere, sharded), step(values, batch), 1e-3, 1e-4)


@each_model
@pytest.mark.parametrize("train", [True, False])
def test_bfloat16(module, train):
  network, values = ready(module)
  half = wrap(module.clone(dtype=jnp.bfloat16))
  expected, _ = run(network, values, images(), train=train)
  outputs, stats = run(
    half, values, images(), train=train, edit=lambda _, tensor: tensor * jnp.ones((1, 1, 1, 1))
  )
  assert dtypes(jax.eval_shape(half.init, jax.random.key(0))) == {"float32"}
  assert dtypes((outputs.logits, outputs.embedding, stats)) == {"float32"}
  assert dtypes((outputs.features, outputs.pre_relu)) == {"bfloat16"}  # a float32 edit is rounded
  error = jnp.abs(outputs.logits - expected.logits).max() / jnp.abs(expected.logits).max()
  assert error < 0.05


@each_model
def test_gradients_reach_every_parameter(module):
  network, values = ready(module)

  def loss(params):
    outputs, _ = network.apply({**values, "params": params}, images(), train=True)
    return -jax.nn.log_softmax(outputs.logits)[:, 0].mean()

  for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(values["params"])):
    assert np.isfinite(leaf).all() and leaf.any()
