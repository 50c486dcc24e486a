"""metrics.jsonl of a resumed run is that of an uninterrupted one."""

import errno
import os

import numpy as np
import pytest

from rkd_jax.errors import UserError
from rkd_jax.reporting.writer import MetricsWriter, read_lines


def run(path, start, stop, events=None):
  with MetricsWriter(path, events, restored_step=start) as writer:
    for step in range(start, stop):
      writer.write(step, {"loss": 1 / (step + 1), "größe": np.float32(step)})
      if step % 2:
        writer.write(step, {"holdout/acc": step / 10})


@pytest.mark.parametrize("tail", [b"", b'{"step": 7, "lo', b'{"step": 2', b"\x00\x00\x00\n", b"\n"])
def test_resumed_equals_uninterrupted(tmp_path, tail):
  run(tmp_path / "whole.jsonl", 0, 8)
  run(tmp_path / "cut.jsonl", 0, 7)
  with open(tmp_path / "cut.jsonl", "ab") as file:
    file.write(tail)
  run(tmp_path / "cut.jsonl", 4, 8)
  assert (tmp_path / "cut.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_fresh_run_starts_an_empty_file(tmp_path):
  run(tmp_path / "m.jsonl", 0, 8)
  run(tmp_path / "m.jsonl", 0, 1)
  assert (tmp_path / "m.jsonl").read_text() == '{"step": 0, "loss": 1.0, "größe": 0.0}\n'


def test_lines_can_be_read_while_the_run_goes_on(tmp_path):
  with MetricsWriter(tmp_path / "logs" / "m.jsonl") as writer:
    writer.write(0, {"loss": 2.0})
    assert read_lines(tmp_path / "logs" / "m.jsonl") == [{"step": 0, "loss": 2.0}]
    writer.flush()
  assert read_lines(tmp_path / "nothing.jsonl") == []


def test_nan_becomes_null(tmp_path):
  with MetricsWriter(tmp_path / "m.jsonl") as writer:
    writer.write(0, {"loss": float("nan"), "norm": float("inf")})
    with pytest.raises(ValueError, match="step"):
      writer.write(0, {"step": 1.0})
  assert read_lines(tmp_path / "m.jsonl") == [{"step": 0, "loss": None, "norm": None}]


def test_tensorboard_is_not_told_of_nan(tmp_path, caplog):
  with MetricsWriter(tmp_path / "m.jsonl", tmp_path / "events") as writer:
    writer.write(0, {"loss": float("nan"), "accuracy": 1.0})
  assert not caplog.records  # tensorboardX warns


def test_tensorboard_events_are_written(tmp_path):
  run(tmp_path / "m.jsonl", 0, 4, tmp_path / "events")
  run(tmp_path / "m.jsonl", 2, 6, tmp_path / "events")
  assert len(os.listdir(tmp_path / "events")) >= 1


def test_a_full_disk_is_a_user_error(tmp_path, monkeypatch):
  writer = MetricsWriter(tmp_path / "m.jsonl")

  class Full:
    def write(self, _):
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  file, writer._file = writer._file, Full()  # pyright: ignore[reportAttributeAccessIssue]
  with pytest.raises(UserError, match=r"m\.jsonl.*Free some space"):
    writer.write(0, {"loss": 1.0})
  file.close()
