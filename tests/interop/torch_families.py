"""Networks in PyTorch's modules under the names that other people's code gives their layers.

Written from what their state dicts hold, each as small as its family can be. Forward passes are in
evaluation mode only.
"""

import torch
from torch import nn

relu, pool = torch.relu, nn.functional.adaptive_avg_pool2d


def conv(inputs, outputs, size=3, stride=1, groups=1, bias=False):
  return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=bias)


def norm(channels):
  return nn.BatchNorm2d(channels)


def flat(x):
  return pool(x, 1).flatten(1)


class Basic(nn.Module):
  """`style`: what the shortcut is called, or "A" for one without parameters."""

  def __init__(self, inputs, outputs, stride, style):
    super().__init__()
    self.conv1, self.bn1 = conv(inputs, outputs, 3, stride), norm(outputs)
    self.conv2, self.bn2 = conv(outputs, outputs), norm(outputs)
    self.changes, self.style = stride > 1 or inputs != outputs, style
    if self.changes and style != "A":
      setattr(self, style, nn.Sequential(conv(inputs, outputs, 1, stride), norm(outputs)))

  def forward(self, x):
    y = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
    if self.changes and self.style == "A":
      half = (y.shape[1] - x.shape[1]) // 2
      x = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, half))
    elif self.changes:
      x = getattr(self, self.style)(x)
    return relu(x + y)


class Residual(nn.Module):
  """ResNets for CIFAR of three stages, and kuangliu's of four; `pooled`: huyvnphan's pool."""

  def __init__(self, widths, blocks, style, head, classes, pooled=False):
    super().__init__()
    self.pooled = pooled
    self.conv1, self.bn1, self.head, inputs = conv(3, widths[0]), norm(widths[0]), head, widths[0]
    self.stages = [f"layer{i + 1}" for i in range(len(blocks))]
    for i, (outputs, count) in enumerate(zip(widths[1:], blocks, strict=True)):
      layers = []
      for k in range(count):
        layers.append(Basic(inputs, outputs, 2 if i and not k else 1, style))
        inputs = outputs
      setattr(self, self.stages[i], nn.Sequential(*layers))
    setattr(self, head, nn.Linear(inputs, classes))

  def forward(self, x):
    x = relu(self.bn1(self.conv1(x)))
    x = nn.functional.max_pool2d(x, 3, 2, 1) if self.pooled else x
    for stage in self.stages:
      x = getattr(self, stage)(x)
    return getattr(self, self.head)(flat(x))


class WeiBlock(nn.Module):
  def __init__(self, inputs, outputs, stride):
    super().__init__()
    self.residual_function = nn.Sequential(
      conv(inputs, outputs, 3, stride), norm(outputs), nn.ReLU(), conv(outputs, outputs),
      norm(outputs),
    )  # fmt: skip
    self.shortcut = nn.Sequential()
    if stride > 1 or inputs != outputs:
      self.shortcut = nn.Sequential(conv(inputs, outputs, 1, stride), norm(outputs))

  def forward(self, x):
    return relu(self.residual_function(x) + self.shortcut(x))


class Wei(nn.Module):
  """weiaicunzai's ResNet-18."""

  def __init__(self, width, classes):
    super().__init__()
    self.conv1 = nn.Sequential(conv(3, width), norm(width), nn.ReLU())
    inputs = width
    for i in range(4):
      outputs = width * 2**i
      blocks = WeiBlock(inputs, outputs, 2 if i else 1), WeiBlock(outputs, outputs, 1)
      setattr(self, f"conv{i + 2}_x", nn.Sequential(*blocks))
      inputs = outputs
    self.fc = nn.Linear(inputs, classes)

  def forward(self, x):
    x = self.conv1(x)
    for i in range(4):
      x = getattr(self, f"conv{i + 2}_x")(x)
    return self.fc(flat(x))


class WideBlock(nn.Module):
  def __init__(self, inputs, outputs, stride):
    super().__init__()
    self.bn1, self.conv1 = norm(inputs), conv(inputs, outputs, 3, stride)
    self.bn2, self.conv2 = norm(outputs), conv(outputs, outputs)
    self.convShortcut = conv(inputs, outputs, 1, stride) if inputs != outputs else None

  def forward(self, x):
    y = relu(self.bn1(x))
    x = self.convShortcut(y) if self.convShortcut is not None else x
    return x + self.conv2(relu(self.bn2(self.conv1(y))))


class WideStage(nn.Module):
  def __init__(self, *blocks):
    super().__init__()
    self.layer = nn.Sequential(*blocks)

  def forward(self, x):
    return self.layer(x)


class Wide(nn.Module):
  """xternalz' WRN-10-widen."""

  def __init__(self, widen, classes):
    super().__init__()
    widths = 16, 16 * widen, 32 * widen, 64 * widen
    self.conv1 = conv(3, 16)
    for i in range(3):
      block = WideBlock(widths[i], widths[i + 1], 2 if i else 1)
      setattr(self, f"block{i + 1}", WideStage(block))
    self.bn1, self.fc = norm(widths[-1]), nn.Linear(widths[-1], classes)

  def forward(self, x):
    x = self.block3(self.block2(self.block1(self.conv1(x))))
    return self.fc(flat(relu(self.bn1(x))))


class BlockVGG(nn.Module):
  """RepDistiller's VGG-13, with norms."""

  def __init__(self, width, classes):
    super().__init__()
    inputs = 3
    for i in range(5):
      outputs, layers = width * min(2**i, 8), []
      for _ in range(2):
        layers += [conv(inputs, outputs, bias=True), norm(outputs), nn.ReLU()]
        inputs = outputs
      setattr(self, f"block{i}", nn.Sequential(*layers[:-1]))
    self.classifier = nn.Linear(inputs, classes)

  def forward(self, x):
    for i in range(5):
      x = relu(getattr(self, f"block{i}")(x))
      x = nn.functional.max_pool2d(x, 2) if i < 3 else x
    return self.classifier(flat(x))


def list_vgg(plan, width, hidden, classes):
  """torchvision's VGG with norms on CIFAR's images, as chenyaofo has it; `plan`: convolutions."""
  layers, inputs = [], 3
  for i, count in enumerate(plan):
    for _ in range(count):
      outputs = width * min(2**i, 8)
      layers += [conv(inputs, outputs, bias=True), norm(outputs), nn.ReLU()]
      inputs = outputs
    layers.append(nn.MaxPool2d(2))
  dense = [nn.Linear(inputs, hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, hidden)]
  head = nn.Sequential(*dense, nn.ReLU(), nn.Dropout(), nn.Linear(hidden, classes))
  return Net({"features": nn.Sequential(*layers), "classifier": head}, flatten="classifier")


class Net(nn.Module):
  """Modules one after the other, by name; pixels are averaged before `flatten`."""

  def __init__(self, parts, flatten):
    super().__init__()
    self.order, self.flatten = list(parts), flatten
    for name, part in parts.items():
      setattr(self, name, part)

  def forward(self, x):
    for name in self.order:
      x = getattr(self, name)(flat(x) if name == self.flatten else x)
    return x


ROWS = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2))
ROWS += ((6, 320, 1, 1),)


class Inverted(nn.Module):
  """`full`: RepDistiller's, which has an expansion of 1 and a list without pairs."""

  def __init__(self, inputs, outputs, stride, expansion, full):
    super().__init__()
    wide, self.adds = inputs * expansion, stride == 1 and inputs == outputs
    act = nn.ReLU if full else nn.ReLU6
    first = [conv(inputs, wide, 1), norm(wide), act()]
    middle = [conv(wide, wide, 3, stride, wide), norm(wide), act()]
    if full:
      layers = [*first, *middle]
    else:
      layers = ([nn.Sequential(*first)] if expansion > 1 else []) + [nn.Sequential(*middle)]
    self.conv = nn.Sequential(*layers, conv(wide, outputs, 1), norm(outputs))

  def forward(self, x):
    return x + self.conv(x) if self.adds else self.conv(x)


def mobile(full, classes, half=True):
  """chenyaofo's MobileNetV2 of width 0.5 (channels are multiples of 8), or RepDistiller's."""
  step, rows = 1 if full else 8, []
  inputs, act = 16, nn.ReLU if full else nn.ReLU6
  for expansion, channels, count, stride in ROWS:
    outputs, blocks = (
      max(step, channels // 2 // step * step + (channels // 2 % step > step / 2)),
      [],
    )
    outputs = 16 if channels == 24 and not full else outputs
    for i in range(count):
      blocks.append(Inverted(inputs, outputs, stride if not i else 1, expansion, full))
      inputs = outputs
    rows.append(blocks)
  stem = nn.Sequential(conv(3, 16, 3, 2 if full else 1), norm(16), act())
  last = nn.Sequential(conv(inputs, 1280, 1), norm(1280), act())
  if full:
    parts = {"conv1": stem, "blocks": nn.Sequential(*(nn.Sequential(*row) for row in rows))}
    parts |= {"conv2": last, "classifier": nn.Sequential(nn.Linear(1280, classes))}
  else:
    blocks = [block for row in rows for block in row]
    head = nn.Sequential(nn.Dropout(), nn.Linear(1280, classes))
    parts = {"features": nn.Sequential(stem, *blocks, last), "classifier": head}
  return Net(parts, flatten="classifier")


def shuffled(x, y):
  return torch.stack([x, y], 2).flatten(1, 2)


class Shuffle(nn.Module):
  """A block of kuangliu's; `down`: one that strides."""

  def __init__(self, inputs, outputs, down):
    super().__init__()
    half, self.down = outputs // 2, down
    shapes = [(half, half, 1, 1, 1), (half, half, 3, 1, half), (half, half, 1, 1, 1)]
    if down:
      shapes = [(inputs, inputs, 3, 2, inputs), (inputs, half, 1, 1, 1), (inputs, half, 1, 1, 1)]
      shapes += [(half, half, 3, 2, half), (half, half, 1, 1, 1)]
    for i, shape in enumerate(shapes, start=1):
      setattr(self, f"conv{i}", conv(*shape))
      setattr(self, f"bn{i}", norm(shape[1]))

  def layer(self, x, i):
    return getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x))

  def forward(self, x):
    if self.down:
      left, y = relu(self.layer(self.layer(x, 1), 2)), relu(self.layer(x, 3))
      return shuffled(left, relu(self.layer(self.layer(y, 4), 5)))
    left, y = x.chunk(2, 1)
    y = self.layer(relu(self.layer(y, 1)), 2)
    return shuffled(left, relu(self.layer(y, 3)))


def shuffle(stem, classes):
  """kuangliu's ShuffleNetV2 of width 0.5; with a stem of one pixel RepDistiller's."""

  def stage(inputs, outputs, count):
    blocks = [Shuffle(inputs, outputs, True)]
    return nn.Sequential(*blocks, *(Shuffle(outputs, outputs, False) for _ in range(count)))

  parts = {"conv1": conv(3, 24, stem), "bn1": norm(24), "relu": nn.ReLU()}
  parts |= {"layer1": stage(24, 48, 3), "layer2": stage(48, 96, 7), "layer3": stage(96, 192, 3)}
  parts |= {"conv2": conv(192, 1024, 1), "bn2": norm(1024), "relu2": nn.ReLU()}
  return Net(parts | {"linear": nn.Linear(1024, classes)}, flatten="linear")


class Layer(nn.Module):
  def __init__(self, width, heads):
    super().__init__()
    self.ln_1, self.ln_2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
    self.self_attention = nn.MultiheadAttention(width, heads, batch_first=True)
    self.mlp = nn.Sequential(
      nn.Linear(width, 4 * width),
      nn.GELU(),
      nn.Dropout(),
      nn.Linear(4 * width, width),
      nn.Dropout(),
    )

  def forward(self, x):
    y = self.ln_1(x)
    x = x + self.self_attention(y, y, y, need_weights=False)[0]
    return x + self.mlp(self.ln_2(x))


class ViT(nn.Module):
  """torchvision's, of 2 blocks, with its own attention module."""

  def __init__(self, width, side, patch, classes):
    super().__init__()
    self.conv_proj = nn.Conv2d(3, width, patch, patch)
    self.class_token = nn.Parameter(torch.zeros(1, 1, width))
    self.encoder, self.heads = nn.Module(), nn.Sequential()
    places = (side // patch) ** 2 + 1
    self.encoder.pos_embedding = nn.Parameter(torch.zeros(1, places, width))
    self.encoder.layers = nn.Sequential()
    for i in range(2):
      self.encoder.layers.add_module(f"encoder_layer_{i}", Layer(width, width // 64))
    self.encoder.ln = nn.LayerNorm(width, 1e-6)
    self.heads.add_module("head", nn.Linear(width, classes))

  def forward(self, x):
    x = self.conv_proj(x).flatten(2).transpose(1, 2)
    x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1) + self.encoder.pos_embedding
    return self.heads(self.encoder.ln(self.encoder.layers(x))[:, 0])


def group(**parts):
  """A module that only holds others."""
  found = nn.Module()
  for name, part in parts.items():
    setattr(found, name, part)
  return found


class HuggingFaceViT(nn.Module):
  """Hugging Face's, of 2 blocks: queries, keys and values apart."""

  def __init__(self, width, side, patch, classes):
    super().__init__()

    def layer():
      apart = group(**{name: nn.Linear(width, width) for name in ("query", "key", "value")})
      return group(
        attention=group(attention=apart, output=group(dense=nn.Linear(width, width))),
        intermediate=group(dense=nn.Linear(width, 4 * width)),
        output=group(dense=nn.Linear(4 * width, width)),
        layernorm_before=nn.LayerNorm(width, 1e-12),
        layernorm_after=nn.LayerNorm(width, 1e-12),
      )

    self.vit = group(
      embeddings=group(
        patch_embeddings=group(projection=nn.Conv2d(3, width, patch, patch)),
        cls_token=nn.Parameter(torch.zeros(1, 1, width)),
        position_embeddings=nn.Parameter(torch.zeros(1, (side // patch) ** 2 + 1, width)),
      ),
      encoder=group(layer=nn.ModuleList([layer(), layer()])),
      layernorm=nn.LayerNorm(width, 1e-12),
    )
    self.classifier, self.heads = nn.Linear(width, classes), width // 64

  def forward(self, x):
    first = self.vit.embeddings
    x = first.patch_embeddings.projection(x).flatten(2).transpose(1, 2)
    x = torch.cat([first.cls_token.expand(len(x), -1, -1), x], 1) + first.position_embeddings
    for layer in self.vit.encoder.layer:
      x = x + layer.attention.output.dense(self.attend(layer, layer.layernorm_before(x)))
      y = nn.functional.gelu(layer.intermediate.dense(layer.layernorm_after(x)))
      x = x + layer.output.dense(y)
    return self.classifier(self.vit.layernorm(x)[:, 0])

  def attend(self, layer, x):
    apart = layer.attention.attention
    parts = [
      part(x).unflatten(-1, (self.heads, 64)).transpose(1, 2)
      for part in (apart.query, apart.key, apart.value)
    ]
    return nn.functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)


def randomised(model):
  """The model in evaluation, with random norms and running statistics."""
  torch.manual_seed(0)
  with torch.no_grad():
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
      if tensor.dtype.is_floating_point and (tensor.ndim == 1 or "token" in name or "pos" in name):
        tensor.uniform_(0.5, 1.2)
  return model.eval()
