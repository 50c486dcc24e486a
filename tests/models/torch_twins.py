"""Forward passes in PyTorch's own functions, straight from a state dict in its usual names.

Written from the papers and from what the common implementations do, to hold our networks against.
"""

import itertools

import torch

functional = torch.nn.functional
relu = functional.relu


class Twin:
  """Layers by their name in a state dict, whose running statistics move in training.

  Attributes:
    used: the tensors that were read.
  """

  def __init__(self, state, train):
    self.state = {name: torch.from_numpy(leaf.copy()) for name, leaf in state.items()}
    self.train, self.used = train, set()

  def __contains__(self, layer):
    return f"{layer}.weight" in self.state

  def __getitem__(self, name):
    if name in self.state:
      self.used.add(name)
    return self.state.get(name)

  def conv(self, x, layer, stride=1, padding=None):
    weight = self[f"{layer}.weight"]
    padding = weight.shape[-1] // 2 if padding is None else padding
    groups = x.shape[1] // weight.shape[1]
    return functional.conv2d(x, weight, self[f"{layer}.bias"], stride, padding, groups=groups)

  def norm(self, x, layer):
    names = ("running_mean", "running_var", "weight", "bias")
    return functional.batch_norm(x, *(self[f"{layer}.{name}"] for name in names), self.train)

  def normed(self, x, conv, norm, stride=1):
    return self.norm(self.conv(x, conv, stride), norm)

  def dense(self, x, layer):
    return functional.linear(x, self[f"{layer}.weight"], self[f"{layer}.bias"])

  def token_norm(self, x, layer):
    weight, bias = self[f"{layer}.weight"], self[f"{layer}.bias"]
    return functional.layer_norm(x, x.shape[-1:], weight, bias, 1e-6)


def strides(twin, prefix):
  """(name, stride) of the blocks "<prefix>1.0", ...; every stage but the first begins with 2."""
  for stage in itertools.count(1):
    names = {name.split(".")[1] for name in twin.state if name.startswith(f"{prefix}{stage}.")}
    if not names:
      return
    for i in range(len(names)):
      yield f"{prefix}{stage}.{i}", 2 if stage > 1 and i == 0 else 1


def resnet(twin, x):
  """torchvision's, or with a 3x3 stem as for CIFAR."""
  small = twin["conv1.weight"].shape[-1] == 3
  x = relu(twin.normed(x, "conv1", "bn1", 1 if small else 2))
  x = x if small else functional.max_pool2d(x, 3, 2, 1)
  for block, stride in strides(twin, "layer"):
    deep = f"{block}.conv3" in twin
    y = relu(twin.normed(x, f"{block}.conv1", f"{block}.bn1", 1 if deep else stride))
    y = twin.normed(y, f"{block}.conv2", f"{block}.bn2", stride if deep else 1)
    y = twin.normed(relu(y), f"{block}.conv3", f"{block}.bn3") if deep else y
    if f"{block}.downsample.0" in twin:
      x = twin.normed(x, f"{block}.downsample.0", f"{block}.downsample.1", stride)
    x = relu(x + y)
  return twin.dense(x.mean((2, 3)), "fc")


def preact_resnet(twin, x):
  """kuangliu's."""
  x = twin.conv(x, "conv1")
  for block, stride in strides(twin, "layer"):
    deep = f"{block}.conv3" in twin
    active = relu(twin.norm(x, f"{block}.bn1"))
    y = twin.conv(active, f"{block}.conv1", 1 if deep else stride)
    y = twin.conv(relu(twin.norm(y, f"{block}.bn2")), f"{block}.conv2", stride if deep else 1)
    y = twin.conv(relu(twin.norm(y, f"{block}.bn3")), f"{block}.conv3") if deep else y
    shortcut = f"{block}.shortcut.0"
    x = y + (twin.conv(active, shortcut, stride) if shortcut in twin else x)
  return twin.dense(x.mean((2, 3)), "linear")


def pyramidnet(twin, x):
  """Its authors'."""
  x = twin.normed(x, "conv1", "bn1")
  for block, stride in strides(twin, "layer"):
    deep = f"{block}.conv3" in twin
    y = twin.conv(twin.norm(x, f"{block}.bn1"), f"{block}.conv1", 1 if deep else stride)
    y = relu(twin.norm(y, f"{block}.bn2"))
    y = twin.normed(y, f"{block}.conv2", f"{block}.bn3", stride if deep else 1)
    y = twin.normed(relu(y), f"{block}.conv3", f"{block}.bn4") if deep else y
    x = functional.avg_pool2d(x, 2, ceil_mode=True) if stride == 2 else x
    x = y + functional.pad(x, (0, 0, 0, 0, 0, y.shape[1] - x.shape[1]))
  return twin.dense(relu(twin.norm(x, "bn_final")).mean((2, 3)), "fc")


def mobilenet_v2(twin, x):
  """torchvision's."""
  six = functional.relu6
  x = six(twin.normed(x, "features.0.0", "features.0.1", 2))
  for number in range(1, 18):
    stride = 2 if number in (2, 4, 7, 14) else 1
    block, y = f"features.{number}.conv", x
    inner = 2 if number > 1 else 1
    for i in range(inner):
      names = f"{block}.{i}.0", f"{block}.{i}.1"
      y = six(twin.normed(y, *names, stride if i == inner - 1 else 1))
    y = twin.normed(y, f"{block}.{inner}", f"{block}.{inner + 1}")
    x = x + y if stride == 1 and x.shape == y.shape else y
  x = six(twin.normed(x, "features.18.0", "features.18.1"))
  return twin.dense(x.mean((2, 3)), "classifier.1")


def mobilenet_cifar(twin, x):
  """kuangliu's."""
  x = relu(twin.normed(x, "conv1", "bn1"))
  for number in range(17):
    block, stride = f"layers.{number}", 2 if number in (3, 6, 13) else 1
    y = relu(twin.normed(x, f"{block}.conv1", f"{block}.bn1"))
    y = relu(twin.normed(y, f"{block}.conv2", f"{block}.bn2", stride))
    y = twin.normed(y, f"{block}.conv3", f"{block}.bn3")
    if f"{block}.shortcut.0" in twin:
      x = twin.normed(x, f"{block}.shortcut.0", f"{block}.shortcut.1")
    x = x + y if stride == 1 else y
  return twin.dense(relu(twin.normed(x, "conv2", "bn2")).mean((2, 3)), "linear")


def shufflenet_v2(twin, x):
  """torchvision's."""
  x = relu(twin.normed(x, "conv1.0", "conv1.1", 2))
  x = functional.max_pool2d(x, 3, 2, 1)
  for stage, count in ((2, 4), (3, 8), (4, 4)):
    for i in range(count):
      left, right, stride = f"stage{stage}.{i}.branch1", f"stage{stage}.{i}.branch2", 2 - (i > 0)
      other, y = (x, x) if i == 0 else x.chunk(2, 1)
      if i == 0:
        other = twin.normed(other, f"{left}.0", f"{left}.1", 2)
        other = relu(twin.normed(other, f"{left}.2", f"{left}.3"))
      y = relu(twin.normed(y, f"{right}.0", f"{right}.1"))
      y = twin.normed(y, f"{right}.3", f"{right}.4", stride)
      y = relu(twin.normed(y, f"{right}.5", f"{right}.6"))
      x = torch.stack([other, y], 2).flatten(1, 2)
  x = relu(twin.normed(x, "conv5.0", "conv5.1"))
  return twin.dense(x.mean((2, 3)), "fc")


def vgg(twin, x, plan="M", pool=1):
  """torchvision's, or with one linear layer; `plan`: a letter per layer, as "CNRM"."""
  for place, layer in enumerate(plan):
    name = f"features.{place}"
    if layer == "C":
      x = twin.conv(x, name)
    elif layer == "N":
      x = twin.norm(x, name)
    else:
      x = relu(x) if layer == "R" else functional.max_pool2d(x, 2)
  x = functional.adaptive_avg_pool2d(x, pool).flatten(1)
  if "classifier" in twin:
    return twin.dense(x, "classifier")
  x = relu(twin.dense(relu(twin.dense(x, "classifier.0")), "classifier.3"))
  return twin.dense(x, "classifier.6")


def vit(twin, x, heads):
  """timm's."""
  x = twin.conv(x, "patch_embed.proj", twin["patch_embed.proj.weight"].shape[-1], 0)
  x = x.flatten(2).transpose(1, 2)
  x = torch.cat([twin["cls_token"].expand(len(x), -1, -1), x], 1) + twin["pos_embed"]
  for number in itertools.count():
    block = f"blocks.{number}"
    if f"{block}.norm1" not in twin:
      break
    y = twin.dense(twin.token_norm(x, f"{block}.norm1"), f"{block}.attn.qkv")
    query, key, value = y.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    y = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    x = x + twin.dense(y, f"{block}.attn.proj")
    y = twin.dense(twin.token_norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")
    x = x + twin.dense(functional.gelu(y), f"{block}.mlp.fc2")
  return twin.dense(twin.token_norm(x, "norm")[:, 0], "head")
