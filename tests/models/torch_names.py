"""What common PyTorch code calls our layers: {its name: our path}, as rules to convert by."""

import itertools

import numpy as np
from flax import traverse_util

LEAVES = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def to_torch(values, names):
  """Our variables as a PyTorch state dict of numpy arrays, without the counts of batches."""
  ours = {path: name for name, path in names.items()}
  state = {}
  for collection in ("params", "batch_stats"):
    for path, leaf in traverse_util.flatten_dict(values.get(collection, {})).items():
      layer, leaf = "/".join(path), np.asarray(leaf)
      if layer not in ours:  # else a tensor that belongs to no layer
        layer, leaf_name = "/".join(path[:-1]), path[-1]
        name, leaf = f"{ours[layer]}.{LEAVES.get(leaf_name, 'weight')}", _turned(leaf_name, leaf)
      else:
        name = ours[layer]
      state[name] = np.ascontiguousarray(leaf)
  return state


def _turned(name, leaf):
  """Kernels [h, w, in, out] and [in, out] as PyTorch's."""
  if name != "kernel":
    return leaf
  return leaf.T if leaf.ndim == 2 else leaf.transpose(3, 2, 0, 1)


def blocks(module_names):
  """((stage number from 0, block number, path), ...) of the paths "stage1_block0", ..."""
  paths = sorted({path.split("/")[0] for path in module_names if "_block" in path})
  apart = [(path, *path.removeprefix("stage").split("_block")) for path in paths]
  return sorted((int(stage) - 1, int(block), path) for path, stage, block in apart)


def layers_of(values):
  """The paths of all layers, in no order."""
  flat = traverse_util.flatten_dict(values["params"])
  return {"/".join(path[:-1]) for path in flat}


def residual(values, shortcut="downsample", head="fc"):
  """torchvision's ResNets; with other words for the last two kuangliu's, and his PreActResNets."""
  names = {"conv1": "conv", "bn1": "norm", head: "head"}
  for stage, block, path in blocks(layers_of(values)):
    theirs = f"layer{stage + 1}.{block}"
    for i in range(1, 5):
      names |= {f"{theirs}.conv{i}": f"{path}/conv{i}", f"{theirs}.bn{i}": f"{path}/norm{i}"}
    names[f"{theirs}.{shortcut}.0"] = f"{path}/shortcut"
    names[f"{theirs}.{shortcut}.1"] = f"{path}/shortcut_norm"
  return names


def pyramid(values):
  """The PyramidNet authors' PyTorch code."""
  return residual(values) | {"bn1": "stem_norm", "bn_final": "norm"}


def mobile(values):
  """torchvision's MobileNetV2."""
  known, inner = layers_of(values), ("expand", "depthwise", "project")
  names = {"features.0.0": "conv", "features.0.1": "norm", "classifier.1": "head"}
  names |= {"features.18.0": "stage4_last", "features.18.1": "stage4_last_norm"}
  for number, (*_, path) in enumerate(blocks(known), start=1):
    found = [f"{path}/{name}" for name in inner if f"{path}/{name}" in known]
    for i, ours in enumerate(found):
      first = f"features.{number}.conv.{i}"
      second = f"features.{number}.conv.{i + 1}"
      last = ours.endswith("project")  # a layer of its own; the others are in a pair
      names |= {first if last else f"{first}.0": ours}
      names |= {second if last else f"{first}.1": f"{ours}_norm"}
  return names


def mobile_cifar(values):
  """kuangliu's MobileNetV2."""
  names = {"conv1": "conv", "bn1": "norm", "linear": "head"}
  names |= {"conv2": "stage4_last", "bn2": "stage4_last_norm"}
  for number, (*_, path) in enumerate(blocks(layers_of(values))):
    for i, ours in enumerate(("expand", "depthwise", "project"), start=1):
      names[f"layers.{number}.conv{i}"] = f"{path}/{ours}"
      names[f"layers.{number}.bn{i}"] = f"{path}/{ours}_norm"
    names[f"layers.{number}.shortcut.0"] = f"{path}/shortcut"
    names[f"layers.{number}.shortcut.1"] = f"{path}/shortcut_norm"
  return names


LEFT = ("left_depthwise", "left_depthwise_norm", "left_conv", "left_norm")
RIGHT = ("conv1", "norm1", "", "depthwise", "depthwise_norm", "conv2", "norm2")


def shuffle(values):
  """torchvision's ShuffleNetV2."""
  names = {"conv1.0": "conv", "conv1.1": "norm", "fc": "head"}
  names |= {"conv5.0": "stage4_last", "conv5.1": "stage4_last_norm"}
  for stage, block, path in blocks(layers_of(values)):
    for branch, layers in (("branch1", LEFT), ("branch2", RIGHT)):
      for i, ours in enumerate(layers):
        names[f"stage{stage + 1}.{block}.{branch}.{i}"] = f"{path}/{ours}"
  return names


def vgg(values, pools=5):
  """torchvision's VGG, and with a head of one layer kuangliu's."""
  known, names, place = layers_of(values), {}, itertools.count()
  for stage in range(1, 6):
    for i in range(sum(path.startswith(f"stage{stage}_conv") for path in known)):
      names[f"features.{next(place)}"] = f"stage{stage}_conv{i}"
      if f"stage{stage}_norm{i}" in known:
        names[f"features.{next(place)}"] = f"stage{stage}_norm{i}"
      next(place)  # the ReLU
    if stage <= pools:
      next(place)
  if "stage5_dense0" not in known:
    return names | {"classifier": "head"}
  dense = {"classifier.0": "stage5_dense0", "classifier.3": "stage5_dense1"}
  return names | dense | {"classifier.6": "head"}


def vit(values):
  """timm's ViT."""
  names = {"patch_embed.proj": "embed", "cls_token": "class_token", "pos_embed": "place"}
  names |= {"norm": "norm", "head": "head"}
  inner = {"norm1": "norm1", "attn.qkv": "qkv", "attn.proj": "out", "norm2": "norm2"}
  inner |= {"mlp.fc1": "dense1", "mlp.fc2": "dense2"}
  for number, (*_, path) in enumerate(blocks(layers_of(values))):
    names |= {f"blocks.{number}.{name}": f"{path}/{ours}" for name, ours in inner.items()}
  return names
