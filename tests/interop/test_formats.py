"""Safetensors, NumPy's files, Flax's, phases of ours, parts with an index; and files of others."""

import io
import json
import os
import struct
import tarfile
import zipfile

import flax.serialization
import ml_dtypes
import numpy as np
import pytest
from handmade import PROTO, plain, torch_zip

from rkd_jax.errors import UserError
from rkd_jax.interop import RefusedError, read

TREE = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(3, ml_dtypes.bfloat16)}


def safetensors(tensors: dict, **header) -> bytes:
  """A file as its specification describes it."""
  names, at, data = {}, 0, b""
  for name, (kind, array) in tensors.items():
    raw = np.ascontiguousarray(array).tobytes()
    place = [at, at + len(raw)]
    names[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": place}
    at, data = at + len(raw), data + raw
  text = json.dumps({**names, **header}).encode()
  return struct.pack("<Q", len(text)) + text + data


GOOD = {"w": ("F32", TREE["w"]), "b": ("BF16", TREE["b"])}


def put(tmp_path, data: bytes, name="model.bin"):
  (tmp_path / name).write_bytes(data)
  return tmp_path / name


def refusal(tmp_path, data: bytes) -> str:
  with pytest.raises(RefusedError) as caught:
    read(put(tmp_path, data))
  assert str(caught.value).isascii() and str(caught.value).isprintable()
  return str(caught.value)


def assert_tree(found):
  assert found.tensors.keys() == TREE.keys()
  for name, wanted in TREE.items():
    array = found.tensors[name]
    assert array.dtype == wanted.dtype and array.shape == wanted.shape
    assert array.tobytes() == wanted.tobytes() and not array.flags.writeable


def test_safetensors(tmp_path):
  found = read(put(tmp_path, safetensors(GOOD, __metadata__={"format": "pt"}), "a.pth"))
  assert found.kind == "safetensors" and found.metadata == {"format": "pt"}
  assert_tree(found)


@pytest.mark.parametrize("begin", [0x80, 0x50, 0x93, 0x3C, 0x7B])
def test_a_length_that_begins_as_other_files_do(tmp_path, begin):
  data = safetensors(GOOD)
  size = int.from_bytes(data[:8], "little")
  longer = size + (begin - size) % 256
  data = struct.pack("<Q", longer) + data[8 : 8 + size].ljust(longer) + data[8 + size :]
  assert data[0] == begin
  assert_tree(read(put(tmp_path, data)))


def test_safetensors_of_its_own_library(tmp_path):
  library = pytest.importorskip("safetensors.numpy")
  library.save_file({"w": TREE["w"]}, tmp_path / "a.safetensors")
  assert np.array_equal(read(tmp_path / "a.safetensors").tensors["w"], TREE["w"])


def header(text: str, data: bytes = b"") -> bytes:
  return struct.pack("<Q", len(text)) + text.encode() + data


ONE = '{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'


@pytest.mark.parametrize(
  ("data", "said"),
  [
    (header(ONE), "cut off"),
    (header(ONE, bytes(5)), "follow"),
    (header(ONE)[:30], "cut off"),
    (header(ONE.replace("[0,4]", "[0,8]"), bytes(8)), "has 8 bytes"),
    (header(ONE.replace("[0,4]", "[4,0]"), bytes(8)), "bytes"),
    (header(ONE.replace("[0,4]", "[1,5]"), bytes(5)), "hole"),
    (header(ONE.replace("[0,4]", "[0,4,4]"), bytes(4)), "no proper"),
    (header(ONE.replace("[0,4]", "[0.0,4]"), bytes(4)), "no proper"),
    (header(ONE.replace("[1]", "[-1]"), bytes(4)), "no proper"),
    (header(ONE.replace("[1]", "[true]"), bytes(4)), "no proper"),
    (header(ONE.replace("[1]", "[0,1e400]"), bytes(4)), "no proper"),
    (header(ONE.replace("[1]", "[4611686018427387904,4]"), bytes(4)), "no proper"),
    (header(ONE.replace("[1]", str([1] * 65)), bytes(4)), "no proper"),
    (header(ONE.replace("F32", "F4"), bytes(4)), "which NumPy has not"),
    (header(ONE.replace("F32", "BOOL").replace("[1]", "[4]"), b"\0\1\2\0"), "truth"),
    (header('{"w":7}'), "no proper"),
    (header('{"__metadata__":{"a":1}}'), "metadata"),
    (header('{"a":1,"a":1}'), "twice"),
    (header('{"a":NaN}'), "NaN"),
    (header('{"a":' + "[" * 99999 + "]" * 99999 + "}"), "JSON"),
    (header('{"a":' + "9" * 9999 + "}"), "JSON"),
    (header("{"), "JSON"),
    (struct.pack("<Q", 90_000_000) + b"{", "header"),
    (
      header(ONE[:-1] + ',"v":' + ONE[5:], bytes(4)),
      "overlaps",
    ),
  ],
)
def test_safetensors_that_lie(tmp_path, data, said):
  assert said in refusal(tmp_path, data)


def npz(save=np.savez, **arrays) -> bytes:
  file = io.BytesIO()
  save(file, **arrays)
  return file.getvalue()


def npy(array, **kwargs) -> bytes:
  file = io.BytesIO()
  np.save(file, array, **kwargs)
  return file.getvalue()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, save):
  arrays = {
    "w": TREE["w"],
    "fortran": np.asfortranarray(TREE["w"]),
    "scalar": np.float64(3),
    "empty": np.zeros((0, 3)),
    "big": TREE["w"].astype(">f4"),
    "half": TREE["w"].astype(np.float16),
    "complex": TREE["w"].astype(np.complex64),
    "a/b": np.array([True, False]),
  }
  found = read(put(tmp_path, npz(save, **arrays, names=np.array(["x", "yy"]))))
  assert found.kind == "npz" and list(found.tensors) == list(arrays)
  for name, wanted in arrays.items():
    assert np.array_equal(found.tensors[name], wanted) and found.tensors[name].dtype.isnative
  assert found.metadata == {"names": "array of <U2[2]"}


def test_npy(tmp_path):
  found = read(put(tmp_path, npy(TREE["w"])))
  assert found.kind == "npy" and np.array_equal(found.tensors["arr_0"], TREE["w"])
  objects = npy(np.array([{}], dtype=object), allow_pickle=True)
  assert "could run code" in refusal(tmp_path, objects)
  assert "bfloat16" in refusal(tmp_path, npz(b=TREE["b"]))
  fields = np.zeros(2, [("a", "f4"), ("b", "i4")])
  assert "no number" in refusal(tmp_path, npy(fields))


@pytest.mark.parametrize(
  ("old", "new"),
  [
    (b"(2, 3)", b"(2, 4)"),
    (b"(2, 3)", b"(-2,3)"),
    (b"(2, 3)", b"(2,3,"),
    (b"(2, 3), }", b"(99999999999999999999, 3), }"),
    (b"'<f4'", b"'|O'"),
    (b"'<f4'", b"'<U0'"),
    (b"False", b"1<2  "),
    (b"\x01\x00v", b"\x09\x00v"),
    (b"v\x00{", b"v\xff{"),
  ],
)
def test_npy_that_lies(tmp_path, old, new):
  good = npy(TREE["w"])
  assert old in good
  refusal(tmp_path, good.replace(old, new))
  assert "cut off" in refusal(tmp_path, good[:-1])


def test_npz_bomb(tmp_path):
  assert "zip bomb" in refusal(tmp_path, npz(np.savez_compressed, w=np.zeros(2**25)))


def test_flax(tmp_path):
  tree = {"params": {"layers": [TREE["w"], TREE["b"]]}, "step": 3, "rate": np.float32(0.5)}
  tree |= {"scalar": np.zeros(()), "name": "a", "z": 1 + 2j, "none": None, "true": np.ones(2) > 0}
  found = read(put(tmp_path, flax.serialization.to_bytes(tree)))
  assert found.kind == "flax msgpack"
  assert found.tensors["params/layers/0"].tobytes() == TREE["w"].tobytes()
  assert found.tensors["params/layers/1"].dtype == ml_dtypes.bfloat16
  assert found.tensors["rate"] == np.float32(0.5) and found.tensors["true"].all()
  assert found.metadata["step"] == 3 and found.metadata["name"] == "a"


def test_flax_in_pieces(tmp_path, monkeypatch):
  monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 8)
  found = read(put(tmp_path, flax.serialization.to_bytes({"w": TREE["w"]})))
  assert np.array_equal(found.tensors["w"], TREE["w"])


@pytest.mark.parametrize(
  "data",
  [
    b"\x81\xa1a",
    b"\x81\xa1a\xdd\xff\xff\xff\xff",
    b"\x81\xa1a\xdf\xff\xff\xff\xff",
    b"\x81\xa1a\xc6\xff\xff\xff\xff",
    b"\x81\xa1a\xc9\xff\xff\xff\xff\x01",
    b"\x81\xa1a\xc1",
    b"\x81\xa1a\xd4\x07x",
    b"\x81\xa1a\xd4\x01\x01",
    b"\x81\xa1a\xc7\x06\x01\x93\x91\x09\xa2f4",
    b"\x81\xa1a\x01\x01",
    b"\x82\xa1a\x01\xa1a\x01",
    b"\x82\xa1a\x01\x02\x01",
    b"\x81\xa1\xff\x01",
    b"\x81\xa1a" + b"\x91" * 99999 + b"\xc0",
    b"\x81\xa1a" + b"\x81\xa1a" * 99999 + b"\xc0",
    b"\x81\xa1a\xdd\x00\x20\x00\x00" + b"\xc0" * 2**21,
    b"\x81\xa1a\x81\xb9__msgpack_chunked_array__\xc3",
  ],
)
def test_flax_that_lies(tmp_path, data):
  refusal(tmp_path, data)


def index(tmp_path, places: dict[str, str], name="model.safetensors.index.json"):
  text = json.dumps({"metadata": {"total_size": 1}, "weight_map": places})
  return put(tmp_path, text.encode(), name)


def test_parts(tmp_path):
  put(tmp_path, safetensors({"w": GOOD["w"]}), "model-1.safetensors")
  put(tmp_path, safetensors({"b": GOOD["b"]}), "model-2.safetensors")
  path = index(tmp_path, {"w": "model-1.safetensors", "b": "model-2.safetensors"})
  found = read(path)
  assert found.kind == "safetensors index" and len(found.sha256) == 64
  assert_tree(found)
  assert read(tmp_path).sha256 == found.sha256  # the folder's only index
  put(tmp_path, safetensors({"b": GOOD["w"]}), "model-2.safetensors")
  assert read(path).sha256 != found.sha256


def test_parts_of_pytorch(tmp_path):
  put(tmp_path, torch_zip(plain()), "pytorch_model-1.bin")
  found = read(index(tmp_path, {"w": "pytorch_model-1.bin"}, "pytorch_model.bin.index.json"))
  assert found.kind == "torch index" and found.tensors["w"].tolist() == [1, 2, 3, 4]
  assert "torch.FloatStorage" in found.globals


@pytest.mark.parametrize(
  "places",
  [
    {"w": "missing.safetensors"},
    {"w": "../model-1.safetensors"},
    {"w": "/etc/passwd"},
    {"w": ""},
    {"w": 7},
    {"w": "model-1.safetensors", "b": "model-1.safetensors"},
    {},
    {"b": "model-1.safetensors"},
    {"w": "model.safetensors.index.json"},
  ],
)
def test_parts_that_lie(tmp_path, places):
  put(tmp_path, safetensors({"w": GOOD["w"]}), "model-1.safetensors")
  with pytest.raises(RefusedError):
    read(index(tmp_path, places))


def test_a_phase_of_ours(tmp_path):
  from rkd_jax.training import checkpoint

  saved = {"roles": {"teacher": {"params": {"w": TREE["w"]}}}}
  checkpoint.save_tree(tmp_path / "final", saved)
  settings = {"normalisation": {"teacher": [[0.5], [0.5]]}, "networks": {"teacher": "resnet18"}}
  record = {"phase": {"settings": settings}, "sha256": checkpoint.digest(saved)}
  (tmp_path / "done.json").write_text(json.dumps(record))
  found = read(tmp_path)
  assert found.kind == "phase" and found.sha256 == record["sha256"]
  assert found.tensors["params/w"].tobytes() == TREE["w"].tobytes()
  assert found.metadata == {"network": "resnet18", "role": "teacher"}
  os.symlink("/etc/passwd", tmp_path / "final" / "link")
  with pytest.raises(RefusedError, match="link"):
    read(tmp_path)
  os.unlink(tmp_path / "final" / "link")
  for file in (tmp_path / "final").rglob("*"):
    if file.is_file():
      file.write_bytes(b"")
  with pytest.raises(RefusedError, match="cannot be read"):
    read(tmp_path)


def tar(name: str) -> bytes:
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
    archive.addfile(tarfile.TarInfo(name))
  return file.getvalue()


def zipped(*names: str) -> bytes:
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w") as archive:
    for name in names:
      archive.writestr(name, "")
  return file.getvalue()


@pytest.mark.parametrize(
  ("data", "said"),
  [
    (b"", "empty"),
    (b"\n\n <!DOCTYPE html><html>", "web page"),
    (b"<HTML><body>Not found", "web page"),
    (b"\xef\xbb\xbf<html>", "web page"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
    (b"\x1f\x8b\x08" + bytes(20), "gunzip"),
    (b"BZh9" + bytes(20), "bzip2"),
    (b"\xfd7zXZ\0" + bytes(20), "xz"),
    (b"\x28\xb5\x2f\xfd" + bytes(20), "Zstandard"),
    (b"7z\xbc\xaf\x27\x1c" + bytes(20), "7z"),
    (b"Rar!\x1a\x07" + bytes(20), "RAR"),
    (b"\x89HDF\r\n\x1a\n" + bytes(20), "HDF5"),
    (b"\x1c\0\0\0TFL3" + bytes(20), "TensorFlow Lite"),
    (b"GGUF" + bytes(20), "GGUF"),
    (b"\x08\x07\x12\x07pytorch\x1a\x05", "ONNX"),
    (b"\x08\x01\x12\xd0\x10\x0a" + bytes(20), "SavedModel"),
    (bytes(20) + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb", "TensorFlow checkpoint"),
    (b"\x89PNG\r\n\x1a\n", "image"),
    (b"\x7fELF" + bytes(20), "program"),
    (b"MZ" + bytes(20), "program"),
    (b"#!/bin/sh\n", "program"),
    (tar("sys_info"), "PyTorch before 0.1.10"),
    (tar("a/model.pth"), "tar archive"),
    (zipped("config.json", "model.weights.h5"), "Keras"),
    (zipped("a.txt"), "other things"),
    (b"PK\5\6" + bytes(18), "without entries"),
    (b"PK\3\4", "cut off"),
    (bytes(5000), "zeros"),
    (b'{"error": "Unauthorized"}', "no index"),
    (b"Access denied", "server's message"),
    (b"hello\nworld\n", "text file"),
    (b"\x01\x02\x03\xff" * 9, "none that is known"),
    (PROTO + b"}.", "none of torch.save's"),
    (b"\x80", "cut off"),
  ],
)
def test_files_of_others(tmp_path, data, said):
  assert said in refusal(tmp_path, data)


def test_what_cannot_be_opened(tmp_path):
  os.mkfifo(tmp_path / "pipe")
  for path in (tmp_path / "missing", tmp_path / "pipe", tmp_path, "/dev/zero", "a\0b"):
    with pytest.raises(UserError) as caught:
      read(path)
    assert not isinstance(caught.value, RefusedError)
