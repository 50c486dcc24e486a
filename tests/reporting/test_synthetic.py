"""Synthetic images on the page: counts by hand, and nothing where nothing was invented."""

import numpy as np
import pytest

from rkd_jax.errors import UserError
from rkd_jax.reporting import synthetic

ONE = "zskt/student/poisoned"


def saved(tmp_path, **changes):
  arrays = {
    "copies": np.int32(3),
    f"{ONE}:images": np.zeros((4, 4, 4, 1), np.uint8),
    f"{ONE}:answers": np.array([0, 0, 2, 1]),
    f"{ONE}:suspicious": np.array([True, False, False, False]),
    f"{ONE}:log10": np.array([-4.0, -1.0, -1.0, -1.0], np.float32),
  } | changes
  np.savez(tmp_path / "synthetic.npz", **arrays)
  return tmp_path / "synthetic.npz"


def test_what_the_page_says_of_a_network(tmp_path):
  found = synthetic.read(saved(tmp_path))
  (one,) = found["networks"]
  assert found["copies"] == 3 and one["label"] == "zskt" and one["classes"] == 3
  assert len(one["images"]) == 4 and len(one["suspicious"]) == 1 and one["count"] == 4
  assert one["share"].startswith("25")


def test_a_teacher_that_cannot_be_shuffled_has_its_images_alone(tmp_path):
  path = saved(tmp_path)
  arrays = {k: v for k, v in np.load(path).items() if not k.endswith((":suspicious", ":log10"))}
  np.savez(path, **arrays)
  (one,) = synthetic.read(path)["networks"]
  assert len(one["images"]) == 4 and "histogram" not in one and "share" not in one


def test_a_histogram_stacks_the_rest_on_the_suspicious():
  drawn = synthetic.histogram([np.array([1, 0]), np.array([1, 0])], np.array([0.0, 1, 2]), "a & b")
  # two images in the first bin: one from 0 to half of the height, one above; the second is empty
  assert 'class="c0" d="M8.0,56.0H159.2V104.0H8.0z"' in drawn
  assert 'class="c1" d="M8.0,8.0H159.2V56.0H8.0z"' in drawn
  assert "a &amp; b" in drawn


def test_without_the_file_there_is_no_section(tmp_path):
  assert synthetic.read(tmp_path / "synthetic.npz") is None


def test_a_broken_file_is_named(tmp_path):
  (tmp_path / "synthetic.npz").write_bytes(b"no archive")
  with pytest.raises(UserError, match="broken"):
    synthetic.read(tmp_path / "synthetic.npz")
