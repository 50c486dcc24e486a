"""Weights under PyTorch's names: read back to the bit, by us, by safetensors and by torch."""

import io

import exported
import jax
import numpy as np
import pytest

from rkd_jax import interop
from rkd_jax.errors import UserError
from rkd_jax.export import weights

NAMED = [
  n for n in exported.NAMES if n not in ("vit-48-2-4-heads=3", "vgg-8-0-8-3-pools=2-width=4")
]


def read_back(data, tmp_path, name):
  path = tmp_path / "weights"
  path.write_bytes(data)
  return interop.convert(interop.read(path), name)


@pytest.mark.parametrize("name", NAMED)
def test_our_reader_takes_them_back(name, tmp_path):
  network, variables = exported.made(name)
  family, state = weights.state_dict(network, variables)
  for data in (weights.safetensors(state, {"a": "b"}), weights.torch_zip(state)):
    found = read_back(data, tmp_path, name)
    assert found.network == name and found.family == family.name
    jax.tree.map(np.testing.assert_array_equal, found.variables, variables)


def test_torchvisions_names_are_the_first_choice():
  network, variables = exported.made("imagenet_resnet-18-width=4-stem=cifar")
  family, state = weights.state_dict(network, variables)
  assert family.name == "torchvision's or timm's ResNet"
  assert {"conv1.weight", "bn1.running_var", "layer2.0.downsample.0.weight", "fc.bias"} <= set(
    state
  )
  assert state["layer1.0.conv1.weight"].shape == (4, 4, 3, 3)
  family, state = weights.state_dict(network, variables, "kuangliu")
  assert "layer2.0.shortcut.0.weight" in state and "linear.bias" in state


def test_names_that_would_be_read_as_another_network_are_only_written_where_they_are_asked_for():
  network, variables = exported.made("vit-48-2-4-heads=3")  # heads are in no tensor
  with pytest.raises(UserError, match=r"timm's ViT; torchvision's ViT.*--names"):
    weights.state_dict(network, variables)
  family, state = weights.state_dict(network, variables, "TIMM")
  assert family.name == "timm's ViT" and state["blocks.1.attn.qkv.weight"].shape == (144, 48)
  with pytest.raises(UserError, match="have the name 'keras'"):
    weights.state_dict(network, variables, "keras")


def test_a_network_of_nobody_else():
  network, variables = exported.made("resnet-8")
  strange = {**variables, "params": {**variables["params"], "gate": {"kernel": np.ones((2, 2))}}}
  with pytest.raises(UserError, match="could have are none"):
    weights.state_dict(network, strange)


def test_the_reader_of_safetensors():
  reader = pytest.importorskip("safetensors.numpy")
  _, state = weights.state_dict(*exported.made("resnet-8"))
  found = reader.load(weights.safetensors(state, {"what": "a test"}))
  assert found.keys() == state.keys()
  for name, array in state.items():
    np.testing.assert_array_equal(found[name], array)


def test_torch_reads_the_state_dict_as_plain_weights():
  torch = pytest.importorskip("torch")
  _, state = weights.state_dict(*exported.made("resnet-8"))
  data = weights.torch_zip(state)
  assert data == weights.torch_zip(state)  # no time in it
  found = torch.load(io.BytesIO(data), weights_only=True)
  assert list(found) == list(state)
  for name, array in state.items():
    assert found[name].dtype == torch.float32 and found[name].is_contiguous()
    np.testing.assert_array_equal(found[name].numpy(), array)


def test_torchvision_takes_it_with_strict_names(tmp_path):
  torch, models = pytest.importorskip("torch"), pytest.importorskip("torchvision.models")
  from rkd_jax import networks
  from rkd_jax.models.network import Network

  module = networks.module("imagenet_resnet-18", classes=7)
  network = Network(module, (64, 64, 3), (0.5,) * 3, (0.25,) * 3)
  variables = jax.tree.map(np.asarray, jax.jit(network.init)(jax.random.key(0)))
  _, state = weights.state_dict(network, variables)
  theirs = models.resnet18(num_classes=7).eval()
  loaded = torch.load(io.BytesIO(weights.torch_zip(state)), weights_only=True)
  theirs.load_state_dict(loaded, strict=True)
  x = exported.images(2, 64)
  with torch.no_grad():
    found = theirs(torch.from_numpy((x.transpose(0, 3, 1, 2) - 0.5) / 0.25)).numpy()
  wanted = network.apply(variables, x, train=False)[0].logits
  np.testing.assert_allclose(found, wanted, atol=1e-4)
