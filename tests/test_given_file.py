"""A stranger's file teaches: its network, its pixels and its classes are taken, asked for, said."""

import dataclasses
import json

import numpy as np
import pytest
from test_run import config

from rkd_jax import config as configs
from rkd_jax import experiment, first_look, given, strangers
from rkd_jax.data import sources
from rkd_jax.errors import UserError
from rkd_jax.interop import RefusedError
from rkd_jax.reporting import results
from rkd_jax.reporting.progress import Reporter
from rkd_jax.runner import Runner
from rkd_jax.setup import Setup
from rkd_jax.training.loop import StopSignal

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow
NETWORK = "wideresnet-10-1"
DIGITS = {"teacher.mean": (0.0,), "teacher.std": (1.0,)}
SOME = {
  "methods": ("kd",), "clean_teacher_seeds": 0, "all_labels_control": False, "labels": 0.05,
  "backdoor": "unknown", "contamination": 0.0,
}  # fmt: skip
LEAVES = {"scale": "weight", "kernel": "weight", "bias": "bias"}
LEAVES |= {"mean": "running_mean", "var": "running_var"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A WRN-10-1 of this package that knows digits, as a folder and as {our path: array}."""
  workdir = tmp_path_factory.mktemp("author") / "run"
  made = config(**{"teacher.epochs": 4, "teacher.poison": 0.0, "data.train": 0.0})
  data, say = experiment.load(made, Reporter(quiet=True)), Reporter(quiet=True)
  with StopSignal() as stop:
    teacher = Setup(made, data, 0).teacher.phase
    found = Runner(made, data, workdir, say, stop).finish(teacher).directory
  return found, given.read(found).variables()


def named(variables, order=None):
  """Its tensors under the names of xternalz' code, the head's rows in another order."""
  state, layers = {}, {"conv": "conv1", "norm": "bn1", "head": "fc"}
  inner = {"norm1": "bn1", "norm2": "bn2", "conv1": "conv1", "conv2": "conv2"}
  inner |= {"shortcut": "convShortcut"}
  for tree in (variables["params"], variables["batch_stats"]):
    for top, part in tree.items():
      stage, _, block = top.partition("_block")
      for name, leaves in part.items() if block else [("", part)]:
        theirs = layers.get(top) or f"block{stage[-1]}.layer.{block}.{inner[name]}"
        for leaf, array in leaves.items():
          axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim, (0,))
          state[f"{theirs}.{LEAVES[leaf]}"] = np.ascontiguousarray(array.transpose(axes))
  for name in ("fc.weight", "fc.bias"):
    state[name] = state[name] if order is None else state[name][list(order)]
  return {name: torch.from_numpy(array.copy()) for name, array in state.items()}


def file_of(tmp_path, variables, order=None, name="model.pth"):
  torch.save({"state_dict": named(variables, order), "epoch": 6}, tmp_path / name)
  return str(tmp_path / name)


@pytest.fixture(scope="module")
def dataset():
  return sources.load("digits", None, 0, 197.0, 500.0, 300.0)


def section(path, **changes):
  found = configs.default().teacher
  found.checkpoint = path
  for name, value in changes.items():
    found[name.removeprefix("teacher.")] = value
  return found


def test_it_teaches(trained, tmp_path, capfd, dataset):
  folder, variables = trained
  path, norms = file_of(tmp_path, variables), given.read(folder).normalisation
  digest = strangers.find(section(path, **DIGITS), dataset).sha256
  pixels = {"teacher.mean": norms[0], "teacher.std": norms[1], "teacher.sha256": digest}
  experiment.run(config(**SOME | pixels | {"teacher.checkpoint": path}), tmp_path / "run", "file")
  made, cells = results.read(tmp_path / "run" / "results.json")
  (acc,) = results.select(cells, network="teacher", metric="acc")
  assert acc.teacher == "given" and acc.value > 0.5
  assert results.select(cells, network="student", metric="acc")
  looked, own = made["given"], strangers.find(section(str(folder), network=NETWORK), dataset)
  of_the_folder = first_look.look(own, config(**SOME), dataset).record
  assert json.loads(json.dumps(of_the_folder)) and not looked["warnings"]
  for key in ("accuracy", "others", "network", "normalisation", "holdout"):  # to the byte
    assert looked[key] == json.loads(json.dumps(of_the_folder[key]))
  assert looked["sha256"] == digest and looked["kind"] == "torch zip"
  assert "xternalz" in looked["family"] and looked["normalisation_source"] == "as you say"
  said = capfd.readouterr().out
  for part in ("Given teacher: wideresnet-10-1", "under 'state_dict'", "hold-out images", "as you"):
    assert part in said


def test_the_key_is_that_of_its_bytes(trained, tmp_path, dataset):
  def key(path, **changes):
    changes = {f"teacher.{name}": value for name, value in changes.items()}
    made = config(**SOME | DIGITS | {"teacher.checkpoint": path} | changes)
    return Setup(made, dataset, 0).teacher.phase.key

  (tmp_path / "other").mkdir()
  path = file_of(tmp_path, trained[1])
  other = tmp_path / "other" / "name.pth"
  other.write_bytes((tmp_path / "model.pth").read_bytes())
  assert key(path) == key(str(other))
  swapped = (1, 0, *range(2, 10))
  assert len({key(path), key(path, classes=swapped), key(path, std=(0.5,))}) == 3
  assert key(path, classes=tuple(range(10))) == key(path)
  assert key(file_of(tmp_path / "other", trained[1], range(9, -1, -1))) != key(path)


def test_classes_in_another_order_are_seen_and_mapped(trained, tmp_path, dataset):
  order = (3, 1, 4, 0, 5, 9, 2, 6, 8, 7)
  path, made = file_of(tmp_path, trained[1], order), config(**SOME)
  norms = given.read(trained[0]).normalisation
  pixels = {"mean": norms[0], "std": norms[1]}
  wrong = first_look.look(strangers.find(section(path, **pixels), dataset), made, dataset)
  (warning,) = wrong.warnings
  there = tuple(order.index(k) for k in range(10))
  assert "another order" in warning and ",".join(map(str, there)) in warning
  right = strangers.find(section(path, classes=there, **pixels), dataset)
  found = first_look.look(right, made, dataset)
  assert not found.warnings and found.record["accuracy"] > wrong.record["accuracy"] + 0.4
  assert "our classes are its classes" in "\n".join(found.lines)
  head = right.variables()["params"]["head"]["kernel"]
  np.testing.assert_array_equal(head, trained[1]["params"]["head"]["kernel"])


def test_pixels_that_look_wrong(dataset):
  """The doubts, on answers that are made up."""
  labels = dataset.holdout.labels
  teacher = given.Given("x", "resnet-20", ((0.1,), (0.2,)), "0" * 64, "file", 10)
  said = np.where(np.arange(len(labels)) % 2, labels, 0)

  def doubts(said, others):
    return first_look.doubts(teacher, dataset, said, labels, others, float((said == labels).mean()))

  assert not doubts(labels, {"none, [0, 1]": 1.0})
  (found,) = doubts(said, {"to [-1, 1]": 0.9, "ImageNet's": 0.95})
  assert "mis-normalised" in found and "--config.teacher.mean=0.485,0.456,0.406" in found
  (found,) = doubts(np.zeros_like(labels), {})
  assert "chance is 10.0%" in found and "Nothing good can be learned" in found


def test_what_is_not_known_is_asked_for(trained, tmp_path, dataset):
  path = file_of(tmp_path, trained[1])
  with pytest.raises(UserError, match=r"how its pixels were normalised(.|\n)*ImageNet's: --config"):
    strangers.find(section(path), dataset)
  with pytest.raises(RefusedError, match="another file than the one you mean"):
    strangers.find(section(path, sha256="0" * 64, **DIGITS), dataset)
  fewer = dataclasses.replace(dataset, class_names=dataset.class_names[:4])
  with pytest.raises(
    UserError, match=r"knows 10 classes; 'digits' has 4.*config.teacher.classes=3"
  ):
    strangers.find(section(path, **DIGITS), fewer)
  found = strangers.find(section(path, classes=(7, 3, 0, 1), **DIGITS), fewer)
  assert found.variables()["params"]["head"]["bias"].shape == (4,)
  for wrong, message in (((1, 2), "2 indices"), ((1, 1, 2, 3), "3 of them distinct")):
    with pytest.raises(UserError, match=message):
      strangers.find(section(path, classes=wrong, **DIGITS), fewer)
  with pytest.raises(UserError, match="has the classes 0 to 9"):
    strangers.find(section(path, classes=(1, 2, 3, 10), **DIGITS), fewer)
  torch.save({"a": torch.ones(3)}, tmp_path / "other.pth")
  with pytest.raises(UserError, match="no known network"):
    strangers.find(section(str(tmp_path / "other.pth"), **DIGITS), dataset)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"teacher.mean": (0.5,)}, "no config.teacher.checkpoint"),
    ({"teacher.classes": (1, 0)}, "config.teacher.classes is set"),
    ({"teacher.checkpoint": "x", "teacher.mean": (0.5,)}, "one number per channel in each"),
    (
      {"teacher.checkpoint": "x", "teacher.mean": (0.5,), "teacher.std": (0.0,)},
      "each std above 0",
    ),
  ],
)
def test_what_cannot_be_is_said_before_any_work(changes, message):
  with pytest.raises(UserError, match=message):
    configs.check(config(**changes))


OWN = """
import flax.linen as nn
from rkd_jax.models.network import Outputs

KEYS = {"layers.0": "first", "layers.2": "head"}

class Model(nn.Module):
  classes: int = 10
  stages = ()
  margin_bn = {}

  @nn.compact
  def __call__(self, images, train, edit=None):
    x = nn.relu(nn.Dense(5, name="first")(images.reshape(len(images), -1)))
    return Outputs(nn.Dense(self.classes, name="head")(x), embedding=x)
"""


@pytest.fixture
def package(tmp_path, monkeypatch, request):
  folder = tmp_path / f"package_of_{abs(hash(request.node.name))}"
  folder.mkdir()
  (folder / "mlp.py").write_text(OWN)
  (folder / "bare.py").write_text(OWN.replace("KEYS", "NAMES"))
  (folder / "headless.py").write_text(OWN.replace('"layers.2": "head"', '"layers.2": "last"'))
  (folder / "short.py").write_text(OWN.replace('"layers.0": "first", ', ""))
  monkeypatch.syspath_prepend(tmp_path)
  return folder.name


def test_a_module_of_ones_own(package, tmp_path, dataset):
  side, _, channels = dataset.image_shape
  state = {
    "layers.0.weight": torch.randn(5, side * side * channels),
    "layers.0.bias": torch.ones(5),
  }
  state |= {"layers.2.weight": torch.randn(12, 5), "layers.2.bias": torch.ones(12)}
  torch.save(state, tmp_path / "mlp.pth")
  path, chosen = str(tmp_path / "mlp.pth"), (11, *range(9))
  wanted = section(path, network=f"{package}.mlp", classes=chosen, **DIGITS)
  found = strangers.find(wanted, dataset)
  head = found.variables()["params"]["head"]["kernel"]
  np.testing.assert_array_equal(head, state["layers.2.weight"].numpy()[list(chosen)].T)
  assert found.network == f"{package}.mlp" and found.count == 12
  for module, message in (
    ("bare", "defines no KEYS"),
    ("headless", "names no layer 'head'"),
    ("short", "KEYS has nothing for 'first/"),
    ("missing", "Cannot import"),
  ):
    with pytest.raises(UserError, match=message):
      strangers.find(section(path, network=f"{package}.{module}", **DIGITS), dataset)
  torch.save(state | {"layers.0.bias": torch.ones(6)}, tmp_path / "mlp.pth")
  with pytest.raises(UserError, match=r"does not fit .*layers.0.bias is 6, not 5.*inspect"):
    strangers.find(wanted, dataset)
