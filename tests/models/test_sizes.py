"""Parameters and multiply-adds of the architectures at the size that others published."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from rkd_jax.models import (
  imagenet_resnet,
  mobilenet_v2,
  preact_resnet,
  pyramidnet,
  shufflenet_v2,
  size,
  vgg,
  vit,
)
from rkd_jax.models.network import Network, Outputs


def network(module, side):
  return Network(module, (side, side, 3), (0.0,) * 3, (1.0,) * 3)


# From the tables of torchvision's and timm's documentation.
IMAGENET = {
  "resnet18": (imagenet_resnet.Model(18), 11_689_512),
  "resnet34": (imagenet_resnet.Model(34), 21_797_672),
  "resnet50": (imagenet_resnet.Model(50), 25_557_032),
  "resnet101": (imagenet_resnet.Model(101), 44_549_160),
  "resnet152": (imagenet_resnet.Model(152), 60_192_808),
  "wide_resnet50_2": (imagenet_resnet.Model(50, 2), 68_883_240),
  "mobilenet_v2": (mobilenet_v2.Model(), 3_504_872),
  "shufflenet_v2_x0_5": (shufflenet_v2.Model(0.5), 1_366_792),
  "shufflenet_v2_x1_0": (shufflenet_v2.Model(1.0), 2_278_604),
  "shufflenet_v2_x1_5": (shufflenet_v2.Model(1.5), 3_503_624),
  "shufflenet_v2_x2_0": (shufflenet_v2.Model(2.0), 7_393_996),
  "vgg11": (vgg.Model(11, 0, 4096, 7, classes=1000), 132_863_336),
  "vgg13": (vgg.Model(13, 0, 4096, 7, classes=1000), 133_047_848),
  "vgg16": (vgg.Model(16, 0, 4096, 7, classes=1000), 138_357_544),
  "vgg19": (vgg.Model(19, 0, 4096, 7, classes=1000), 143_667_240),
  "vgg11_bn": (vgg.Model(11, 1, 4096, 7, classes=1000), 132_868_840),
  "vgg16_bn": (vgg.Model(16, 1, 4096, 7, classes=1000), 138_365_992),
  "vit_tiny_patch16_224": (vit.Model(192), 5_717_416),
  "vit_small_patch16_224": (vit.Model(384), 22_050_664),
  "vit_base_patch16_224": (vit.Model(768), 86_567_656),
}

# In millions, as papers and repositories state them.
CIFAR = {
  "kuangliu ResNet-18": (imagenet_resnet.Model(18, classes=10, stem="cifar"), "11.17"),
  "kuangliu PreActResNet-18": (preact_resnet.Model(18), "11.17"),
  "PyramidNet-110, alpha 48": (pyramidnet.Model(110, 48), "1.8"),
  "PyramidNet-200, alpha 240, bottleneck": (pyramidnet.Model(200, 240, 10, "bottleneck"), "26.8"),
  "kuangliu MobileNetV2": (mobilenet_v2.Model(1, 10, "kuangliu"), "2.30"),
  "chenyaofo mobilenetv2_x1_0": (mobilenet_v2.Model(1, 10, "cifar"), "2.24"),
  "RepDistiller mobile_half": (mobilenet_v2.Model(0.5, 100, "distiller"), "0.81"),
  "chenyaofo shufflenetv2_x0_5": (shufflenet_v2.Model(0.5, 10, "cifar"), "0.35"),
  "RepDistiller ShuffleV2": (shufflenet_v2.Model(1, 100, "pointwise"), "1.36"),
  "chenyaofo vgg16_bn": (vgg.Model(16, 1, 512), "15.25"),
  "kuangliu VGG16": (vgg.Model(16), "14.73"),
  "RepDistiller vgg8": (vgg.Model(8, pools=3, classes=100), "3.97"),
  "weiaicunzai vgg16": (vgg.Model(16, 1, 4096, classes=100), "34.0"),
}


@pytest.mark.parametrize("name", IMAGENET)
def test_parameters(name):
  module, published = IMAGENET[name]
  assert size.params(network(module, 224)) == published


@pytest.mark.parametrize("name", CIFAR)
def test_parameters_at_32_pixels(name):
  module, published = CIFAR[name]
  found = size.params(network(module, 32)) / 1e6
  assert f"{found:.{len(published.split('.')[1])}f}" == published


@pytest.mark.parametrize(
  ("name", "published"),
  [
    ("resnet18", 1.81e9),
    ("resnet50", 4.09e9),
    ("mobilenet_v2", 0.30e9),
    ("shufflenet_v2_x0_5", 0.04e9),
    ("vgg16", 15.47e9),
    ("vit_tiny_patch16_224", 1.25e9),
  ],
)
def test_multiply_adds(name, published):
  found = size.macs(network(IMAGENET[name][0], 224))
  assert abs(found - published) <= 0.005e9


class Odd(nn.Module):
  """One dense layer five times over, in a loop that is compiled once, and a grouped convolution."""

  classes: int = 2

  @nn.compact
  def __call__(self, images, train, edit=None):
    x = nn.Conv(6, (3, 3), feature_group_count=3, use_bias=False)(images).mean((1, 2))
    kernel = self.param("kernel", nn.initializers.ones, (6, 6))
    x, _ = jax.lax.scan(lambda x, _: (jnp.tanh(x @ kernel), None), x, None, 5)
    return Outputs(x)


def test_loops_and_groups_are_counted():
  assert size.macs(network(Odd(), 4)) == 16 * 6 * 9 + 5 * 36
  assert size.params(network(Odd(), 4)) == 6 * 9 + 36
