"""Damaged copies of real files: read, or refused with our own error; soon, and in little memory."""

import functools
import io
import pathlib
import struct
import tracemalloc
import zipfile

import flax.serialization
import numpy as np
import pytest
from handmade import legacy, plain, torch_zip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_formats import GOOD, TREE, npy, npz, safetensors

from rkd_jax.interop import RefusedError, read
from rkd_jax.interop.summary import summary

REAL = pathlib.Path(__file__).parents[3] / "shared" / "data" / "checkpoints"
EXTREMES = [0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1]
LIMIT = 160 * 2**20  # bytes of Python's and NumPy's: budget.OBJECTS, and what is on the way


def saved(**kwargs) -> bytes:
  torch = pytest.importorskip("torch")
  base = torch.arange(12.0).reshape(3, 4)
  value = {"state_dict": torch.nn.Linear(3, 2).state_dict(), "t": base.t(), "epoch": 3}
  value |= {"half": base.to(torch.bfloat16)[1:], "best": np.float64(2), "curve": np.ones(3)}
  file = io.BytesIO()
  torch.save(value, file, **kwargs)
  return file.getvalue()


def packed() -> bytes:
  file = io.BytesIO()
  with zipfile.ZipFile(io.BytesIO(saved())) as old, zipfile.ZipFile(file, "w", 8) as new:
    for entry in old.namelist():
      new.writestr(entry, old.read(entry))
  return file.getvalue()


MADE = {
  "torch zip": saved,
  "torch zip, protocol 4": functools.partial(saved, pickle_protocol=4),
  "torch zip, deflated": packed,
  "torch legacy": functools.partial(saved, _use_new_zipfile_serialization=False),
  "zip by hand": lambda: torch_zip(plain()),
  "legacy by hand": lambda: legacy(plain()),
  "safetensors": lambda: safetensors(GOOD, __metadata__={"format": "pt"}),
  "npz": lambda: npz(w=TREE["w"], names=np.array(["a"])),
  "npz, deflated": lambda: npz(np.savez_compressed, w=TREE["w"], z=np.zeros(999)),
  "npy": lambda: npy(TREE["w"]),
  "flax msgpack": lambda: flax.serialization.to_bytes({"params": TREE, "step": 3}),
}


@functools.cache
def original(kind: str) -> bytes:
  return MADE[kind]()


@st.composite
def change(draw, data: bytes) -> bytes:
  """The bytes after one of the things that happen to files, or are done to them."""
  at = draw(st.integers(0, max(0, len(data) - 1)))
  how = draw(st.sampled_from(["flip", "byte", "cut", "drop", "repeat", "move", "size", "insert"]))
  if how == "flip":
    return data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) + data[at + 1 :]
  if how == "byte":
    return data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]
  length = draw(st.integers(1, 64))
  if how == "cut":
    return data[: at + 1]
  if how == "drop":
    return data[:at] + data[at + length :] or b"\0"
  if how == "insert":
    return data[:at] + draw(st.binary(min_size=1, max_size=8)) + data[at:]
  if how == "size":
    form = draw(st.sampled_from(["<B", "<H", "<I", "<Q", ">I", ">Q"]))
    size = struct.calcsize(form)
    value = draw(st.sampled_from(EXTREMES)) % 2 ** (8 * size)
    return data[:at] + struct.pack(form, value) + data[at + size :]
  place = draw(st.integers(0, len(data)))
  piece = data[at : at + length]
  return data[:place] + piece + data[place + (length if how == "move" else 0) :]


@st.composite
def changed(draw, data: bytes) -> bytes:
  for _ in range(draw(st.integers(1, 4))):
    data = draw(change(data))
  return data


def check(path: pathlib.Path, data: bytes) -> None:
  """Reads it and looks at every number."""
  path.write_bytes(data)
  tracemalloc.start()
  try:
    summary(read(path))
  except RefusedError as error:
    said = str(error)
    assert said.isascii() and said.isprintable() and len(said) < 2000
  finally:
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
  assert peak < LIMIT


FUZZ = settings(
  max_examples=120,
  deadline=10_000,  # ms
  derandomize=True,
  database=None,
  suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.parametrize("kind", list(MADE))
def test_small_files_of_every_kind(tmp_path, kind):
  @FUZZ
  @given(st.data())
  def run(data):
    check(tmp_path / "model.bin", data.draw(changed(original(kind))))

  check(tmp_path / "model.bin", original(kind))
  assert read(tmp_path / "model.bin").tensors
  run()


@FUZZ
@given(
  st.binary(max_size=200), st.sampled_from([b"", b"\x80\x02", b"\x80\x05", b"\x81\xa1a", b"{"])
)
def test_noise(tmp_path, noise, begin):
  check(tmp_path / "model.bin", begin + noise)


@pytest.mark.parametrize("kind", ["torch zip", "torch zip, protocol 4"])
def test_changed_pickles_in_whole_archives(tmp_path, kind):
  """Past the checksums: every entry but one is as it was, and that one's checksum is right."""
  with zipfile.ZipFile(io.BytesIO(original(kind))) as archive:
    entries = {name: archive.read(name) for name in archive.namelist()}

  @settings(FUZZ, max_examples=300)
  @given(st.data())
  def run(data):
    pickle = data.draw(changed(entries["archive/data.pkl"]))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
      for name, content in (entries | {"archive/data.pkl": pickle}).items():
        archive.writestr(name, content)
    check(tmp_path / "model.bin", file.getvalue())

  run()


@FUZZ
@given(st.binary(max_size=200))
def test_pickles_of_noise(tmp_path, noise):
  check(tmp_path / "model.bin", torch_zip(b"\x80\x02" + noise))


@pytest.mark.parametrize("name", ["resnet20-cifar10-12fca82f.th", "badnets-cifar10.pth"])
def test_real_checkpoints(tmp_path, name):
  if not REAL.is_dir():
    pytest.skip(f"{REAL} is not here")
  whole = (REAL / name).read_bytes()

  @settings(FUZZ, max_examples=60)
  @given(st.data())
  def run(data):
    head = data.draw(st.integers(0, 20_000))  # where structure is: at the beginning, or the end
    split = head if data.draw(st.booleans()) else len(whole) - head
    first, rest = whole[:split], whole[split:]
    if data.draw(st.booleans()):
      first = data.draw(changed(first)) if first else first
    else:
      rest = data.draw(changed(rest)) if rest else rest
    check(tmp_path / "model.bin", first + rest or b"\0")

  run()


@pytest.mark.parametrize("name", ["resnet20-cifar10-12fca82f.th", "badnets-cifar10.pth"])
def test_real_checkpoints_cut_off(tmp_path, name):
  if not REAL.is_dir():
    pytest.skip(f"{REAL} is not here")
  whole = (REAL / name).read_bytes()
  for part in range(50):
    (tmp_path / "model.bin").write_bytes(whole[: part * len(whole) // 50])
    with pytest.raises(RefusedError, match="cut off" if part else "empty"):
      read(tmp_path / "model.bin")
