"""The images of the page: pixels by hand."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from rkd_jax.reporting import pictures


def pixels(uri):
  head, _, data = uri.partition(",")
  assert head == "data:image/png;base64"
  return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def saved(tmp_path, clean, triggered, **arrays):
  arrays = {"clean": clean, "triggered": triggered, "labels": np.zeros(len(clean), int)} | arrays
  np.savez(tmp_path / "examples.npz", **arrays)
  return pictures.examples(tmp_path / "examples.npz", ["cat"])


def test_the_difference_is_its_absolute_value_amplified(tmp_path):
  clean = np.full((2, 2, 2, 1), 100, np.uint8)
  triggered = clean.copy()
  triggered[0, 0, 0], triggered[1, 1, 1] = 120, 90  # 20 up and 10 down: 255 // 20 = 12 times
  found = saved(tmp_path, clean, triggered)
  assert found["factor"] == 12 and not found["shrunk"]
  assert pixels(found["images"][0]["difference"]).tolist() == [[240, 0], [0, 0]]
  assert pixels(found["images"][1]["difference"]).tolist() == [[0, 0], [0, 120]]
  assert pixels(found["images"][0]["triggered"]).tolist() == [[120, 100], [100, 100]]


@pytest.mark.parametrize("change, factor", [(0, 0), (1, 64), (127, 2), (128, 1), (255, 1)])
def test_amplification(change, factor):
  clean = np.zeros((1, 2, 2, 1), np.int16)
  assert pictures.amplification(clean, clean + change) == factor


def test_images_that_do_not_differ(tmp_path):
  clean = np.full((1, 2, 2, 3), 7, np.uint8)
  found = saved(tmp_path, clean, clean)
  assert found["factor"] == 0 and not pixels(found["images"][0]["difference"]).any()


def test_large_images_are_shrunk_and_channels_shown_as_they_can_be(tmp_path):
  clean = np.zeros((1, 512, 256, 4), np.uint8)
  clean[..., 0] = 200
  found = saved(tmp_path, clean, clean)
  shown = pixels(found["images"][0]["clean"])
  assert found["shrunk"] and shown.shape == (128, 64) and (shown == 50).all()


def test_at_most_eight_and_none_without_an_image(tmp_path):
  many = np.zeros((20, 2, 2, 1), np.uint8)
  assert len(saved(tmp_path, many, many)["images"]) == 8
  assert saved(tmp_path, many[:0], many[:0]) is None
  assert pictures.examples(tmp_path / "nowhere.npz", []) is None


def test_answers_are_named_and_marked(tmp_path):
  images = np.zeros((1, 2, 2, 1), np.uint8)
  said = {"pred/a/b/clean": np.array([0]), "pred/a/b/triggered": np.array([5])}
  assert saved(tmp_path, images, images, **said)["images"][0]["rows"] == [
    {
      "network": "a/b",
      "clean": "cat",
      "triggered": "5",
      "clean_right": True,
      "triggered_right": False,
    }
  ]
