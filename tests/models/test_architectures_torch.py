"""Logits, in evaluation and in training, equal to PyTorch's for the same random weights."""

import functools

import jax
import numpy as np
import pytest

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

torch = pytest.importorskip("torch")

import torch_names as names  # noqa: E402
import torch_twins as twins  # noqa: E402

kuangliu = functools.partial(names.residual, shortcut="shortcut", head="linear")
ELEVEN = "CRMCRMCRCRMCRCRMCRCRM"  # VGG-11: convolution, ReLU, pool
EIGHT = "CNRMCNRMCNRMCNRCNR"  # of three pools, with norms
few = functools.partial
CASES = {  # (ours, its names in PyTorch, its twin in PyTorch, the images)
  "resnet18": (imagenet_resnet.Model(18, 1, 4, 7), names.residual, twins.resnet, (33, 40, 3)),
  "wide_resnet50": (
    imagenet_resnet.Model(50, 2, 4, 7, "cifar"), names.residual, twins.resnet, (8, 8, 1),
  ),
  "preact18": (preact_resnet.Model(18, 4, 7), kuangliu, twins.preact_resnet, (16, 9, 3)),
  "preact50": (preact_resnet.Model(50, 4, 7), kuangliu, twins.preact_resnet, (8, 8, 3)),
  "pyramid14": (pyramidnet.Model(14, 10, 7), names.pyramid, twins.pyramidnet, (11, 14, 3)),
  "pyramid20": (
    pyramidnet.Model(20, 10, 7, "bottleneck"), names.pyramid, twins.pyramidnet, (12, 12, 3),
  ),
  "mobile": (mobilenet_v2.Model(0.25, 7), names.mobile, twins.mobilenet_v2, (64, 64, 3)),
  "mobile-kuangliu": (
    mobilenet_v2.Model(0.25, 7, "kuangliu"), names.mobile_cifar, twins.mobilenet_cifar,
    (16, 16, 3),
  ),
  "shuffle": (shufflenet_v2.Model(0.5, 7), names.shuffle, twins.shufflenet_v2, (64, 64, 3)),
  "vgg11": (
    vgg.Model(11, 0, 12, 7, width=4, classes=7), names.vgg, few(twins.vgg, plan=ELEVEN, pool=7),
    (96, 64, 3),
  ),
  "vgg8-bn": (
    vgg.Model(8, 1, pools=3, width=4, classes=7), few(names.vgg, pools=3),
    few(twins.vgg, plan=EIGHT), (17, 20, 3),
  ),
  "vit": (vit.Model(24, 6, 4, 3, 7), names.vit, few(twins.vit, heads=3), (12, 16, 3)),
}  # fmt: skip


def ready(module, shape):
  """A network, random variables (norms and running statistics too) and images."""
  network = Network(module, shape, (0.0,) * shape[-1], (1.0,) * shape[-1])
  rng = np.random.default_rng(0)

  def random(leaf):
    if leaf.ndim == 1:
      return rng.uniform(0.5, 1.2, leaf.shape).astype("float32")
    return rng.normal(0, (1.5 / np.prod(leaf.shape[:-1])) ** 0.5, leaf.shape).astype("float32")

  values = jax.tree.map(random, jax.eval_shape(network.init, jax.random.key(0)))
  return network, values, rng.uniform(size=(6, *shape)).astype("float32")


def close(actual, expected, what, tolerance=1e-4):
  """Equal to a ten-thousandth of the largest."""
  scale = max(1.0, np.abs(expected).max())
  np.testing.assert_allclose(actual / scale, expected / scale, 0, tolerance, err_msg=what)


# Blocks of which another case has the training: two modes take twice as long to compile.
EVALUATED = {"wide_resnet50", "preact50", "pyramid20", "mobile-kuangliu", "vit"}


@pytest.mark.parametrize("case", CASES)
def test_logits(case):
  module, named, twin_of, shape = CASES[case]
  network, values, images = ready(module, shape)
  modes = (False, True)[: 1 if case in EVALUATED else 2]
  run = jax.jit(lambda v, x: [network.apply(v, x, train=train) for train in modes])
  state, pixels = names.to_torch(values, named(values)), images.transpose(0, 3, 1, 2).copy()
  for train, (outputs, stats) in zip(modes, run(values, images), strict=True):
    twin = twins.Twin(state, train)
    close(outputs.logits, twin_of(twin, torch.from_numpy(pixels)).numpy(), f"train={train}")
    assert twin.used == set(state)  # every tensor has its place
    for name, leaf in names.to_torch({"batch_stats": stats}, named(values)).items():
      if name.endswith("mean"):  # PyTorch's variance is the unbiased one: see `norm.BatchNorm`
        close(leaf, twin.state[name].numpy(), name)


LIBRARY = {  # torchvision's constructor, its arguments, ours, names
  "resnet18": ({}, imagenet_resnet.Model(18), names.residual),
  "resnet50": ({}, imagenet_resnet.Model(50), names.residual),
  "mobilenet_v2": ({}, mobilenet_v2.Model(), names.mobile),
  "shufflenet_v2_x0_5": ({}, shufflenet_v2.Model(0.5), names.shuffle),
  "vgg11_bn": ({"init_weights": False}, vgg.Model(11, 1, 4096, 7, classes=1000), names.vgg),
}


@pytest.mark.parametrize("name", LIBRARY)
def test_logits_are_torchvisions(name):
  library = pytest.importorskip("torchvision.models")
  options, module, named = LIBRARY[name]
  network, values, images = ready(module, (64, 64, 3))
  twin = getattr(library, name)(**options).eval()
  state = {n: torch.from_numpy(leaf) for n, leaf in names.to_torch(values, named(values)).items()}
  twin.load_state_dict(twin.state_dict() | state)
  assert {n for n in twin.state_dict() if "num_batches" not in n} == set(state)
  outputs, _ = jax.jit(lambda v, x: network.apply(v, x, train=False))(values, images)
  with torch.no_grad():
    expected = twin(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
  close(outputs.logits, expected.numpy(), name)


def test_logits_are_timms():
  timm = pytest.importorskip("timm")
  network, values, images = ready(vit.Model(192, 12, 8, classes=1000), (32, 32, 3))
  twin = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8).eval()
  state = names.to_torch(values, names.vit(values))
  twin.load_state_dict({n: torch.from_numpy(leaf) for n, leaf in state.items()})
  outputs, _ = jax.jit(lambda v, x: network.apply(v, x, train=False))(values, images)
  with torch.no_grad():
    expected = twin(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
  close(outputs.logits, expected.numpy(), "vit")
