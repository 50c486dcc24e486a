"""Whatever a file holds: our own error, soon, in little memory, and nothing is run."""

import json
import pathlib
import subprocess
import sys
import time

import hostile
import numpy as np
import pytest
from handmade import FOUR, legacy, plain, state, storage, tensor, torch_zip

from rkd_jax.interop import RefusedError, conversion, read
from rkd_jax.interop.checkpoint import Checkpoint
from rkd_jax.interop.families import base

ROOT = pathlib.Path(__file__).parents[2]
HERE = pathlib.Path(__file__).parent


def refusal(tmp_path, data: bytes) -> str:
  path = tmp_path / "model.pth"
  path.write_bytes(data)
  start = time.perf_counter()
  with pytest.raises(RefusedError) as caught:
    read(path)
  assert time.perf_counter() - start < 20
  said = str(caught.value)
  assert said.isascii() and said.isprintable() and said.startswith(str(path)) and len(said) < 1000
  return said


@pytest.mark.parametrize("kind", ["zip", "legacy", "bare"])
@pytest.mark.parametrize("case", list(hostile.code("x")))
def test_code_is_named_and_not_run(tmp_path, kind, case):
  canary = tmp_path / "canary"
  pickle, named = hostile.code(str(canary))[case]
  data = {"zip": torch_zip, "legacy": legacy, "bare": bytes}[kind](pickle)
  said = refusal(tmp_path, data)
  if kind != "bare" or "storage" not in said:  # no storage belongs into a bare pickle
    assert named in said
  assert not canary.exists()


@pytest.mark.parametrize("case", list(hostile.damaged()))
def test_rules_are_kept(tmp_path, case):
  refusal(tmp_path, torch_zip(hostile.damaged()[case]))


@pytest.mark.parametrize("case", list(hostile.archives()))
def test_archives_agree_with_themselves(tmp_path, case):
  refusal(tmp_path, hostile.archives()[case])


def test_the_opcode_is_told(tmp_path):
  pickle, _ = hostile.code("x")["exec"]
  assert "builtins.exec at opcode 1, byte 2" in refusal(tmp_path, torch_zip(pickle))


def test_what_the_pickle_named_before_is_told(tmp_path):
  path = tmp_path / "a.pth"
  path.write_bytes(torch_zip(state(w=tensor(), x=b"cos\nsystem\n") + b"."))
  with pytest.raises(RefusedError) as caught:
    read(path)
  assert set(caught.value.globals) >= {"os.system", "torch.FloatStorage"}


@pytest.mark.parametrize("protocol", [b"", b"\x80\x00"])
def test_pickles_without_a_header_are_named_too(tmp_path, protocol):
  assert "posix.system" in refusal(tmp_path, protocol + b"cposix\nsystem\n(Vls\ntR.")


@pytest.mark.parametrize(
  "data",
  [
    legacy(plain(), {"0": FOUR, "1": FOUR}),
    legacy(plain(), {}),
    legacy(plain(), {"1": FOUR}),
    legacy(plain(), {"0": FOUR[:8]}),
    legacy(plain()) + b"more",
    legacy(plain())[:-1],
    legacy(plain()).replace(b"M\xe9\x03", b"M\xea\x03"),
    legacy(plain()).replace(b"M\xe9\x03", b")" + b"2\x86" * 60),  # 2**60 words, if spelled out
    legacy(plain(stored=storage(window=b"(X\1\0\0\0vK\x03K\x09t"))),
    legacy(plain(stored=storage(window=b"(X\1\0\0\0vK\x03t"))),
    legacy(plain(stored=storage(window=b"K\x01"))),
  ],
)
def test_legacy_storages_are_those_of_the_tensors(tmp_path, data):
  refusal(tmp_path, data)


def test_a_file_that_could_be_many_networks_is_not_held_against_all(monkeypatch):
  """Each deep one takes seconds to trace."""
  monkeypatch.setattr(base, "TRACED", 100)
  deep = {f"layer{s}.{b}.conv1.weight": (9, 9, 3, 3) for s in (1, 2, 3) for b in range(2)}
  deep |= {"bn1.weight": (4,), "conv1.weight": (4, 3, 3, 3), "fc.weight": (10, 4)}
  many = {f"{i}/{name}": shape for i in range(9) for name, shape in deep.items()}
  empty = {name: np.broadcast_to(np.float32(0), shape) for name, shape in many.items()}
  tried = [len(m.wanted) for m in conversion.matches(Checkpoint("", "", 0, "", empty))]
  assert sum(tried) > 100 >= sum(tried[:-1])


@pytest.mark.skipif(sys.platform == "win32", reason="no such names there")
def test_a_name_does_not_command_the_terminal(tmp_path):
  path = tmp_path / "a\x1b[31m\u00e9.pth"
  path.write_bytes(b"hello")
  with pytest.raises(RefusedError, match="text file") as caught:
    read(path)
  assert str(caught.value).isprintable() and "\u00e9" in str(caught.value)


@pytest.mark.parametrize("make", [torch_zip, legacy])
def test_cut_off_anywhere(tmp_path, make):
  data = make(plain())
  for at in range(len(data)):
    said = refusal(tmp_path, data[:at])
    assert at or "empty" in said


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux for the memory")
def test_all_at_once_under_watch(tmp_path):
  """A process that an audit hook ends at the first import, exec, or process reads all of them."""
  canary = tmp_path / "canary"
  names = {}
  for number, (name, data) in enumerate(hostile.files(str(canary)).items()):
    names[str(number)] = name
    (tmp_path / f"{number}.pth").write_bytes(data)
  command = [sys.executable, str(HERE / "watched.py"), str(tmp_path)]
  done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
  assert done.returncode == 0, done.stderr[-3000:]
  found = json.loads(done.stdout)
  assert not canary.exists()
  assert {names[number] for number in found["unrefused"]} == set()
  slow = {names[number]: seconds for number, seconds in found["seconds"].items() if seconds > 15}
  assert not slow
  assert found["mib"] < 400  # of files that cost what they may: budget.OBJECTS, and the names' own
