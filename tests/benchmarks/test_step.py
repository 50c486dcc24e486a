"""`benchmarks/step.py` runs and reports; that PyTorch computes there what rkd_jax computes."""

import importlib.util
import json
import math
import os
import pathlib
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest
from flax import traverse_util

from rkd_jax import losses
from rkd_jax.models import wideresnet
from rkd_jax.models.network import Network

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"
NET = "wideresnet-10-1"


def run(out: pathlib.Path, *options: str) -> dict:
  """The report of the smallest run there is, on one pair and one net."""
  command = [sys.executable, str(FOLDER / "step.py"), f"--pairs={NET}:{NET},{NET}", f"--out={out}"]
  tiny = ["--batch=4", "--rounds=1", "--seconds=0", "--images=16", "--patience=0"]
  path = {**os.environ, "PYTHONPATH": str(ROOT)}  # as `pip install -e .` would have it
  done = subprocess.run(
    [*command, *tiny, *options], cwd=ROOT, env=path, capture_output=True, text=True
  )
  assert not done.returncode, done.stderr
  (path,) = out.glob("*/step.json")
  assert str(path) in done.stdout.replace("\n", "")
  return json.loads(path.read_text())


def positive(*values: float) -> bool:
  return all(isinstance(v, int | float) and math.isfinite(v) and v > 0 for v in values)


def check_timed(timed: dict) -> None:
  assert positive(timed["steps"], timed["images_per_second"], timed["ms_per_step"])
  (sample,) = timed["rounds"]
  assert positive(sample["images_per_second"])
  assert sample["foreign_cpu"] is None or 0 <= sample["foreign_cpu"] <= 1


def check_report(report: dict, contestants: set[str]) -> None:
  assert report["schema"] == 1
  assert positive(report["device"]["count"], report["device"]["cores"])
  assert {"jax", "jaxlib", "flax", "optax", "python", "rkd_jax"} <= report["versions"].keys()
  distilled, taught = report["cells"]
  assert distilled["teacher"] == NET and taught["teacher"] is None
  assert distilled["cost"]["flops"] > taught["cost"]["flops"]
  for cell in report["cells"]:
    assert positive(cell["params"]["student"], cell["log_every"])
    assert cell["timed"].keys() == contestants
    for timed in cell["timed"].values():
      check_timed(timed)
    cost = cell["cost"]
    assert positive(cost["trace_s"], cost["compile_s"], cost["peak_memory_bytes"])
    assert positive(cost["flops_per_second"], cost["bytes_unfused"])
    assert positive(cell["ratios"]["loop_over_bare"]["median"])
    with_torch = "torch" in contestants
    assert (cell["ratios"]["jax_over_torch"] is not None) == with_torch


@pytest.mark.slow
def test_everything_asked_for_is_in_the_report_and_finite(tmp_path):
  if importlib.util.find_spec("torch") is None:
    check_report(run(tmp_path), {"bare", "loop"})
    return
  report = run(tmp_path, "--torch")
  check_report(report, {"bare", "loop", "torch", "torch channels_last"})
  assert report["torch"]["threads"] >= 1


@pytest.fixture
def torch_nets(monkeypatch):
  pytest.importorskip("torch")
  monkeypatch.syspath_prepend(FOLDER)
  return importlib.import_module("torch_nets")


def carried(torch, net, variables) -> None:
  """Puts Flax variables into the PyTorch network; raises where one is missing or left over."""
  names = {"scale": "weight", "kernel": "weight", "mean": "running_mean", "var": "running_var"}
  flat: dict[Any, Any] = dict(traverse_util.flatten_dict(variables))
  found = {}
  for (_, *path, leaf), value in flat.items():
    axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(value.ndim, tuple(range(value.ndim)))
    value = np.array(np.transpose(value, axes))
    found[".".join([*path, names.get(leaf, leaf)])] = torch.from_numpy(value)
  net.load_state_dict(found)


def test_pytorch_computes_the_same_loss(torch_nets):
  import torch

  mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
  draw = np.random.default_rng(0)
  images = draw.random((6, 16, 16, 3), dtype=np.float32)
  labels = draw.integers(0, 10, 6)
  network: Any = Network(wideresnet.Model(16, 2), (16, 16, 3), mean, std)
  variables = [jax.jit(network.init)(jax.random.key(i)) for i in range(2)]
  teacher, _ = network.apply(variables[0], images, train=False)
  student, _ = network.apply(variables[1], images, train=True)
  hard = losses.cross_entropy(student.logits, labels).mean()
  soft = losses.kl_divergence(teacher.logits, student.logits, 4.0).mean()

  nets = [torch_nets.build("wideresnet-16-2", mean, std) for _ in range(2)]
  for net, tree in zip(nets, variables, strict=True):
    carried(torch, net, tree)
  pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
  with torch.inference_mode():
    answers = nets[0].eval()(pixels), nets[1].train()(pixels)
    loss = torch_nets.kd_loss(answers[1], answers[0], torch.from_numpy(labels), 4.0, 0.9)
  np.testing.assert_allclose(answers[0].numpy(), teacher.logits, atol=1e-4)
  np.testing.assert_allclose(loss.item(), 0.1 * hard + 0.9 * soft, rtol=1e-4)


def test_pytorchs_augmentation_crops_and_mirrors(torch_nets):
  import torch

  image = torch.arange(16.0).reshape(1, 1, 4, 4) + 1
  padded = torch.nn.functional.pad(image, (1, 1, 1, 1))[0, 0]
  windows = [padded[i : i + 4, j : j + 4] for i in range(3) for j in range(3)]
  known = {tuple(w.flatten().tolist()) for w in (*windows, *(w.flip(1) for w in windows))}
  torch.manual_seed(0)
  found = torch_nets.augment(image.expand(500, 1, 4, 4), 1)
  assert {tuple(one.flatten().tolist()) for one in found} == known
