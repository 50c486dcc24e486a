"""What a family of state dicts is: names of layers here and there, and how a network is told.

Pure strings and shapes: nothing here imports JAX, so `inspect` starts fast.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]  # {a tensor's name in PyTorch: its shape there}
Rules = tuple[tuple[str, str], ...]  # ((our layer, its name there), ...); the first that fits
Normalisation = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std of pixels in [0, 1]

LEAVES = {
  "kernel": "weight",
  "scale": "weight",
  "bias": "bias",
  "mean": "running_mean",
  "var": "running_var",
}
LARGEST = 2**16  # of any number that a network's name says; what is larger is no such network
BLOCKS = 640  # of a network at most (ResNet-1202 has 600): each takes time to trace
TRACED = 8_000  # tensors of the networks that one file is held against, before no more is tried
AND = "|"  # between names on their side: tensors that ours is made of, one below the other

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR10 = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # kuangliu's: means of images' stds
CIFAR10_PIXELS = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # the std over all pixels
CIFAR100 = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
NONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
USUAL = {  # what people normalise by, tried where a teacher seems to see something else
  "ImageNet's": IMAGENET,
  "CIFAR-10's, std over pixels": CIFAR10_PIXELS,
  "CIFAR-10's, kuangliu's std": CIFAR10,
  "CIFAR-100's": CIFAR100,
  "to [-1, 1]": HALF,
  "none, [0, 1]": NONE,
}


@dataclasses.dataclass(frozen=True)
class Family:
  """Attributes:
  name: whose names these are.
  guess: shapes -> names of our networks, the likeliest first, all with tensors of these shapes;
    nothing where the names are another family's. It may err: what it says is compared.
  rules: what they call our layers, or a function of our layers that says so. `{s}` stands for a
    stage and `{b}` for a block in it; on their side also `{s0}` = s - 1, `{n}` and `{n1}`, the
    number of the block in the network from 0 and from 1, and what `place` says. Several layers
    that are one of ours have `AND` between their names.
  head: its last layer; the number of classes is its number of rows.
  stem: its first convolution; the number of channels of images is that of its columns.
  trained: {classes: normalisation} of what its authors published; others are asked for.
  place: further fields of a block, from its number in the network.
  side: pixels of an image's side, where tensors depend on it.
  """

  name: str
  guess: Callable[[Shapes], Iterable[str]]
  rules: Rules | Callable[[Iterable[str]], dict[str, str]]
  head: str
  stem: str = "conv1"
  trained: Mapping[int, Normalisation] = dataclasses.field(default_factory=dict)
  place: Callable[[int], Mapping[str, object]] = lambda _: {}
  side: Callable[[Shapes], int] = lambda _: 32


def tensors(family: Family, paths: Iterable[str]) -> dict[str, str]:
  """{our tensor: its name in PyTorch}, of paths such as "stage1_block0/conv1/kernel".

  Raises:
    KeyError: the family has no rule for one of them.
  """
  paths = list(paths)
  layers = dict.fromkeys(path.rpartition("/")[0] for path in paths)
  if callable(family.rules):
    known = family.rules(layers)
    return {p: known.get(p) or _leaf(known[p.rpartition("/")[0]], p) for p in paths}
  numbers = {block: n for n, block in enumerate(ordered(layers))}
  return {path: _tensor(family, path, numbers) for path in paths}


def _tensor(family: Family, path: str, numbers: Mapping[str, int]) -> str:
  whole = _translated(family, path, numbers)  # a tensor that belongs to no layer, or is named alone
  layer = None if whole else _translated(family, path.rpartition("/")[0], numbers)
  if not whole and not layer:
    raise KeyError(f"{family.name}: no rule for {path}")
  return whole or _leaf(layer or "", path)


def _leaf(layer: str, path: str) -> str:
  leaf = LEAVES[path.rpartition("/")[2]]
  return AND.join(f"{part}.{leaf}" for part in layer.split(AND))


def ordered(layers: Iterable[str]) -> list[str]:
  """The blocks "stage1_block0", ... of these layers, in forward order."""
  found = {layer.split("/")[0] for layer in layers if "_block" in layer}
  return sorted(found, key=lambda block: tuple(map(int, re.findall(r"\d+", block))))


def _translated(family: Family, path: str, numbers: Mapping[str, int]) -> str | None:
  n = numbers.get(path.split("/")[0], 0)
  assert not callable(family.rules)
  for ours, theirs in family.rules:
    pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[0-9]+)", ours)
    if met := re.fullmatch(pattern, path):
      fields = met.groupdict()
      before = {"s0": int(fields["s"]) - 1} if "s" in fields else {}
      return theirs.format(**fields, **before, n=n, n1=n + 1, **family.place(n))
  return None


def size(shapes: Shapes, name: str, axis: int) -> int:
  """The length of a tensor's axis; 0 where there is no such tensor or axis."""
  shape = shapes.get(name, ())
  return shape[axis] if axis < len(shape) else 0


def counts(shapes: Shapes, pattern: str) -> tuple[int, ...]:
  """How many blocks each stage has: the pattern's groups are the stage and the block."""
  found = {met.groups()[:2] for name in shapes if (met := re.match(pattern, name))}
  stages = sorted({stage for stage, _ in found}, key=lambda text: (len(text), text))
  numbers = tuple(sum(stage == one for one, _ in found) for stage in stages)
  return numbers if sum(numbers) <= BLOCKS else ()


def matcher(pattern: str) -> Callable[[str], str | None]:
  """name -> what the pattern's group is in it."""
  compiled = re.compile(pattern)

  def group(name: str) -> str | None:
    met = compiled.match(name)
    return met.group(1) if met else None

  return group


def named(kind: str, *numbers: float, **fields: object) -> list[str]:
  """[the network's name], or [] where a number cannot be meant."""
  values = [*numbers, *(v for v in fields.values() if isinstance(v, (int, float)))]
  if not all(0 <= value <= LARGEST for value in values) or not all(n > 0 for n in numbers):
    return []
  parts = [kind, *(f"{n:g}" if isinstance(n, float) else str(n) for n in numbers)]
  return ["-".join([*parts, *(f"{field}={value}" for field, value in fields.items())])]
