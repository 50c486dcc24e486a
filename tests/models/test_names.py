"""Architectures by their names in a config."""

import types

import jax.numpy as jnp
import pytest

from rkd_jax import networks
from rkd_jax.errors import UserError
from rkd_jax.models import (
  imagenet_resnet,
  mobilenet_v2,
  pyramidnet,
  resnet,
  shufflenet_v2,
  vgg,
  vit,
  wideresnet,
)

CONFIG = types.SimpleNamespace(dtype="float32", bn_group=4)
DATASET = types.SimpleNamespace(
  name="toy", classes=7, image_shape=(32, 32, 3), mean=(0.5,) * 3, std=(0.2,) * 3
)
COMMON = {"classes": 7, "dtype": jnp.float32, "bn_group": 4}


def build(name):
  return networks.build(CONFIG, name, DATASET)


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("wideresnet-16-2", wideresnet.Model(16, 2, **COMMON)),
    ("resnet-20", resnet.Model(20, **COMMON)),
    ("resnet-20-8-shortcut=B", resnet.Model(20, 8, shortcut="B", **COMMON)),
    ("resnet-width=8-depth=14", resnet.Model(14, 8, **COMMON)),
    ("imagenet_resnet-50-stem=cifar", imagenet_resnet.Model(50, stem="cifar", **COMMON)),
    ("imagenet_resnet-50-2", imagenet_resnet.Model(50, 2, **COMMON)),
    (
      "pyramidnet-200-240-block=bottleneck",
      pyramidnet.Model(200, 240, 7, "bottleneck", bn_group=4),
    ),
    ("mobilenet_v2-width=0.5", mobilenet_v2.Model(0.5, **COMMON)),
    ("mobilenet_v2-1-variant=cifar", mobilenet_v2.Model(1.0, variant="cifar", **COMMON)),
    ("shufflenet_v2-0.5", shufflenet_v2.Model(0.5, **COMMON)),
    ("vgg-16-1-512", vgg.Model(16, 1, 512, **COMMON)),
    ("vit-192-12-4", vit.Model(192, 12, 4, classes=7)),
  ],
)
def test_names(name, expected):
  network = build(name)
  assert network.module == expected
  assert network.image_shape == (32, 32, 3) and network.classes == 7


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("resnet-20-x", "after the file's name come numbers for its fields depth, width, shortcut"),
    ("resnet-20-16-8-9-7", "after the file's name come numbers"),
    ("resnet-width=8-14", "after the file's name come numbers"),
    ("resnet-20-", "after the file's name come numbers"),
    ("resnet-20-depht=8", r"'depht' is none of its fields. Did you mean 'depth'\?"),
    ("resnet-20-depth=14", "'depth' is there twice"),
    ("resnet-20-classes=3", "'classes' is none of its fields"),
    ("resnet-depth=2x", "its field depth takes a whole number, not '2x'"),
    ("resnet-20.5", "its field depth takes a whole number, not '20.5'"),
    ("mobilenet_v2-width=half", "its field width takes a number, not 'half'"),
    ("resnet-shortcut=", "its field shortcut takes a word, not ''"),
    ("imagenet_resnet-20", "The depth of an ImageNet ResNet is 20. .*18"),
    ("imagenet_resnet-18-2", "Only bottlenecks can be widened"),
    ("imagenet_resnet-18-stem=cifer", r"stem is 'cifer'. Did you mean 'cifar'\?"),
    ("pyramidnet-111", "6n \\+ 2 layers, not 111. The nearest are 110 and 116"),
    ("shufflenet_v2-3", "The width of a ShuffleNetV2 is 3.0. "),
    ("mobilenet_v2-0", "The width of a MobileNetV2 is 0.0; it must lie between"),
    ("vgg-17", "The depth of a VGG is 17. "),
    ("vit-100-heads=3", "A ViT of width 100 cannot have 3 heads"),
    ("imagenet_resnett-18", "Did you mean 'imagenet_resnet'"),
    ("layers", "No model is called 'layers'"),
  ],
)
def test_wrong_names(name, message):
  with pytest.raises(UserError, match=message):
    build(name)


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("vgg-11-pools=5", "needs images of 32 pixels or more, not 28 x 28"),
    ("vit-192-2-16", "28 x 28 cannot be cut into patches of 16"),
  ],
)
def test_images_that_do_not_fit(name, message):
  dataset = types.SimpleNamespace(**{**vars(DATASET), "image_shape": (28, 28, 3)})
  with pytest.raises(UserError, match=message):
    networks.build(CONFIG, name, dataset).shapes()


def test_fields_without_a_default(tmp_path, monkeypatch):
  (tmp_path / "my_net.py").write_text(
    "from flax import linen as nn\n\n\nclass Model(nn.Module):\n  width: int\n  kind: str\n"
  )
  (tmp_path / "ours").mkdir()
  (tmp_path / "my_net.py").rename(tmp_path / "ours" / "my_net.py")
  monkeypatch.syspath_prepend(tmp_path)
  module = build("ours.my_net-8-kind=soft").module
  assert (module.width, module.kind) == (8, "soft")
