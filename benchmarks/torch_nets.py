"""The same training steps in PyTorch, as one would write them there. Owes nothing to rkd_jax."""

import re
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional


def conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
  layer = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
  nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
  return layer


class Block(nn.Module):
  """Pre-activation: norm, ReLU, 3x3 conv, twice; a 1x1 conv as shortcut where the shape changes."""

  def __init__(self, inputs: int, outputs: int, stride: int):
    super().__init__()
    self.norm1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, outputs, 3, stride)
    self.norm2, self.conv2 = nn.BatchNorm2d(outputs), conv(outputs, outputs, 3)
    self.shortcut = conv(inputs, outputs, 1, stride) if stride != 1 or inputs != outputs else None

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    active = functional.relu(self.norm1(x), inplace=True)
    y = functional.relu(self.norm2(self.conv1(active)), inplace=True)
    return (x if self.shortcut is None else self.shortcut(active)) + self.conv2(y)


class WideResNet(nn.Module):
  """WRN-depth-widen for pixels [B, 3, H, W] in [0, 1], which it normalises itself."""

  mean: torch.Tensor
  std: torch.Tensor

  def __init__(self, depth: int, widen: int, classes: int, mean, std):
    super().__init__()
    self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
    self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
    self.conv, width = conv(3, 16, 3), 16
    for stage in range(3):
      for i in range((depth - 4) // 6):
        block = Block(width, 16 * 2**stage * widen, 2 if stage and not i else 1)
        self.add_module(f"stage{stage + 1}_block{i}", block)
        width = 16 * 2**stage * widen
    self.blocks = [module for module in self.children() if isinstance(module, Block)]
    self.norm, self.head = nn.BatchNorm2d(width), nn.Linear(width, classes)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    x = self.conv((x - self.mean) / self.std)
    for block in self.blocks:
      x = block(x)
    return self.head(functional.relu(self.norm(x), inplace=True).mean((2, 3)))


def build(name: str, mean, std) -> WideResNet | None:
  """ "wideresnet-16-2" -> the network for ten classes; None for what is not written here."""
  found = re.fullmatch(r"wideresnet-(\d+)-(\d+)", name)
  return WideResNet(int(found[1]), int(found[2]), 10, mean, std) if found else None


def augment(images: torch.Tensor, margin: int) -> torch.Tensor:
  """Mirrors and pads by `margin` and crops each of images [B, C, H, W] at random."""
  batch, _, height, width = images.shape
  device = images.device
  images = functional.pad(images, (margin,) * 4).permute(0, 2, 3, 1)
  low = torch.randint(0, 2 * margin + 1, (2, batch, 1), device=device)
  rows = low[0] + torch.arange(height, device=device)
  columns = torch.arange(width, device=device)
  mirrored = torch.rand(batch, 1, device=device) < 0.5
  columns = low[1] + torch.where(mirrored, width - 1 - columns, columns)
  picked = images[
    torch.arange(batch, device=device)[:, None, None], rows[:, :, None], columns[:, None]
  ]
  return picked.permute(0, 3, 1, 2)


def kd_loss(logits, teacher, labels, temperature: float, alpha: float) -> torch.Tensor:
  """(1 - alpha) CE + alpha T^2 KL(teacher || student), the mean over the batch."""
  soft, wanted = (functional.log_softmax(x.float() / temperature, 1) for x in (logits, teacher))
  divergence = functional.kl_div(soft, wanted, reduction="batchmean", log_target=True)
  hard = functional.cross_entropy(logits.float(), labels)
  return (1 - alpha) * hard + alpha * temperature**2 * divergence


class Cell:
  """A student with its optimiser, its teacher if there is one, and the data on the device.

  Args:
    images, labels: uint8[N, H, W, C], int[N].
    dtype: "float32", or "bfloat16" for autocast.
    last: whether tensors lie in memory as channels_last (NHWC).
  """

  def __init__(
    self, teacher: nn.Module | None, student: nn.Module, images: np.ndarray, labels: np.ndarray,
    batch: int, margin: int, dtype: str, last: bool, temperature: float = 4.0, alpha: float = 0.9,
  ):  # fmt: skip
    self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    self.format = torch.channels_last if last else torch.contiguous_format
    place = {"device": self.device, "memory_format": self.format}
    self.student = student.to(**place).train()
    self.teacher = teacher and teacher.to(**place).eval()
    self.images = torch.from_numpy(images).permute(0, 3, 1, 2).to(self.device).contiguous()
    self.labels = torch.from_numpy(labels).long().to(self.device)
    self.batch, self.margin, self.dtype = batch, margin, getattr(torch, dtype)
    self.temperature, self.alpha = temperature, alpha
    self.optimizer = torch.optim.SGD(
      student.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 100_000)
    self.order = torch.randperm(len(labels), device=self.device)

  def step(self, number: int) -> torch.Tensor:
    """One update -> float32[2] on the device: loss, and the share of answers as wanted."""
    first = number * self.batch % (len(self.order) - self.batch + 1)
    rows = self.order[first : first + self.batch]
    images = augment(self.images[rows].float() / 255, self.margin)
    images, labels = images.contiguous(memory_format=self.format), self.labels[rows]
    with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
      teacher = None
      if self.teacher is not None:
        with torch.inference_mode():
          teacher = self.teacher(images)
      logits = self.student(images)
    if teacher is None:
      loss, wanted = functional.cross_entropy(logits.float(), labels), labels
    else:
      loss = kd_loss(logits, teacher, labels, self.temperature, self.alpha)
      wanted = teacher.argmax(1)
    self.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    self.optimizer.step()
    self.schedule.step()
    return torch.stack([loss.detach(), (logits.detach().argmax(1) == wanted).float().mean()])

  def run(self, steps: int) -> float:
    """Seconds of so many steps, their metrics summed on the device."""
    total = torch.zeros(2, device=self.device)
    self.wait()
    began = time.perf_counter()
    for number in range(steps):
      total += self.step(number)
    self.wait()
    return time.perf_counter() - began

  def wait(self) -> None:
    if self.device.type == "cuda":
      torch.cuda.synchronize()
