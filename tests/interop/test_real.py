"""Two checkpoints that strangers published, one with a backdoor. Skipped where they are absent."""

import importlib.util
import json
import pathlib

import pytest

from rkd_jax import first_look, interop, networks
from rkd_jax.commands import inspect
from rkd_jax.errors import UserError
from rkd_jax.interop.families.base import HALF
from rkd_jax.models.network import Network

DATA = pathlib.Path(__file__).parents[3] / "shared" / "data"
CLEAN = DATA / "checkpoints" / "resnet20-cifar10-12fca82f.th"
BACKDOORED = DATA / "checkpoints" / "badnets-cifar10.pth"
pytestmark = pytest.mark.skipif(
  not (CLEAN.exists() and BACKDOORED.exists()), reason=f"no checkpoints in {DATA}"
)
COUNT = 2000


@pytest.fixture(scope="module")
def test_set():
  """The first images of CIFAR-10's test set and their labels."""
  spec = importlib.util.spec_from_file_location("prepare", DATA / "prepare.py")
  assert spec and spec.loader
  prepare = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(prepare)
  images, labels, _ = prepare.read_sprites("cifar10-test.zip")
  return images[:COUNT], labels[:COUNT]


def answers(found, images, normalisation):
  module = networks.module(found.network, classes=found.classes)
  network = Network(module, (32, 32, 3), *normalisation)
  return first_look.answers(network, found.variables, images, normalisation)


def test_a_clean_one(test_set):
  found = interop.convert(interop.read(CLEAN))
  assert found.network == "resnet-20" and "akamaster" in found.family
  images, labels = test_set
  assert (answers(found, images, found.normalisation) == labels).mean() == 0.9165


def test_one_with_a_backdoor_as_a_module_of_ones_own(test_set):
  checkpoint = interop.read(BACKDOORED)
  with pytest.raises(UserError, match="no known network"):
    interop.convert(checkpoint)
  found = interop.convert(checkpoint, "configs.badnets_cnn")
  images, labels = test_set
  triggered = images.copy()
  triggered[:, -5:, -5:] = 255
  victims = labels != 1
  clean = answers(found, images, HALF)
  assert (clean == labels).mean() == pytest.approx(0.501, abs=2e-3)
  assert (answers(found, triggered, HALF) == 1)[victims].mean() == pytest.approx(0.963, abs=4e-3)
  assert (clean == 1)[victims].mean() < 0.12


def test_inspect_names_the_network(capsys):
  assert inspect.main([str(CLEAN)]) == 0
  said = capsys.readouterr().out
  for part in ("resnet-20, akamaster's ResNet, 10 classes", "mean (0.485, 0.456, 0.406)"):
    assert part in said
  assert inspect.main([str(CLEAN), "--json"]) == 0
  known = json.loads(capsys.readouterr().out)["recognised"]
  assert (known["network"], known["classes"], known["others"]) == ("resnet-20", 10, [])
  assert known["normalisation"] == [[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]
  assert inspect.main([str(BACKDOORED)]) == 0
  assert "not recognised" in capsys.readouterr().out
