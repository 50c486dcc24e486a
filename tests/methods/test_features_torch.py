"""The distances of feature distillation written again in PyTorch, in float64, with gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rkd_jax import losses
from rkd_jax.methods import ofd
from rkd_jax.models.connector import Connector

torch = pytest.importorskip("torch")
functional = torch.nn.functional


def draw(seed, shape=(4, 3, 5, 6)):
  return np.random.default_rng(seed).normal(0.2, 1.0, shape).astype("float32")


MARGIN = -np.random.default_rng(9).uniform(0.1, 1.0, 6).astype("float32")


def nchw(x):
  return x.permute(0, 3, 1, 2)


def torch_overhaul(s, t):
  t = torch.max(nchw(t), torch.tensor(MARGIN, dtype=torch.float64).view(1, -1, 1, 1))
  loss = functional.mse_loss(nchw(s), t, reduction="none")
  return (loss * ((nchw(s) > t) | (t > 0))).flatten(1).sum(1)


def torch_attention(s, t):
  maps = (functional.normalize(nchw(x).pow(2).mean(1).flatten(1)) for x in (s, t))
  return (next(maps) - next(maps)).pow(2).mean(1)


def torch_residual(s, t):
  return (s - t).flatten(1).var(1, unbiased=False) / t.flatten(1).var(1, unbiased=False).detach()


def torch_moments(s, t):
  deviations = [nchw(x).transpose(0, 1).flatten(1).std(1, unbiased=False) for x in (s, t)]
  return functional.mse_loss(*deviations)


def torch_views(s, t):
  return torch.stack([s, t]).var(0, unbiased=False).flatten(1).mean(1)


PAIRS = {
  "overhaul": (lambda s, t: losses.overhaul(s, t, MARGIN), torch_overhaul),
  "attention_transfer": (losses.attention_transfer, torch_attention),
  "hint": (losses.hint, lambda s, t: functional.mse_loss(s, t, reduction="none").mean((1, 2, 3))),
  "residual_variance": (losses.residual_variance, torch_residual),
  "moment_gap": (losses.moment_gap, torch_moments),
  "view_variance": (losses.view_variance, torch_views),
}


@pytest.mark.parametrize("name", PAIRS)
def test_values_and_gradients_equal_torch(name):
  ours, theirs = PAIRS[name]
  s, t = draw(0), draw(1)
  weight = draw(2, (4,)) if ours(s, t).ndim else np.float32(1.3)
  found, gradients = jax.value_and_grad(lambda s, t: (weight * ours(s, t)).sum(), (0, 1))(s, t)
  a, b = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (s, t))
  expected = theirs(a, b)
  np.testing.assert_allclose(ours(s, t), expected.detach(), rtol=1e-5, atol=1e-7)
  total = (torch.tensor(weight) * expected).sum()
  total.backward()
  assert float(found) == pytest.approx(total.item(), rel=1e-5, abs=1e-6)
  for gradient, twin in zip(gradients, (a, b), strict=True):
    np.testing.assert_allclose(gradient, twin.grad, rtol=1e-5, atol=1e-5 * twin.grad.abs().max())


def test_the_margin_is_that_of_the_authors_code():
  scipy = pytest.importorskip("scipy.stats")
  rng = np.random.default_rng(0)
  beta, gamma = (rng.uniform(-3, 3, 200).astype("float32") for _ in range(2))
  expected = []
  for mean, std in zip(np.float64(beta), np.abs(np.float64(gamma)), strict=True):
    below = scipy.norm.cdf(-mean / std)
    tail = mean - std * np.exp(-((mean / std) ** 2) / 2) / np.sqrt(2 * np.pi) / max(below, 1e-300)
    expected.append(tail if below > 1e-3 else -3 * std)
  np.testing.assert_allclose(ofd.normal_tail_mean(beta, gamma), expected, rtol=1e-5, atol=1e-5)


def test_a_connected_distance_and_its_gradients_equal_torch():
  connector = Connector((("stage1", 4, 6),))
  variables, x, t = connector.init(jax.random.key(0)), draw(3, (4, 3, 5, 4)), draw(1)

  def ours(params, x):
    variables_now = {**variables, "params": params}
    connected, stats = connector.apply(variables_now, {"stage1": x}, train=True)
    return losses.overhaul(connected["stage1"], jnp.asarray(t), MARGIN).sum(), stats

  (value, stats), (params, pixels) = jax.value_and_grad(ours, (0, 1), has_aux=True)(
    variables["params"], x
  )
  kernel = np.asarray(variables["params"]["stage1"]["conv"]["kernel"]).transpose(3, 2, 0, 1)
  kernel = torch.tensor(kernel, dtype=torch.float64, requires_grad=True)
  scale, bias = (torch.full((6,), v, dtype=torch.float64, requires_grad=True) for v in (1.0, 0.0))
  mean, var = torch.zeros(6, dtype=torch.float64), torch.ones(6, dtype=torch.float64)
  twin = torch.tensor(x, dtype=torch.float64, requires_grad=True)
  connected = functional.batch_norm(
    functional.conv2d(nchw(twin), kernel), mean, var, scale, bias, training=True
  )
  expected = torch_overhaul(connected.permute(0, 2, 3, 1), torch.tensor(t, dtype=torch.float64))
  expected.sum().backward()
  assert float(value) == pytest.approx(expected.sum().item(), rel=1e-5)
  np.testing.assert_allclose(stats["stage1"]["norm"]["mean"], mean, rtol=1e-5, atol=1e-6)
  grads = params["stage1"]
  pairs = [
    (np.asarray(grads["conv"]["kernel"]).transpose(3, 2, 0, 1), kernel), (pixels, twin),
    (grads["norm"]["scale"], scale), (grads["norm"]["bias"], bias),
  ]  # fmt: skip
  for found, tensor in pairs:
    scale = tensor.grad.abs().max().item()
    np.testing.assert_allclose(found, tensor.grad, rtol=1e-5, atol=1e-5 * scale)
