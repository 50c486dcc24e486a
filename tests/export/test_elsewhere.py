"""What is written runs in other people's code: torch modules of their own, the page's examples."""

import json
import pathlib
import re
import subprocess
import sys

import exported as networks
import jax
import numpy as np
import pytest

from rkd_jax import networks as named
from rkd_jax.export import weights
from rkd_jax.models.network import Network
from rkd_jax.reporting import exported

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
LEFT_OUT = ("precision", "params", "macs")


@pytest.fixture
def theirs(monkeypatch):
  """Networks in torch, written under other people's names."""
  pytest.importorskip("torch")
  monkeypatch.syspath_prepend(ROOT / "tests" / "interop")
  import torch_families

  return torch_families


CASES = {
  "wideresnet-10-1": ("", lambda t: t.Wide(1, 7)),
  "resnet-8": ("", lambda t: t.Residual((16, 16, 32, 64), (1, 1, 1), "A", "fc", 7)),
  "imagenet_resnet-18-width=4-stem=cifar": (
    "kuangliu",
    lambda t: t.Residual((4, 4, 8, 16, 32), (2, 2, 2, 2), "shortcut", "linear", 7),
  ),
  "mobilenet_v2-0.5-variant=cifar": ("torchvision", lambda t: t.mobile(False, 7)),
  "vit-64-2-4": ("torchvision", lambda t: t.ViT(64, networks.SIDE, 4, 7)),
}


@pytest.mark.parametrize("name", CASES)
def test_other_peoples_modules_take_the_weights_and_answer_alike(theirs, name, tmp_path):
  import torch

  wanted, make = CASES[name]
  network, variables = networks.made(name)
  _, state = weights.state_dict(network, variables, wanted)
  (tmp_path / "weights.pth").write_bytes(weights.torch_zip(state))
  net = make(theirs).eval()
  net.load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True), strict=True)
  x = networks.images()
  pixels = torch.tensor((x - np.array(network.mean)) / np.array(network.std), dtype=torch.float32)
  with torch.no_grad():
    found = net(pixels.permute(0, 3, 1, 2)).numpy()
  logits = networks.wanted(name)
  np.testing.assert_allclose(found, logits, atol=5e-5 * np.abs(logits).max(), rtol=0)


def blocks() -> list[str]:
  return re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def folder(tmp_path):
  """What the page's examples open: files of a small network, and images."""
  module = named.module("wideresnet-10-1", classes=3)
  network = Network(module, (16, 16, 1), (0.5,), (0.25,))
  variables = jax.tree.map(np.asarray, jax.jit(network.init)(jax.random.key(0)))
  images = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 1), np.uint8)
  np.save(tmp_path / "images.npy", images)
  logits = network.apply(variables, images.astype(np.float32) / 255, train=False)[0].logits
  return tmp_path, network, variables, np.asarray(logits)


def run(code: str, folder: pathlib.Path) -> str:
  """What a program prints that has no path to the package."""
  done = subprocess.run(
    [sys.executable, "-P", "-c", code], cwd=folder, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_the_pages_example_of_onnx(folder):
  pytest.importorskip("onnxruntime")
  pytest.importorskip("onnx")
  from rkd_jax.export import onnx_file

  path, network, variables, logits = folder
  model = onnx_file.model(network, variables, "nchw", {"classes": json.dumps(["a", "b", "c"])})
  (path / "rkd-seed0.onnx").write_bytes(model.SerializeToString())
  assert run(blocks()[0], path).strip() == str(["abc"[k] for k in logits.argmax(1)])


def test_the_pages_example_of_stablehlo(folder):
  pytest.importorskip("flatbuffers")
  from rkd_jax.export import stablehlo

  path, network, variables, logits = folder
  data = stablehlo.serialized(network, variables, "nhwc")
  (path / "rkd-seed0.stablehlo").write_bytes(data)
  assert run(blocks()[1], path).strip() == str(logits.argmax(1))


def test_the_pages_example_of_weights(folder, theirs, monkeypatch):
  path, network, variables, logits = folder
  _, state = weights.state_dict(network, variables)
  (path / "rkd-seed0.pth").write_bytes(weights.torch_zip(state))
  about = {"mean": list(network.mean), "std": list(network.std)}
  (path / "rkd-seed0.pth.json").write_text(json.dumps(about))
  net = theirs.Wide(1, 3)
  net.conv1 = theirs.conv(1, 16)
  monkeypatch.chdir(path)
  made = {"net": net}
  exec(blocks()[2], made)
  np.testing.assert_allclose(made["logits"].detach().numpy(), logits, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet-8", "vit-48-2-4-heads=3", "shufflenet_v2-0.5-stem=cifar"])
def test_stablehlo_answers_any_number_of_images(name):
  pytest.importorskip("flatbuffers")
  from rkd_jax.export import formats, stablehlo

  network, variables = networks.made(name)
  for layout in ("nhwc", "nchw"):
    call = stablehlo.loaded(stablehlo.serialized(network, variables, layout))
    for count in (5, 2) if layout == "nhwc" else (5,):
      found = call(formats.turned(networks.images()[:count], layout))
      wanted = networks.wanted(name)
      np.testing.assert_allclose(found, wanted[:count], atol=5e-5 * np.abs(wanted).max(), rtol=0)


def test_the_pages_table_is_that_of_the_run():
  assert exported.markdown(ROOT / "results" / "export", LEFT_OUT) in PAGE
  assert exported.markdown(ROOT / "results" / "ablation_agreement") == ""
