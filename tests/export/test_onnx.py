"""Every architecture as ONNX: the same answers for any number of images, in a clean graph."""

import collections
import dataclasses
import sys

import exported
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from rkd_jax.errors import UserError
from rkd_jax.export import formats, needs, operations, values
from rkd_jax.export.graph import Graph
from rkd_jax.export.simplify import simplify
from rkd_jax.export.translate import graph
from rkd_jax.export.values import Tensor
from rkd_jax.models.network import Network, Outputs

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from rkd_jax.export import onnx_file  # noqa: E402

CHANNELS_FIRST = (0, 3, 1, 2)


def answers(model, images, layout):
  session = onnx_file.session(model.SerializeToString())
  return onnx_file.logits(session, formats.turned(images, layout))


def kinds(model):
  return collections.Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("name", exported.NAMES)
def test_every_architecture_answers_as_jax_does(name):
  network, variables = exported.made(name)
  model = onnx_file.model(network, variables, "nchw", {"what": name})
  wanted = exported.wanted(name)
  scale = np.abs(wanted).max()
  for count in (5, 1):
    found = answers(model, exported.images()[:count], "nchw")
    np.testing.assert_allclose(found, wanted[:count], atol=5e-5 * scale, rtol=0)
  (shown,) = model.graph.input
  shape = [n.dim_param or n.dim_value for n in shown.type.tensor_type.shape.dim]
  assert shape == ["batch", 3, exported.SIDE, exported.SIDE]
  assert {p.key: p.value for p in model.metadata_props} == {"what": name}


@pytest.mark.parametrize("name", ["resnet-8", "shufflenet_v2-0.5-stem=cifar", "vit-48-2-4-heads=3"])
def test_images_may_also_lie_as_jax_has_them(name):
  network, variables = exported.made(name)
  model = onnx_file.model(network, variables, "nhwc", {})
  found = answers(model, exported.images(), "nhwc")
  wanted = exported.wanted(name)
  np.testing.assert_allclose(found, wanted, atol=5e-5 * np.abs(wanted).max(), rtol=0)


def test_convolutions_take_their_norms_in_and_nothing_is_turned():
  counts = {name: kinds(onnx_file.model(*exported.made(name), "nchw", {}))
            for name in ("resnet-8-shortcut=B", "mobilenet_v2-0.25-variant=cifar",
                         "imagenet_resnet-18-width=4-stem=cifar")}  # fmt: skip
  assert not any(count["Transpose"] for count in counts.values())
  # the images' normalisation is one of each; the three additions are the blocks' shortcuts
  assert counts["resnet-8-shortcut=B"] == {
    "Mul": 1, "Add": 1 + 3, "Conv": 9, "Relu": 7, "ReduceMean": 1, "Gemm": 1, "Identity": 1,
  }  # fmt: skip
  assert counts["mobilenet_v2-0.25-variant=cifar"]["Clip"] == 35  # ReLU6
  assert counts["imagenet_resnet-18-width=4-stem=cifar"]["Mul"] == 1


def test_a_norm_behind_a_value_that_others_use_too_stays_apart():
  made = Graph(Tensor("images", (None, 2, 4, 4), values.plain(4)))
  kernel = made.constant(np.ones((3, 2, 1, 1), np.float32))
  conv = made.node("Conv", "images", kernel)
  scaled = made.node("Mul", conv, made.constant(np.full((1, 3, 1, 1), 2, np.float32)))
  relu = made.node("Relu", scaled)
  made.output = made.node("Add", relu, conv)
  simplify(made)
  assert [node.op for node in made.nodes] == ["Conv", "Mul", "Relu", "Add"]
  (held,) = [a for a in made.constants.values() if a.ndim == 4]
  assert (held == 1).all()


def test_a_value_with_two_names_is_not_folded_twice():
  made = Graph(Tensor("images", (None, 2, 4, 4), values.plain(4)))
  conv = made.node("Conv", "images", made.constant(np.ones((3, 2, 1, 1), np.float32)))
  normed = made.node("Mul", conv, made.constant(np.float32(2)))
  again = made.node("Mul", normed, made.constant(np.float32(3)))
  made.output = made.node("Add", normed, again)
  simplify(made)
  assert [node.op for node in made.nodes] == ["Conv", "Mul", "Add"]
  (kernel,) = [a for a in made.constants.values() if a.ndim == 4]
  assert (kernel == 2).all()


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ((None, 4, 4, 6), (None, 4, 4, 3, 2)),
    ((None, 4, 4, 3, 2), (None, 4, 4, 6)),
    ((None, 4, 4, 6), (None, 96)),
    ((None, 1, 1, 6), (None, 6)),
    ((None, 6), (None, 1, 6, 1)),
    ((None, 4, 4, 6), (None, 2, 2, 4, 6)),
  ],
)
def test_axes_are_followed_through_other_shapes(old, new):
  draw = np.random.default_rng(0).random([5 if n is None else n for n in old])
  turns = [values.plain(len(old)), (0, len(old) - 1, *range(1, len(old) - 1))]
  for order in turns:
    before, after = values.regrouped(Tensor("x", old, order), new)
    shape = [5 if n is None else n for n in new]
    there = draw.transpose(before).reshape([shape[axis] for axis in after])
    np.testing.assert_array_equal(there.transpose(np.argsort(after)), draw.reshape(shape))


class Sorted(nn.Module):
  """It computes something that no network of ours does."""

  classes: int = 3

  @nn.compact
  def __call__(self, images, train, edit=None):
    flat = jnp.sort(images.reshape(images.shape[0], -1), -1)
    return Outputs(nn.Dense(self.classes, name="head")(flat))


def test_what_is_not_translated_is_named():
  network = Network(Sorted(), (4, 4, 1), (0.0,), (1.0,))
  variables = network.init(jax.random.key(0))
  with pytest.raises(UserError, match=r"computes sort, which is not translated.*stablehlo"):
    graph(network, variables, "nchw")
  with pytest.raises(UserError, match="computes fft"):
    operations.known("fft")


def test_a_network_that_mixes_images_is_refused():
  @dataclasses.dataclass(frozen=True)
  class Mixing:
    image_shape: tuple[int, int, int] = (4, 4, 1)

    def apply(self, variables, images, train):
      return Outputs(images.reshape(2 * images.shape[0], 8)), None

  with pytest.raises(UserError, match="not kept apart"):
    graph(Mixing(), {}, "nhwc")  # type: ignore[arg-type]


def test_a_package_that_is_missing_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "onnx", None)
  with pytest.raises(UserError, match=r"pip install -e '\.\[export\]'"):
    onnx_file.model(*exported.made("resnet-8"), "nchw", {})
  with pytest.raises(UserError, match="needs the package 'nowhere'"):
    needs.package("nowhere.at.all", "This")
