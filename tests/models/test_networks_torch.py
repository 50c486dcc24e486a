"""The same networks written again in PyTorch, in the manner of the reference implementations."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from rkd_jax.models import resnet, wideresnet
from rkd_jax.models.network import Network

torch = pytest.importorskip("torch")
functional, tnn = torch.nn.functional, torch.nn


def conv(inputs, outputs, size=3, stride=1):
  return tnn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


class WideBlock(tnn.Module):
  def __init__(self, inputs, outputs, stride):
    super().__init__()
    self.norm1, self.conv1 = tnn.BatchNorm2d(inputs), conv(inputs, outputs, 3, stride)
    self.norm2, self.conv2 = tnn.BatchNorm2d(outputs), conv(outputs, outputs)
    self.shortcut = None if inputs == outputs else conv(inputs, outputs, 1, stride)

  def forward(self, x):
    out = functional.relu(self.norm1(x))
    x = x if self.shortcut is None else self.shortcut(out)
    out = functional.relu(self.norm2(self.conv1(out)))
    return x + self.conv2(out)


class BasicBlock(tnn.Module):
  def __init__(self, inputs, outputs, stride, option):
    super().__init__()
    self.conv1, self.norm1 = conv(inputs, outputs, 3, stride), tnn.BatchNorm2d(outputs)
    self.conv2, self.norm2 = conv(outputs, outputs), tnn.BatchNorm2d(outputs)
    self.changes, self.option = inputs != outputs, option
    if self.changes and option == "B":
      self.shortcut, self.shortcut_norm = conv(inputs, outputs, 1, stride), tnn.BatchNorm2d(outputs)

  def forward(self, x):
    out = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
    if self.changes and self.option == "A":
      quarter = out.shape[1] // 4
      x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, quarter, quarter))
    elif self.changes:
      x = self.shortcut_norm(self.shortcut(x))
    return functional.relu(x + out)


class TorchNet(tnn.Module):
  """Either family; submodules carry the names of their counterparts."""

  def __init__(self, module, channels, inputs):
    super().__init__()
    self.wide = isinstance(module, wideresnet.Model)
    self.conv, self.blocks = conv(inputs, channels[0]), []
    self.norm = tnn.BatchNorm2d(channels[-1] if self.wide else channels[0])
    for stage, (before, after) in enumerate(itertools.pairwise(channels), start=1):
      for i in range((module.depth - (4 if self.wide else 2)) // 6):
        shape = (before if i == 0 else after, after, 2 if i == 0 and stage > 1 else 1)
        block = WideBlock(*shape) if self.wide else BasicBlock(*shape, module.shortcut)
        self.blocks.append(block)
        self.add_module(f"stage{stage}_block{i}", block)
    self.head = tnn.Linear(channels[-1], module.classes)

  def forward(self, x):
    x = self.conv(x)
    x = x if self.wide else functional.relu(self.norm(x))
    for block in self.blocks:
      x = block(x)
    x = functional.relu(self.norm(x)) if self.wide else x
    return self.head(x.mean((2, 3)))


NAMES = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
WIDE, DEEP = (16, 32, 64, 128), (16, 16, 32, 64)
CASES = {
  "wrn-16-2": (wideresnet.Model(16, 2, classes=7), WIDE, (16, 16, 3)),
  "wrn-10-1": (wideresnet.Model(10, 1, classes=7), DEEP, (13, 8, 1)),
  "resnet-14-A": (resnet.Model(14, classes=7), DEEP, (16, 16, 3)),
  "resnet-8-B": (resnet.Model(8, classes=7, shortcut="B"), DEEP, (9, 14, 2)),
}
each_case = pytest.mark.parametrize("case", CASES)


def to_torch(tree):
  """{"stage1_block0.conv1.weight": ...} of a tree of params or batch_stats."""
  state = {}
  for path, leaf in traverse_util.flatten_dict(tree).items():
    leaf = np.array(leaf)
    if path[-1] == "kernel":
      leaf, name = leaf.T if leaf.ndim == 2 else leaf.transpose(3, 2, 0, 1), "weight"
    else:
      name = NAMES[path[-1]]
    state[".".join((*path[:-1], name))] = torch.from_numpy(np.ascontiguousarray(leaf))
  return state


def twins(case):
  """A network, random variables (norms and running statistics too), images, the PyTorch twin."""
  module, channels, shape = CASES[case]
  network = Network(module, shape, (0.0,) * shape[-1], (1.0,) * shape[-1])
  rng = np.random.default_rng(0)

  def random(leaf):
    if leaf.ndim == 1:
      return rng.uniform(0.5, 1.5, leaf.shape).astype("float32")
    return rng.normal(0, (2 / np.prod(leaf.shape[:-1])) ** 0.5, leaf.shape).astype("float32")

  values = jax.tree.map(random, jax.eval_shape(network.init, jax.random.key(0)))
  twin = TorchNet(module, channels, shape[-1])
  state = to_torch(values["params"]) | to_torch(values["batch_stats"])
  twin.load_state_dict(twin.state_dict() | state)
  assert {name for name in twin.state_dict() if "num_batches" not in name} == set(state)
  return network, values, rng.uniform(size=(8, *shape)).astype("float32"), twin


def nchw(images):
  return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


@each_case
def test_evaluation(case):
  network, values, images, twin = twins(case)
  outputs, _ = jax.jit(lambda v, x: network.apply(v, x, train=False))(values, images)
  expected = twin.eval()(nchw(images)).detach().numpy()
  np.testing.assert_allclose(outputs.logits, expected, rtol=1e-4, atol=1e-4)


@each_case
def test_training(case):
  network, values, images, twin = twins(case)
  apply = jax.jit(lambda v, x: network.apply(v, x, train=True, capture=True))
  outputs, stats = apply(values, images)
  expected = twin.train()(nchw(images)).detach().numpy()
  np.testing.assert_allclose(outputs.logits, expected, rtol=1e-4, atol=1e-4)
  before, after = to_torch(values["batch_stats"]), to_torch(stats)
  for path, inputs in outputs.bn.items():
    prefix, n = path.replace("/", "."), np.prod(inputs.shape[:-1])
    for name, unbiased in (("running_mean", 1), ("running_var", n / (n - 1))):  # PyTorch's variance
      key = f"{prefix}.{name}"
      moved = 0.9 * before[key] + (after[key] - 0.9 * before[key]) * unbiased
      np.testing.assert_allclose(moved, twin.state_dict()[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ["wrn-10-1", "resnet-8-B"])
@pytest.mark.parametrize("train", [True, False])
def test_double_backward(case, train):
  """The parameters' gradient of a squared input gradient, as gradient alignment needs it."""
  network, values, images, twin = twins(case)

  def penalty(params, images):
    def loss(images):
      outputs, _ = network.apply({**values, "params": params}, images, train=train)
      return -jax.nn.log_softmax(outputs.logits)[:, 0].sum()

    return jnp.square(jax.grad(loss)(images)).sum()

  gradient = to_torch(jax.jit(jax.grad(penalty))(values["params"], images))
  pixels = nchw(images).requires_grad_()
  loss = -functional.log_softmax(twin.train(train)(pixels), 1)[:, 0].sum()
  (inner,) = torch.autograd.grad(loss, pixels, create_graph=True)
  inner.square().sum().backward()
  for name, parameter in twin.named_parameters():
    scale = parameter.grad.abs().max().item()
    np.testing.assert_allclose(gradient[name], parameter.grad, rtol=1e-3, atol=1e-3 * scale)
