"""PyTorch's files are read bit-equal to torch.load(weights_only=True), and in no more memory."""

import argparse
import collections
import datetime
import decimal
import io
import pathlib
import random
import struct
import subprocess
import sys
import types
import uuid
import zipfile

import numpy as np
import pytest
from handmade import FOUR, legacy, plain, state, storage, tensor, torch_zip
from handmade import name as named

from rkd_jax.interop import RefusedError, read

torch = pytest.importorskip("torch")
# torch.load says of protocols above 2 that they might not be read
pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")

ROOT = pathlib.Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "data" / "checkpoints"
ZIP = [dict(pickle_protocol=protocol) for protocol in (2, 3, 4, 5)]
OLD = [dict(kwargs, _use_new_zipfile_serialization=False) for kwargs in (ZIP[0], ZIP[2])]
BITS = {1: "uint8", 2: "int16", 4: "int32", 8: "int64", 16: "complex128"}
NAMES = [
  "bool uint8 int8 int16 int32 int64 float16 bfloat16 float32 float64 complex64 complex128",
  "uint16 uint32 uint64 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu",
]
DTYPES = " ".join(NAMES).split()


def flat(value, path=()):
  """{name: tensor} as `read` names them, of what torch.load returns."""
  if isinstance(value, torch.Tensor):
    return {"/".join(path): value}
  pairs = value.items() if isinstance(value, dict) else enumerate(value)
  found = {}
  for key, item in pairs:
    if isinstance(item, (torch.Tensor, dict, list, tuple)):
      found |= flat(item, (*path, str(key)))
  return found


def assert_equal(found: np.ndarray, wanted):
  """Type, shape, and every bit."""
  wanted = wanted.detach()
  assert found.dtype.name == str(wanted.dtype).removeprefix("torch.")
  assert found.shape == tuple(wanted.shape) and not found.flags.writeable
  bits = wanted.contiguous().view(torch.uint8) if wanted.dim() else wanted.reshape(1)
  bits = bits.contiguous().view(torch.uint8).numpy().tobytes()
  assert found.tobytes() == bits


def assert_read(path, protocol=2):
  # weights_only knows no younger protocols; what is read here was written here
  wanted = flat(torch.load(path, weights_only=protocol == 2, map_location="cpu"))
  found = read(path)
  assert list(found.tensors) == list(wanted)
  for name, array in found.tensors.items():
    assert_equal(array, wanted[name])
  return found


def save(tmp_path, value, kwargs):
  torch.save(value, tmp_path / "model.pth", **kwargs)
  return tmp_path / "model.pth"


def values() -> dict:
  """What checkpoints hold, and what views can be."""
  base = torch.arange(60.0).reshape(3, 4, 5)
  weight = torch.nn.Parameter(torch.randn(2, 3))
  marked = torch.ones(2)
  marked.note = "something"
  ordered = collections.OrderedDict(w=weight, b=torch.zeros(2))
  ordered._metadata = collections.OrderedDict({"": {"version": 1}})
  return {
    "scalar": torch.tensor(3.5),
    "empty": torch.zeros(0, 3),
    "empty in the middle": torch.zeros(2, 0, 3),
    "transposed": base.permute(2, 0, 1),
    "slice": base[1:, ::2, 1::3],
    "row of a column": base.select(2, 4),
    "expanded": torch.ones(1, 3).expand(4, 3),
    "windows": torch.arange(9.0).unfold(0, 3, 1),
    "channels last": torch.randn(1, 3, 4, 4).contiguous(memory_format=torch.channels_last),
    "parameter": weight,
    "tied": weight,
    "with attributes": marked,
    "ordered": ordered,
    "list": [torch.ones(1), (torch.zeros(1), {"deep": torch.ones(2)})],
    7: torch.ones(1),
    "nan": torch.tensor([float("nan"), float("inf"), -0.0]),
    "epoch": 3,
    "accuracy": 91.25,
    "name": "resnet \u4e00",
    "large": 2**70,
    "negative": -5,
    "none": None,
    "true": True,
    "losses": [0.5, 0.25],
    "device": torch.device("cuda", 1),
    "size": torch.Size([1, 2]),
    "dtype": torch.float16,
    "milestones": collections.Counter({30: 1}),
    "set": {1},
  }


@pytest.mark.parametrize("kwargs", [*ZIP, *OLD])
def test_what_checkpoints_hold(tmp_path, kwargs):
  found = assert_read(save(tmp_path, values(), kwargs), kwargs["pickle_protocol"])
  assert found.kind == ("torch legacy" if kwargs in OLD else "torch zip")
  assert np.shares_memory(found.tensors["tied"], found.tensors["ordered/w"])
  assert found.metadata["epoch"] == 3 and found.metadata["accuracy"] == 91.25
  assert found.metadata["name"] == "resnet \u4e00" and found.metadata["large"] == 2**70
  assert found.metadata["losses"] == [0.5, 0.25] and found.metadata["device"] == "cuda:1"
  assert "collections.OrderedDict" in found.globals


@pytest.mark.parametrize("kwargs", [ZIP[0], ZIP[3], OLD[0]])
@pytest.mark.parametrize("name", DTYPES)
def test_every_type(tmp_path, kwargs, name):
  dtype = getattr(torch, name, None)
  if dtype is None:
    pytest.skip(f"this PyTorch has no {name}")
  if kwargs in OLD and name in NAMES[1]:
    pytest.skip("younger than the format")
  size = torch.empty(0, dtype=dtype).element_size()
  noise = torch.randint(0, 2 if name == "bool" else 256, (6 * size,), dtype=torch.uint8)
  made = noise.view(dtype).reshape(2, 3)
  found = assert_read(
    save(tmp_path, {"w": made, "t": made.t()[1:], "s": made[0, 0]}, kwargs),
    kwargs["pickle_protocol"],
  )
  assert {array.dtype.name for array in found.tensors.values()} == {name}


@pytest.mark.parametrize("kwargs", [ZIP[0], ZIP[3], OLD[0]])
def test_training_checkpoints(tmp_path, kwargs):
  model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
  optimizer = torch.optim.Adam(model.parameters())
  model(torch.ones(2, 3, 5, 5)).sum().backward()
  optimizer.step()
  schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 3])
  value = {
    "model": model.state_dict(),
    "optimizer": optimizer.state_dict(),
    "schedule": schedule.state_dict(),
    "args": argparse.Namespace(arch="resnet18", layers=[2, 2], out=pathlib.PurePosixPath("a/b")),
    "best": np.float64(91.5),
    "curve": np.arange(6.0).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3)),
    "names": np.array(["a", "b"]),
  }
  path = save(tmp_path, value, kwargs)
  found = read(path)
  for name, wanted in flat({"model": model.state_dict()}).items():
    assert_equal(found.tensors[name], wanted)
  assert found.metadata["args/arch"] == "resnet18" and found.metadata["args/layers"] == [2, 2]
  assert found.metadata["best"] == 91.5 and "array" in found.metadata["names"]
  assert np.array_equal(found.tensors["curve"], value["curve"])
  assert np.array_equal(found.tensors["fortran"], value["fortran"])
  assert "argparse.Namespace" in found.globals


@pytest.mark.parametrize("kwargs", [ZIP[0], ZIP[2], OLD[0]])
def test_what_training_leaves_beside_weights_is_noted(tmp_path, kwargs):
  value = {
    "w": torch.ones(2),
    "log": collections.defaultdict(int, {"a": 1}),
    "last": collections.deque([1, 2], maxlen=3),
    "when": [datetime.datetime(2020, 1, 2), datetime.timedelta(3), decimal.Decimal("1.5")],
    "run": uuid.UUID(int=7),
    "args": types.SimpleNamespace(lr=0.1, steps=range(3)),
    "by": {(1, "a"): 2, collections.OrderedDict: 3},
    "rng": [np.random.default_rng(0), np.random.get_state(), random.getstate()],
    "kinds": [int, str, np.float32],
  }
  found = read(save(tmp_path, value, kwargs))
  assert np.array_equal(found.tensors["w"], [1, 1])
  assert found.metadata["log/a"] == 1 and found.metadata["last/items"] == [1, 2]
  assert found.metadata["args/lr"] == 0.1 and found.metadata["run/class"] == "uuid.UUID"
  assert found.metadata["by/(1, 'a')"] == 2
  assert found.metadata["by/collections.OrderedDict"] == 3


@pytest.mark.parametrize("make", [torch_zip, legacy])
def test_settings_that_are_kinds_of_dictionaries(tmp_path, make):
  """yacs' and OmegaConf's, which Lightning and detectron2 keep; neither is installed here."""
  node = named("yacs.config", "CfgNode") + b")\x81" + state(lr=b"K\x07")[1:]
  node += state(__immutable__=b"\x89") + b"b"
  path = tmp_path / "a.pth"
  path.write_bytes(make(b"\x80\x02" + state(w=tensor(), cfg=node) + b"."))
  found = read(path)
  assert list(found.tensors) == ["w"] and found.metadata["cfg/items/lr"] == 7


class Settings:
  def __init__(self):
    self.arch = "vgg"


def test_a_class_is_noted_only_if_named(tmp_path):
  path = save(tmp_path, {"w": torch.ones(1), "s": Settings()}, {})
  with pytest.raises(RefusedError, match=rf"{__name__}\.Settings.*--opaque"):
    read(path)
  found = read(path, opaque=[f"{__name__}.Settings"])
  assert found.metadata == {"s/class": f"{__name__}.Settings", "s/arch": "vgg"}


@pytest.mark.parametrize("kwargs", [ZIP[0], ZIP[2], OLD[0]])
def test_whole_models_are_told_what_to_do(tmp_path, kwargs):
  path = save(tmp_path, torch.nn.Sequential(torch.nn.Linear(2, 2)), kwargs)
  with pytest.raises(RefusedError, match=r"whole model.*torch\.nn.*state_dict\(\)"):
    read(path)


@pytest.mark.filterwarnings("ignore")
def test_what_numpy_has_not(tmp_path):
  ones = torch.ones(2)
  for value, said in (
    (torch.quantize_per_tensor(ones, 0.1, 0, torch.qint8), "quantised"),
    (ones.to_sparse(), "sparse"),
    (torch.ones(2, device="meta"), "meta"),
    (torch.ones(2, dtype=torch.complex64).conj(), "conjugated"),
    (torch.ones(2, dtype=torch.complex32), "NumPy has not"),
  ):
    with pytest.raises(RefusedError, match=said):
      read(save(tmp_path, {"w": value}, {}))


@pytest.mark.filterwarnings("ignore")
def test_torchscript(tmp_path):
  model = torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2))
  torch.jit.save(model, tmp_path / "model.pt")
  with pytest.raises(RefusedError, match="TorchScript"):
    read(tmp_path / "model.pt")


def test_deflated_and_without_checksums(tmp_path):
  path = save(tmp_path, values(), {})
  packed = tmp_path / "packed.pth"
  with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
    for entry in old.namelist():
      new.writestr(entry, old.read(entry))
  assert_read(packed)
  torch.serialization.set_crc32_options(False)
  try:
    assert_read(save(tmp_path, values(), {}))
  finally:
    torch.serialization.set_crc32_options(True)


@pytest.mark.parametrize("make", [torch_zip, legacy])
def test_made_by_hand(tmp_path, make):
  path = tmp_path / "a.bin"
  path.write_bytes(make(plain(stored=storage(window=b"N" * (make is legacy)))))
  assert_read(path)


def test_python_2_and_big_endian(tmp_path):
  pickle = plain().replace(b"X\1\0\0\0w", b"U\1w")
  path = tmp_path / "a.th"
  big = {"0": np.frombuffer(FOUR, "<f4").astype(">f4").tobytes()}
  for data in (legacy(pickle, big, little=False), torch_zip(pickle, big, order="big")):
    path.write_bytes(data)
    assert read(path).tensors["w"].tolist() == [1, 2, 3, 4]


def test_numbers_of_python_2(tmp_path):
  kind = named("numpy", "dtype") + b"(U\x02f8K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xff"
  kind += b"J\xff\xff\xff\xffK\x00tb"
  values = [struct.pack("<d", value) for value in (91.5, -1.7)]  # one of them is UTF-8 too
  scalars = [
    named("numpy.core.multiarray", "scalar") + kind + b"U\x08" + v + b"\x86R" for v in values
  ]
  path = tmp_path / "a.th"
  path.write_bytes(torch_zip(b"\x80\x02" + state(a=scalars[0], b=scalars[1], w=tensor()) + b"."))
  assert read(path).metadata == {"a": 91.5, "b": -1.7}


def test_a_storage_that_is_part_of_another(tmp_path):
  window = b"(X\1\0\0\0vK\x01K\x02t"
  pickle = state(w=tensor(storage(window=window), shape=(2,)), all=tensor(storage(window=b"N")))
  path = tmp_path / "a.th"
  path.write_bytes(legacy(b"\x80\x02" + pickle + b"."))
  found = read(path)
  assert found.tensors["w"].tolist() == [2, 3] and found.tensors["all"].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["resnet20-cifar10-12fca82f.th", "badnets-cifar10.pth"])
def test_real_checkpoints(name):
  if not REAL.is_dir():
    pytest.skip(f"{REAL} is not here")
  found = assert_read(REAL / name)
  assert len(found.tensors) in (97, 8) and len(found.sha256) == 64


def test_a_digest_that_is_asked_for(tmp_path):
  path = save(tmp_path, {"w": torch.ones(1)}, {})
  assert read(path, sha256=read(path).sha256.upper())
  with pytest.raises(RefusedError, match="another file"):
    read(path, sha256="0" * 64)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux for the memory")
@pytest.mark.parametrize("how", ["stored", "legacy", "deflated"])
def test_memory_is_that_of_the_tensors(tmp_path, how):
  """Reading, and then looking at every number."""
  noise = torch.randint(0, 2**30, (32, 2**18), dtype=torch.int32)  # 32 MiB
  value = {str(i): row.clone() for i, row in enumerate(noise)} | {
    "all": noise[0].clone().expand(9, -1)
  }
  path = save(tmp_path, value, OLD[0] if how == "legacy" else {})
  if how == "deflated":
    buffer = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(buffer, "w", 8, compresslevel=1) as new:
      for entry in old.namelist():
        new.writestr(entry, old.read(entry))
    path.write_bytes(buffer.getvalue())
  script = (
    "import re, sys; from rkd_jax.interop import read\n"
    "status = lambda: open('/proc/self/status').read()\n"  # ru_maxrss is inherited
    "peak = lambda: 1024 * int(re.findall(r'VmHWM:\\s*(\\d+)', status())[0])\n"
    "before = peak(); found = read(sys.argv[1]); after = peak() - before\n"
    "total = sum(int(array.sum()) for array in found.tensors.values())\n"
    "print(after, peak() - before, total)"
  )
  done = subprocess.run(
    [sys.executable, "-c", script, str(path)], capture_output=True, text=True, cwd=ROOT, check=True
  )
  after, peak, total = map(int, done.stdout.split())
  size = 33 * 2**20
  assert total == sum(int(row.sum()) for row in value.values())
  assert after <= peak <= 1.2 * size
