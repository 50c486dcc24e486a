"""State dicts as other people's code names them become our networks, with the same logits."""

import functools
import pathlib
import sys

import jax
import numpy as np
import pytest
from flax import serialization, traverse_util

from rkd_jax import interop, networks
from rkd_jax.errors import UserError
from rkd_jax.interop import layout
from rkd_jax.interop.recognition import recognised
from rkd_jax.models.network import Network

torch = pytest.importorskip("torch")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "models"))

import torch_families as own  # noqa: E402
import torch_names as names  # noqa: E402

MODULES = {  # (a network in PyTorch, what it is called here, whose it is)
  "akamaster": (
    lambda: own.Residual((16, 16, 32, 64), (1, 1, 1), "A", "linear", 10), "resnet-8", "akamaster",
  ),
  "akamaster-B": (
    lambda: own.Residual((16, 16, 32, 64), (1, 1, 1), "shortcut", "linear", 7),
    "resnet-8-shortcut=B", "akamaster",
  ),
  "chenyaofo": (
    lambda: own.Residual((16, 16, 32, 64), (1, 1, 1), "downsample", "fc", 100),
    "resnet-8-shortcut=B", "chenyaofo",
  ),
  "resnet8x4": (
    lambda: own.Residual((4, 8, 16, 32), (1, 1, 1), "downsample", "fc", 100),
    "resnet-8-width=8-shortcut=B-stem=4", "RepDistiller",
  ),
  "kuangliu": (
    lambda: own.Residual((8, 8, 16, 32, 64), (2, 2, 2, 2), "shortcut", "linear", 10),
    "imagenet_resnet-18-width=8-stem=cifar", "kuangliu",
  ),
  "weiaicunzai": (lambda: own.Wei(8, 100), "imagenet_resnet-18-width=8-stem=cifar", "weiaicunzai"),
  "wrn": (lambda: own.Wide(2, 10), "wideresnet-10-2", "xternalz"),
  "vgg-blocks": (lambda: own.BlockVGG(8, 100), "vgg-13-pools=3-width=8", "RepDistiller"),
  "vgg-hidden": (
    lambda: own.list_vgg((1, 1, 2, 2, 2), 8, 24, 10), "vgg-11-norm=1-hidden=24-pool=1-width=8",
    "chenyaofo",
  ),
  "mobile-cifar": (lambda: own.mobile(False, 10), "mobilenet_v2-0.5-variant=cifar", "chenyaofo"),
  "mobile-half": (
    lambda: own.mobile(True, 100), "mobilenet_v2-0.5-variant=distiller", "RepDistiller",
  ),
  "shuffle": (lambda: own.shuffle(3, 10), "shufflenet_v2-0.5-stem=cifar", "kuangliu"),
  "shuffle-pointwise": (
    lambda: own.shuffle(1, 100), "shufflenet_v2-0.5-stem=pointwise", "RepDistiller",
  ),
  "vit": (lambda: own.ViT(64, 32, 16, 10), "vit-64-2-16", "torchvision"),
  "vit-apart": (lambda: own.HuggingFaceViT(128, 32, 16, 10), "vit-128-2-16", "Hugging Face"),
}  # fmt: skip


def saved(tmp_path, state, name="model.pth"):
  torch.save(state, tmp_path / name)
  return interop.read(tmp_path / name)


def logits(found, images):
  side, channels = found.side or images.shape[1], images.shape[-1]
  module = networks.module(found.network, classes=found.classes)
  network = Network(module, (side, side, channels), (0.0,) * channels, (1.0,) * channels)
  run = jax.jit(lambda v, x: network.apply(v, x, train=False)[0].logits)
  options = {"xla_backend_optimization_level": 0}  # compiled in half the time
  return run.lower(found.variables, images).compile(compiler_options=options)(
    found.variables, images
  )


def close(actual, expected):
  scale = np.abs(expected).max()
  np.testing.assert_allclose(actual / scale, expected / scale, 0, 1e-4)


@pytest.mark.parametrize("case", MODULES)
def test_modules(case, tmp_path):
  make, name, family = MODULES[case]
  model = own.randomised(make())
  found = interop.convert(saved(tmp_path, model.state_dict()))
  assert found.network == name and family in found.family
  images = np.random.default_rng(0).uniform(-1, 1, (3, 32, 32, 3)).astype("float32")
  with torch.no_grad():
    expected = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
  assert found.classes == expected.shape[1]
  close(logits(found, images), expected)


def test_a_pool_after_a_small_stem_is_another_network(tmp_path):
  """huyvnphan's: its tensors do not tell it from timm's without the pool, so both are named."""
  widths = (4, 4, 8, 16, 32)
  model = own.randomised(own.Residual(widths, (2, 2, 2, 2), "downsample", "fc", 10, pooled=True))
  checkpoint = saved(tmp_path, model.state_dict())
  pooled = "imagenet_resnet-18-width=4-stem=pooled"
  assert interop.convert(checkpoint).others == (pooled,)
  found = interop.convert(checkpoint, pooled)
  images = np.random.default_rng(0).uniform(-1, 1, (3, 32, 32, 3)).astype("float32")
  with torch.no_grad():
    expected = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
  close(logits(found, images), expected)


JEONSWORLD = (
  ("vit.embeddings.patch_embeddings.projection", "transformer.embeddings.patch_embeddings"),
  ("vit.embeddings", "transformer.embeddings"),
  ("vit.encoder.layer.", "transformer.encoder.layer."),
  ("vit.layernorm", "transformer.encoder.encoder_norm"), ("classifier", "head"),
  ("attention.attention", "attn"), ("attention.output.dense", "attn.out"),
  ("layernorm_before", "attention_norm"), ("layernorm_after", "ffn_norm"),
  ("intermediate.dense", "ffn.fc1"), (".output.dense", ".ffn.fc2"),
)  # fmt: skip
TRANSFORMERS5 = (
  ("vit.encoder.layer.", "vit.layers."), ("attention.attention.query", "attention.q_proj"),
  ("attention.attention.key", "attention.k_proj"),
  ("attention.attention.value", "attention.v_proj"),
  ("attention.output.dense", "attention.o_proj"), ("intermediate.dense", "mlp.fc1"),
  (".output.dense", ".mlp.fc2"),
)  # fmt: skip


def same(one, other):
  """Whether two trees of variables have the same numbers."""
  return all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))


@pytest.mark.parametrize("words", [JEONSWORLD, TRANSFORMERS5])
def test_the_same_vit_in_other_words(words, tmp_path):
  tensors = own.randomised(own.HuggingFaceViT(128, 32, 16, 10)).state_dict()
  wanted = interop.convert(saved(tmp_path, tensors))
  other = {functools.reduce(lambda n, w: n.replace(*w), words, n): t for n, t in tensors.items()}
  assert set(other) != set(tensors)
  found = interop.convert(saved(tmp_path, other))
  assert (found.network, found.side, found.classes) == (wanted.network, 32, 10)
  assert same(found.variables, wanted.variables)
  q, k, v = (
    tensors[f"vit.encoder.layer.1.attention.attention.{x}.weight"]
    for x in ("query", "key", "value")
  )
  joint = found.variables["params"]["stage2_block0"]["qkv"]["kernel"]
  assert np.array_equal(joint, torch.cat([q, k, v]).T.numpy())


def test_dense_layers_that_timm_keeps_as_convolutions(tmp_path):
  name = "vgg-11-norm=0-hidden=12-pool=7-width=4"
  values = ours(name)
  tensors = state(values, names.vgg)
  words = {"classifier.0": "pre_logits.fc1", "classifier.3": "pre_logits.fc2"}
  words |= {"classifier.6": "head.fc"}
  for old, new in words.items():
    weight, bias = tensors.pop(f"{old}.weight"), tensors.pop(f"{old}.bias")
    side = 7 if new == "pre_logits.fc1" else 1
    tensors[f"{new}.weight"] = weight if new == "head.fc" else weight.unflatten(1, (-1, side, side))
    tensors[f"{new}.bias"] = bias
  found = interop.convert(saved(tmp_path, tensors))
  assert found.network == name and found.family == "timm's VGG" and same(found.variables, values)


def huggingface(values):
  """Hugging Face's names of a ResNet."""
  first = "resnet.embedder.embedder"
  found = {f"{first}.convolution": "conv", f"{first}.normalization": "norm", "classifier.1": "head"}
  for stage, block, path in names.blocks(names.layers_of(values)):
    theirs = f"resnet.encoder.stages.{stage}.layers.{block}"
    for i in range(3):
      found[f"{theirs}.layer.{i}.convolution"] = f"{path}/conv{i + 1}"
      found[f"{theirs}.layer.{i}.normalization"] = f"{path}/norm{i + 1}"
    found[f"{theirs}.shortcut.convolution"] = f"{path}/shortcut"
    found[f"{theirs}.shortcut.normalization"] = f"{path}/shortcut_norm"
  return found


def timm_mobile(values):
  """timm's names of a MobileNetV2, from torchvision's."""
  rows = [(row, i) for row, count in enumerate((1, 2, 3, 4, 3, 3, 1)) for i in range(count)]
  found = {"conv_stem": "conv", "bn1": "norm", "classifier": "head"}
  found |= {"conv_head": "stage4_last", "bn2": "stage4_last_norm"}
  inner = ["conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3"]
  blocks = names.blocks(names.layers_of(values))
  for (row, i), (*_, path) in zip(rows, blocks, strict=True):
    mine = ["expand", "expand_norm", "depthwise", "depthwise_norm", "project", "project_norm"]
    theirs = inner if row else ["", "", "conv_dw", "bn1", "conv_pw", "bn2"]
    found |= {f"blocks.{row}.{i}.{t}": f"{path}/{m}" for t, m in zip(theirs, mine, strict=True)}
  return found


kuangliu = functools.partial(names.residual, shortcut="shortcut", head="linear")
TWINS = {  # (a network of ours, its names there): the logits are compared in tests/models
  "resnet50-2": ("imagenet_resnet-50-2-width=4", names.residual),
  "resnet34-huggingface": ("imagenet_resnet-34-width=4", huggingface),
  "resnet50-huggingface": ("imagenet_resnet-50-width=4", huggingface),
  "resnet101": ("imagenet_resnet-101-width=8", names.residual),
  "resnet34-cifar": ("imagenet_resnet-34-width=4-stem=cifar", kuangliu),
  "preact18": ("preact_resnet-18-width=4", kuangliu),
  "preact50": ("preact_resnet-50-width=4", kuangliu),
  "pyramid": ("pyramidnet-14-10", names.pyramid),
  "pyramid-bottleneck": ("pyramidnet-20-12-block=bottleneck", names.pyramid),
  "mobile": ("mobilenet_v2-0.25-variant=imagenet", names.mobile),
  "mobile-kuangliu": ("mobilenet_v2-variant=kuangliu", names.mobile_cifar),
  "shuffle": ("shufflenet_v2-stem=imagenet", names.shuffle),
  "vgg11": ("vgg-11-norm=0-hidden=12-pool=7-width=4", names.vgg),
  "vgg16": ("vgg-16-width=4", names.vgg),
  "vit": ("vit-64-3-8", names.vit),
  "mobile-timm": ("mobilenet_v2-variant=imagenet", timm_mobile),
}


def ours(name, classes=7, side=32):
  """Random variables of one of our networks."""
  rng = np.random.default_rng(0)
  shapes = layout.expected(name, classes, 3, side)  # which the conversion then need not trace again
  return traverse_util.unflatten_dict(
    {
      tuple(leaf.split("/")): rng.uniform(0.5, 1, shape).astype("float32")
      for leaf, shape in shapes.items()
    }
  )


def state(values, named):
  return {n: torch.from_numpy(leaf) for n, leaf in names.to_torch(values, named(values)).items()}


@pytest.mark.parametrize("case", TWINS)
def test_names(case, tmp_path):
  name, named = TWINS[case]
  values = ours(name)
  tensors = state(values, named) | {"bn1.num_batches_tracked": torch.tensor(7)}
  found = interop.convert(saved(tmp_path, tensors))
  assert (found.network, found.classes) == (name, 7)
  for (path, leaf), (_, expected) in zip(
    jax.tree_util.tree_leaves_with_path(found.variables),
    jax.tree_util.tree_leaves_with_path(values),
    strict=True,
  ):
    assert leaf.dtype == np.float32 and np.array_equal(leaf, expected), path


# What stands around a state dict.

SMALL = "resnet-8-shortcut=B"


@pytest.fixture(scope="module")
def small():
  return state(ours(SMALL, 10), names.residual)


def prefixed(tensors, prefix):
  return {prefix + name: tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
  ("wrap", "place"),
  [
    (lambda s: prefixed(s, "module."), "without the prefix 'module.'"),
    (lambda s: prefixed(s, "_orig_mod.module."), "without the prefix '_orig_mod.module.'"),
    (lambda s: {"net": s, "acc": 95.1, "epoch": 3}, "under 'net'"),
    (lambda s: {"state_dict": prefixed(s, "model.")}, "under 'state_dict', without"),
    (lambda s: {"model": {"net": s}, "x": torch.zeros(3)}, "under 'model/net'"),
    (lambda s: {"state_dict": s, "state_dict_ema": prefixed(s, "module.")}, "'state_dict_ema'"),
    (lambda s: prefixed(s, "model.") | prefixed(s, "ema."), "prefix 'ema.'"),
    (lambda s: {"model": s, "optimizer": {"state": {0: {"exp_avg": torch.ones(4)}}}}, "'model'"),
    (lambda s: prefixed(s, "1."), "without the prefix '1.'"),
    (lambda s: prefixed(s, "student.encoder."), "without the prefix 'student.encoder.'"),
    (
      lambda s: {
        n.replace("layer1.", "layer1.module.").replace("layer2.", "layer2._orig_mod."): t
        for n, t in s.items()
      },
      "at the top",
    ),
    (lambda s: {"n_averaged": torch.tensor(4), **prefixed(s, "module.")}, "'module.'"),
  ],
)
def test_wrappers(wrap, place, small, tmp_path):
  found = interop.convert(saved(tmp_path, wrap(small)))
  assert found.network == SMALL and place in found.place


def test_what_is_averaged_is_taken(small, tmp_path):
  twice = {name: 2 * tensor for name, tensor in small.items()}
  found = interop.convert(saved(tmp_path, {"model": small, "ema": twice}))
  head = found.variables["params"]["head"]["bias"]
  assert np.array_equal(head, 2 * small["fc.bias"].numpy())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_floats(dtype, small, tmp_path):
  other = {name: tensor.to(getattr(torch, dtype)) for name, tensor in small.items()}
  found = interop.convert(saved(tmp_path, other))
  assert {leaf.dtype.name for leaf in jax.tree.leaves(found.variables)} == {"float32"}


# What does not fit.


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda s: {n: t for n, t in s.items() if n != "layer2.0.bn1.bias"}, "1 missing: layer2.0.bn1"),
    (lambda s: s | {"extra.weight": torch.ones(2)}, "1 not expected: extra.weight"),
    (
      lambda s: s | {"layer1.0.conv2.weight": torch.ones(16, 16, 1, 1)},
      "1 of another shape: layer1.0.conv2.weight is 16x16x1x1, not 16x16x3x3",
    ),
    (lambda s: s | {"fc.weight": torch.ones(10, 64, 2)}, "fc.weight is 10x64x2, not 10x64"),
  ],
)
def test_the_nearest_and_the_difference(change, message, small, tmp_path):
  checkpoint = saved(tmp_path, change(small))
  with pytest.raises(UserError, match=f"nearest is {SMALL}.*{message}.*my_package.my_model"):
    interop.convert(checkpoint)
  assert recognised(checkpoint) is None


def test_what_resembles_nothing(tmp_path):
  checkpoint = saved(tmp_path, {"a.weight": torch.ones(3, 3)})
  with pytest.raises(UserError, match=r"no known network .*Known are torchvision's.*KEYS|own"):
    interop.convert(checkpoint)


@pytest.mark.parametrize(
  ("tensor", "message"),
  [
    (torch.full((10,), torch.nan), "'fc.bias' holds NaN"),
    (torch.ones(10, dtype=torch.int8), "'fc.bias' is int8.*quantised"),
  ],
)
def test_numbers_that_are_no_weights(tensor, message, small, tmp_path):
  with pytest.raises(UserError, match=message):
    interop.convert(saved(tmp_path, small | {"fc.bias": tensor}))


@pytest.mark.parametrize(
  "shapes",
  [
    {"conv1.weight": (), "bn1.weight": (1,), "layer1.0.conv1.weight": (0, 0), "fc.weight": (2, 2)},
    {"features.0.weight": (0, 3, 3, 3), "classifier.weight": (10, 0)},
    {"patch_embed.proj.weight": (10**6, 3, 0, 0), "cls_token": (1,), "head.weight": (5, 5)},
    {f"layer{s}.{b}.conv1.weight": (9, 9, 3, 3) for s in (1, 2, 3) for b in range(2000)}
    | {"bn1.weight": (4,), "conv1.weight": (4, 3, 3, 3), "fc.weight": (10, 4)},
    {f"layer{s}.0.conv1.weight": (3, 3, 3, 3) for s in (1, 2, 3)}
    | {"bn_final.weight": (4,), "fc.weight": (10, 4), "bn1.weight": (4,)},
    {"block0.0.weight": (70000, 3, 3, 3), "classifier.weight": (10, 4)},
  ],
)
def test_odd_shapes_are_not_recognised(shapes):
  assert interop.recognise(shapes) is None


def test_which_of_two_is_meant(tmp_path):
  checkpoint = saved(tmp_path, state(ours("mobilenet_v2-0.25-variant=cifar", 10), names.mobile))
  found = interop.convert(checkpoint)
  assert found.network.endswith("cifar") and found.others == ("mobilenet_v2-0.25-variant=imagenet",)
  assert interop.convert(checkpoint, found.others[0]).network == found.others[0]
  assert found.normalisation == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))


def test_backdoorbench_says_that_it_is(tmp_path):
  values = ours("preact_resnet-18-width=4", 43)
  own = {"model_name": "preactresnet18", "num_classes": 43, "model": state(values, kuangliu)}
  assert interop.convert(saved(tmp_path, own)).normalisation == ((0.0,) * 3, (1.0,) * 3)
  assert interop.convert(saved(tmp_path, {"model": own["model"]})).normalisation is None


def test_backdoorbench_takes_torchvisions_strides(tmp_path):
  tensors = state(ours("mobilenet_v2-0.25-variant=imagenet", 10), names.mobile)
  container = {"model_name": "mobilenet_v2", "num_classes": 10, "model": tensors}
  found = interop.convert(saved(tmp_path, container))
  assert found.network == "mobilenet_v2-0.25-variant=imagenet"
  assert found.others == ("mobilenet_v2-0.25-variant=cifar",)


def test_another_hidden_layer_is_anothers_normalisation(tmp_path):
  for pool, known in ((1, True), (7, False)):
    values = ours(f"vgg-11-norm=0-hidden=12-pool={pool}-width=4", 10)
    found = interop.convert(saved(tmp_path, state(values, names.vgg)))
    assert (found.normalisation is not None) == known


# What Flax saved.


@pytest.mark.parametrize("above", ["", "state"])
def test_variables_of_flax(above, tmp_path):
  values = ours("resnet-8", 10)
  path, tree = tmp_path / "a.msgpack", {"step": 3, "opt_state": {"mu": values["params"]}} | values
  path.write_bytes(serialization.to_bytes({above: tree} if above else tree))
  found = interop.convert(interop.read(path), "resnet-8")
  assert (found.network, found.classes, found.side) == ("resnet-8", 10, None)
  assert same(found.variables, values) and (above or "top") in found.place
  with pytest.raises(UserError, match=r"do not say which .*network=resnet-20"):
    interop.convert(interop.read(path))
  with pytest.raises(UserError, match=r"not those of resnet-14 .*30 missing"):
    interop.convert(interop.read(path), "resnet-14")


def test_recognition_in_a_line(small):
  said = interop.recognise({name: tuple(tensor.shape) for name, tensor in small.items()})
  assert said.startswith("resnet-8-shortcut=B, chenyaofo's or RepDistiller's ResNet, 10 classes")
  assert "mean (0.4914" in said
