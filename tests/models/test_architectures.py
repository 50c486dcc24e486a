"""The contract of `models/network.py`, kept by every architecture."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small

from rkd_jax.errors import UserError
from rkd_jax.methods import ofd
from rkd_jax.models import (
  imagenet_resnet,
  mobilenet_v2,
  preact_resnet,
  pyramidnet,
  shufflenet_v2,
  vgg,
  vit,
)
from rkd_jax.models.network import Network

SMALL = {
  "imagenet_resnet": imagenet_resnet.Model(18, width=4, classes=5),
  "preact_resnet": preact_resnet.Model(18, width=4, classes=5),
  "pyramidnet": pyramidnet.Model(11, 12, 5, "bottleneck"),
  "mobilenet_v2": mobilenet_v2.Model(0.25, 5, "cifar"),
  "shufflenet_v2": shufflenet_v2.Model(0.5, 5, "pointwise"),
  "vgg": vgg.Model(8, width=4, pools=3, hidden=16, classes=5),
  "vgg-0": vgg.Model(8, 0, width=8, pools=3, classes=5),
  "vit": vit.Model(24, 5, 4, 2, classes=5),
}
each_model = pytest.mark.parametrize("name", SMALL)


def wrap(module, shape=(16, 16, 3)):
  channels = shape[-1]
  return Network(module, shape, (0.4,) * channels, (0.25,) * channels)


@functools.lru_cache
def seen(name):
  """(outputs, those with an edit that turns every stage but the last about, what it was given)."""
  network, given = wrap(SMALL[name]), {}

  def run(values, images):
    def edit(stage, tensor):
      given[stage] = tensor
      return tensor if stage == network.stages[-1] else -tensor

    plain, stats = network.apply(values, images, train=False)
    changed, _ = network.apply(values, images, train=False, edit=edit)
    return plain, changed, dict(given), stats

  images = jax.random.uniform(jax.random.key(1), (4, 16, 16, 3))
  return jax.jit(run)(made(name), images)


@functools.lru_cache
def made(name):
  """Random variables, those of the norms too."""
  rng = np.random.default_rng(0)

  def random(leaf):
    if leaf.ndim == 1:
      return rng.uniform(0.5, 1.5, leaf.shape).astype("float32")
    return rng.normal(0, (2 / np.prod(leaf.shape[:-1])) ** 0.5, leaf.shape).astype("float32")

  return jax.tree.map(random, jax.eval_shape(wrap(SMALL[name]).init, jax.random.key(0)))


def at(tree, path):
  return functools.reduce(lambda subtree, key: subtree[key], path, tree)


def close(actual, expected, tolerance=1e-4):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, tolerance, tolerance), actual, expected
  )


@each_model
def test_outputs(name):
  network, (outputs, *_, stats) = wrap(SMALL[name]), seen(name)
  assert network.stages == tuple(outputs.features) == tuple(outputs.pre_relu)
  head = made(name)["params"]["head"]
  close(outputs.logits, outputs.embedding @ head["kernel"] + head["bias"][None])
  close(stats, made(name).get("batch_stats", {}), 0)
  for stage in network.stages:
    assert outputs.features[stage].shape == outputs.pre_relu[stage].shape


@each_model
def test_edits_flow_on(name):
  outputs, changed, given, _ = seen(name)
  first, last = (f(given, key=list(given).index) for f in (min, max))
  rectified = name in ("imagenet_resnet", "shufflenet_v2", "vgg", "vgg-0")
  active = jax.nn.relu if rectified else lambda x: x
  close(outputs.features[first], active(given[first]))  # nothing was edited before it
  close(changed.features[first], active(-given[first]))
  assert not np.allclose(changed.features[last], outputs.features[last], atol=1e-3)
  assert not np.allclose(changed.logits, outputs.logits, atol=1e-3)
  if rectified:
    close(changed.pre_relu[first], -given[first])


@each_model
def test_margins_are_of_the_norm_before_pre_relu(name):
  network, (outputs, *_) = wrap(SMALL[name]), seen(name)
  missing = {"preact_resnet": {"stage4"}, **dict.fromkeys(("shufflenet_v2", "vgg-0", "vit"))}
  without = set(network.stages) if missing.get(name, 0) is None else missing.get(name, set())
  assert set(network.stages) - set(network.margin_bn) == without
  for stage, path in network.margin_bn.items():
    norm = at(made(name)["params"], path)
    assert set(norm) == {"scale", "bias"}
    assert norm["scale"].shape == outputs.pre_relu[stage].shape[-1:]


@each_model
def test_init_capture_and_types(name):
  """What needs no computation: paths of the norms, types, groups."""
  images = jax.ShapeDtypeStruct((6, 16, 16, 3), jnp.float32)
  network = wrap(SMALL[name].clone(dtype=jnp.bfloat16))
  values = jax.eval_shape(network.init, jax.random.key(0))
  run = functools.partial(network.apply, train=True, capture=True)
  outputs, stats = jax.eval_shape(run, values, images)
  flat = jax.tree_util.tree_flatten_with_path(stats)[0]
  assert set(outputs.bn) == {"/".join(key.key for key in path[:-1]) for path, _ in flat}
  assert {leaf.dtype.name for leaf in jax.tree.leaves(values)} == {"float32"}
  for part in (outputs.features, outputs.pre_relu):
    assert {leaf.dtype.name for leaf in part.values()} == {"bfloat16"}
  assert outputs.logits.dtype == outputs.embedding.dtype == jnp.float32
  assert len(network.convs) == len(set(network.convs)) > 0
  assert all(at(values["params"], path).ndim == 4 for path in network.convs)
  if flat:
    grouped = wrap(SMALL[name].clone(bn_group=4))
    with pytest.raises(UserError, match="multiple of bn_group"):
      jax.eval_shape(functools.partial(grouped.apply, train=True), values, images)


@each_model
def test_training(name):
  """From its own first values the loss of 8 images falls, and every parameter has a part in it."""
  network = wrap(SMALL[name])
  images, labels = jax.random.uniform(jax.random.key(2), (8, 16, 16, 3)), jnp.arange(8) % 5

  def loss(params, stats):
    outputs, stats = network.apply({"params": params, **stats}, images, train=True)
    cross = optax.softmax_cross_entropy_with_integer_labels(outputs.logits, labels)
    return cross.mean(), {"batch_stats": stats} if stats else {}

  @jax.jit
  def step(params, stats):
    (value, stats), gradient = jax.value_and_grad(loss, has_aux=True)(params, stats)
    moved = jax.tree.map(lambda p, g: p - 3e-3 * jnp.sign(g), params, gradient)  # a small program
    return moved, stats, value, gradient

  values = jax.jit(network.init)(jax.random.key(0, impl="rbg"))  # the quicker one to compile
  params, losses = values.pop("params"), []
  for _ in range(20):
    params, values, value, gradient = step(params, values)
    losses.append(float(value))
  assert losses[-1] < 0.7 * losses[0], losses
  for path, leaf in jax.tree_util.tree_flatten_with_path(gradient)[0]:
    assert np.isfinite(leaf).all() and leaf.any(), path


SHAPES = {  # height of the stages' features
  "imagenet_resnet": (imagenet_resnet.Model(50), 224, (56, 28, 14, 7)),
  "imagenet_resnet, cifar": (imagenet_resnet.Model(18, stem="cifar"), 32, (32, 16, 8, 4)),
  "preact_resnet": (preact_resnet.Model(18), 32, (32, 16, 8, 4)),
  "pyramidnet": (pyramidnet.Model(20, 12), 32, (32, 16, 8)),
  "mobilenet_v2": (mobilenet_v2.Model(), 224, (56, 28, 14, 7)),
  "mobilenet_v2, cifar": (mobilenet_v2.Model(variant="cifar"), 32, (32, 16, 8, 4)),
  "mobilenet_v2, kuangliu": (mobilenet_v2.Model(variant="kuangliu"), 32, (32, 16, 8, 4)),
  "mobilenet_v2, distiller": (mobilenet_v2.Model(variant="distiller"), 32, (16, 8, 4, 2)),
  "shufflenet_v2": (shufflenet_v2.Model(), 224, (28, 14, 7)),
  "shufflenet_v2, cifar": (shufflenet_v2.Model(stem="cifar"), 32, (16, 8, 4)),
  "vgg": (vgg.Model(16), 32, (32, 16, 8, 4, 2)),
  "vgg, distiller": (vgg.Model(8, pools=3), 32, (32, 16, 8, 4, 4)),
  "vit": (vit.Model(192), 224, (14,) * 4),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name):
  module, side, heights = SHAPES[name]
  outputs = wrap(module, (side, side, 3)).shapes(2)
  assert tuple(outputs.features[stage].shape[1] for stage in module.stages) == heights
  assert outputs.logits.shape == (2, module.classes)
  assert outputs.embedding.ndim == 2


def test_a_network_without_norms_in_a_phase():
  """It has no statistics to carry; the margins of its features are those of the data."""
  student = Network(vit.Model(8, 4, 4, 2, classes=3), (8, 8, 1), (0.5,), (0.2,))
  networks = {"teacher": student, "student": student}
  given = {"teacher": student.init(jax.random.key(3))}
  phase = small.Small(ofd.Method(weight=1.0), networks=networks, given=given)
  state = jax.device_get(phase.play(2)[0])
  assert set(state.roles["student"]) <= {"params", "batch_stats"}
  assert not state.roles["student"].get("batch_stats")
