"""Our attacks beside torchattacks' (PyTorch) on one network: what both leave right, and how long.

  python benchmarks/attacks.py --images 200 --seeds 3
  python benchmarks/attacks.py --data tfds:cifar10 --data-dir DIR --eps 0.03137254901960784 \
    --images 1000 --widths 32,64,128 --steps 4000

A small CNN is trained adversarially on the data set, and its weights are given to both. Each attack
runs over the same test images with several seeds. Needs PyTorch, and torchattacks importable: its
package names releases of other packages that it can do without, so install it with --no-deps.
Writes `<out>/<device>/attacks_<data>.json`, and keeps what is there of the same network,
settings and versions.
"""

import argparse
import importlib
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import measure
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

from rkd_jax.adversarial import ball, base, named, pgd
from rkd_jax.data import sources
from rkd_jax.reporting.files import read_json, write_json

NAMES = ("fgsm", "pgd-20", "apgd-ce", "apgd-t", "fab-t", "square", "autoattack")


def logits(weights: Any, images: jax.Array) -> jax.Array:
  """Strided convolutions and a dense layer."""
  x = images
  for kernel, bias in weights["convs"]:
    x = jax.lax.conv_general_dilated(
      x, kernel, (2, 2), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = jax.nn.relu(x + bias)
  return x.transpose(0, 3, 1, 2).reshape(len(x), -1) @ weights["dense"] + weights["bias"]


def trained(images: Any, labels: Any, widths: tuple[int, ...], eps: float, steps: int) -> Any:
  """Weights after adversarial training (PGD of 5 steps)."""
  keys, fan = jax.random.split(jax.random.key(0), len(widths) + 1), images.shape[-1]
  weights: dict[str, Any] = {"convs": []}
  for key, width in zip(keys[:-1], widths, strict=True):
    kernel = jax.random.normal(key, (3, 3, fan, width)) * (2 / (9 * fan)) ** 0.5
    weights["convs"].append((kernel, jnp.zeros(width)))
    fan = width
  flat = (images.shape[1] // 2 ** len(widths)) ** 2 * fan
  weights["dense"] = jax.random.normal(keys[-1], (flat, 10)) * (1 / flat) ** 0.5
  weights["bias"] = jnp.zeros(10)
  optimizer = optax.adam(3e-3)

  @jax.jit
  def step(weights, state, x, y, key):
    start = ball.random_start(jax.random.split(key, len(x)), x, eps, "linf")
    wrong = lambda x: base.cross_entropy(logits(weights, x), y)  # noqa: E731
    x = pgd.ascend(wrong, x, start, eps=eps, step=eps / 2, steps=5)
    loss = lambda w: base.cross_entropy(logits(w, x), y).mean()  # noqa: E731
    updates, state = optimizer.update(jax.grad(loss)(weights), state)
    return optax.apply_updates(weights, updates), state

  state, draw = optimizer.init(weights), np.random.default_rng(0)
  for number in range(steps):
    rows = draw.integers(0, len(images), 128)
    key = jax.random.fold_in(jax.random.key(1), number)
    weights, state = step(weights, state, images[rows], labels[rows], key)
  return weights


def twin(weights: Any) -> Any:
  """The same network in PyTorch, on [B, C, H, W]."""
  import torch

  class Twin(torch.nn.Module):
    def __init__(self):
      super().__init__()
      layers = []
      for kernel, bias in weights["convs"]:
        fan, width = kernel.shape[2:]
        conv: Any = torch.nn.Conv2d(fan, width, 3, 2, 1)
        conv.weight.data = torch.tensor(np.asarray(kernel).transpose(3, 2, 0, 1)).contiguous()
        conv.bias.data = torch.tensor(np.asarray(bias))
        layers += [conv, torch.nn.ReLU()]
      dense = torch.nn.Linear(*weights["dense"].shape)
      dense.weight.data = torch.tensor(np.asarray(weights["dense"]).T.copy())
      dense.bias.data = torch.tensor(np.asarray(weights["bias"]))
      self.layers = torch.nn.Sequential(*layers, torch.nn.Flatten(), dense)

    def forward(self, images):
      return self.layers(images)

  return Twin().eval()


def theirs(name: str, model: Any, eps: float, seed: int) -> Any:
  ta = importlib.import_module("torchattacks")
  together = importlib.import_module("torchattacks.wrappers.multiattack").MultiAttack
  own = {"eps": eps, "seed": seed}
  return {
    "fgsm": lambda: ta.FGSM(model, eps=eps),
    "pgd-20": lambda: ta.PGD(model, eps=eps, alpha=2.5 * eps / 20, steps=20),
    "apgd-ce": lambda: ta.APGD(model, steps=100, **own),
    "apgd-t": lambda: ta.APGDT(model, steps=100, n_classes=10, **own),
    "fab-t": lambda: ta.FAB(model, steps=100, multi_targeted=True, n_classes=10, **own),
    "square": lambda: ta.Square(model, n_queries=5000, **own),
    # not ta.AutoAttack, which leaves its attacks at their default of 10 steps
    "autoattack": lambda: together(
      [
        ta.APGD(model, steps=100, **own),
        ta.APGDT(model, steps=100, n_classes=10, **own),
        ta.FAB(model, steps=100, multi_targeted=True, n_classes=10, **own),
        ta.Square(model, n_queries=5000, resc_schedule=False, **own),
      ]
    ),
  }[name]()


def ours_left(name: str, apply: Any, images: Any, labels: Any, eps: float, seed: int) -> Any:
  keys = jax.random.split(jax.random.key(seed), len(images))
  changed = named.make(name, "linf", eps)(apply, jnp.asarray(images), jnp.asarray(labels), keys)
  away = float(jnp.abs(changed - images).max())
  assert away <= eps + 1e-6, f"{name} left the ball: {away}"
  return np.asarray(base.logits_of(apply, changed)).argmax(-1) == labels


def theirs_left(name: str, model: Any, images: Any, labels: Any, eps: float, seed: int) -> Any:
  import torch

  torch.set_num_threads(1)
  torch.manual_seed(seed)
  x = torch.tensor(images.transpose(0, 3, 1, 2)).contiguous()  # their FAB asks for this layout
  y = torch.tensor(labels).long()
  changed = theirs(name, model, eps, seed)(x, y)
  with torch.no_grad():
    return (model(changed).argmax(1) == y).numpy()


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--data", default="digits", choices=("digits", "tfds:cifar10"))
  parser.add_argument("--data-dir", help="where CIFAR-10 lies as TFDS prepares it")
  parser.add_argument("--widths", default="16,32", help="of the network's convolutions")
  parser.add_argument("--images", type=int, default=200)
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--eps", type=float, default=0.15)
  parser.add_argument("--steps", type=int, default=600, help="of the adversarial training")
  parser.add_argument("--names", default=",".join(NAMES))
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results/bench"))
  options = parser.parse_args()
  sizes = (197.0, 500.0) if options.data == "digits" else (0.1, float(options.images))
  dataset = sources.load(options.data, options.data_dir, 0, *sizes)
  parts = dataset.train, dataset.test
  pixels = [np.asarray(part.images[:]).astype(np.float32) / 255 for part in parts]
  widths = tuple(int(width) for width in options.widths.split(","))
  weights = trained(pixels[0], dataset.train.labels, widths, options.eps, options.steps)
  images, labels = pixels[1][: options.images], dataset.test.labels[: options.images]
  apply, model = jax.tree_util.Partial(logits, weights), twin(weights)
  clean = float((np.asarray(apply(images)).argmax(-1) == labels).mean())
  report: dict[str, Any] = {"schema": 1, **measure.context(), "clean": clean, "cells": []}
  aside = ("out", "names", "data_dir")
  report["settings"] = {k: str(v) for k, v in vars(options).items() if k not in aside}
  path = options.out / measure.slug() / f"attacks_{options.data.removeprefix('tfds:')}.json"
  path.parent.mkdir(parents=True, exist_ok=True)
  before = read_json(path) if path.exists() else {}
  if all(before.get(key) == report[key] for key in ("settings", "clean", "versions")):
    report["cells"] = before["cells"]
  measured = [cell["attack"] for cell in report["cells"]]
  for name in (name for name in options.names.split(",") if name not in measured):
    cell: dict[str, Any] = {"attack": name, "ours": [], "theirs": [], "differ": []}
    spent = {"ours": [], "theirs": []}
    for seed in range(options.seeds):
      found = {}
      for who, asked, network in (
        ("ours", ours_left, apply), ("theirs", theirs_left, model),
      ):  # fmt: skip
        began = time.monotonic()
        found[who] = asked(name, network, images, labels, options.eps, seed)
        spent[who].append(time.monotonic() - began)
        cell[who].append(float(found[who].mean()))
      cell["differ"].append(int((found["ours"] != found["theirs"]).sum()))
    cell |= {f"seconds_{who}": float(np.median(times)) for who, times in spent.items()}
    report["cells"].append(cell)
    write_json(path, report)
  table = Table("attack", "ours", "theirs", "both differ on", "seconds ours", "theirs")
  for cell in report["cells"]:
    shown = (" ".join(f"{100 * v:.1f}" for v in cell[who]) for who in ("ours", "theirs"))
    times = (f"{cell[f'seconds_{who}']:.1f}" for who in ("ours", "theirs"))
    table.add_row(cell["attack"], *shown, str(cell["differ"]), *times)
  Console().print(f"clean {100 * clean:.1f} %", table, str(path))


if __name__ == "__main__":
  main()
