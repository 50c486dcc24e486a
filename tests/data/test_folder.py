"""Folders of images: what is written is read back, wherever it lies; mistakes are named."""

import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from rkd_jax.data import folder, sources
from rkd_jax.errors import UserError

PREPARE = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data" / "prepare.py"
COLOUR, GREY = (6, 5, 3), (6, 5)


def pixels(seed, shape=COLOUR):
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def save(path, image, **how):
  path.parent.mkdir(parents=True, exist_ok=True)
  (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **how)


def write(root, number=4, classes=("cat", "dog"), shape=COLOUR, seed=0):
  """`number` images a class in `<root>/<class>/<number>.png`; {class: uint8[number, H, W(, C)]}."""
  made = {}
  for k, name in enumerate(classes):
    made[name] = np.stack([pixels((seed, k, i), shape) for i in range(number)])
    for i, image in enumerate(made[name]):
      save(root / name / f"{i}.png", image)
  return made


def load(root, **fields):
  amounts = {"split_seed": 0, "holdout": 0.25, "test": 0.25} | fields
  return sources.load(f"folder:{root}", None, **amounts)


def test_splits_are_read_in_the_order_of_names(tmp_path):
  train, test = write(tmp_path / "train"), write(tmp_path / "test", 2, seed=1)
  for made, found in zip((train, test), folder.read(str(tmp_path), None)[:2], strict=True):
    assert found is not None
    images, labels = found
    assert images.dtype == np.uint8 and labels.dtype == np.int32
    np.testing.assert_array_equal(images, np.concatenate([made["cat"], made["dog"]]))
    assert labels.tolist() == [0] * len(made["cat"]) + [1] * len(made["dog"])
  data = load(tmp_path)
  assert [len(s) for s in (data.train, data.holdout, data.test)] == [6, 2, 4]
  assert data.class_names == ("cat", "dog") and data.image_shape == COLOUR
  np.testing.assert_array_equal(data.test.images[:2], test["cat"])


def test_numbers_are_sorted_as_numbers(tmp_path):
  write(tmp_path, 2, ("10", "9", "b", "2", "a"))
  assert folder.read(str(tmp_path), None)[2] == ("2", "9", "10", "a", "b")


def test_without_splits_some_of_the_images_become_the_test_part(tmp_path):
  write(tmp_path, 8)
  assert folder.read(str(tmp_path), None)[1] is None
  data = load(tmp_path)
  assert [len(s) for s in (data.train, data.holdout, data.test)] == [9, 3, 4]
  assert np.bincount(data.test.labels).tolist() == [2, 2]


@pytest.mark.parametrize("name", ["test", "val", "validation", "valid"])
def test_what_a_test_part_is_called(tmp_path, name):
  write(tmp_path / "train")
  write(tmp_path / name, 1)
  assert len(load(tmp_path).test) == 2


def test_the_test_part_goes_before_a_validation_part(tmp_path):
  for split, number in (("train", 4), ("val", 1), ("test", 3)):
    write(tmp_path / split, number)
  assert len(load(tmp_path).test) == 6


def test_a_split_may_lack_a_class_of_the_training_part(tmp_path):
  write(tmp_path / "train", classes=("a", "b", "c"))
  write(tmp_path / "test", classes=("c",))
  assert load(tmp_path).test.labels.tolist() == [2] * 4


def test_a_class_may_be_called_train(tmp_path):
  write(tmp_path, 4, ("car", "train"))
  assert load(tmp_path).class_names == ("car", "train")


def test_formats_and_what_is_passed_over(tmp_path):
  image, seen = pixels(0), tmp_path / "seen"
  for name in ("a.png", "b.BMP", "c.Png"):
    save(seen / name, image)
  save(seen / "d.webp", image, lossless=True)
  smooth = np.broadcast_to(np.arange(5, dtype=np.uint8)[None, :, None] * 20, COLOUR)
  save(seen / "e.jpg", np.ascontiguousarray(smooth), quality=95, subsampling=0)
  save(seen / "f.JPEG", np.ascontiguousarray(smooth), quality=95, subsampling=0)
  for name in ("._a.png", "notes.txt", "Thumbs.db"):
    (seen / name).write_text("no image")
  (tmp_path / ".cache").mkdir()
  (images, labels), test, names, _ = folder.read(str(tmp_path), None)
  assert test is None and names == ("seen",) and labels.tolist() == [0] * 6
  np.testing.assert_array_equal(images[:4], np.stack([image] * 4))
  assert np.abs(images[4:].astype(int) - smooth).max() < 12


def test_grey_stays_grey_if_all_is(tmp_path):
  made = write(tmp_path / "train", shape=GREY)
  write(tmp_path / "test", shape=GREY, seed=1)
  save(tmp_path / "train" / "dog" / "9.png", Image.fromarray(pixels(9, GREY)).convert("LA"))
  data = load(tmp_path)
  assert data.image_shape == (6, 5, 1) and len(data.mean) == 1
  (images, _), *_ = folder.read(str(tmp_path), None)
  np.testing.assert_array_equal(images[:4, ..., 0], made["cat"])
  np.testing.assert_array_equal(images[-1, ..., 0], pixels(9, GREY))


def test_one_image_with_colour_makes_all_rgb(tmp_path):
  made = write(tmp_path / "train", shape=GREY)
  write(tmp_path / "test", shape=GREY, seed=1)
  save(tmp_path / "test" / "dog" / "9.png", pixels(9))
  (images, _), test, *_ = folder.read(str(tmp_path), None)
  assert test is not None
  np.testing.assert_array_equal(images[:4], np.stack([made["cat"]] * 3, -1))
  np.testing.assert_array_equal(test[0][-1], pixels(9))


def test_palettes_and_alpha_become_rgb(tmp_path):
  image = Image.fromarray(pixels(0)).quantize(8)
  save(tmp_path / "a" / "0.png", image)
  solid = Image.fromarray(np.dstack([pixels(1), np.full(GREY, 255, np.uint8)]), "RGBA")
  save(tmp_path / "a" / "1.png", solid)
  (images, _), *_ = folder.read(str(tmp_path), None)
  np.testing.assert_array_equal(images, np.stack([np.asarray(image.convert("RGB")), pixels(1)]))


def test_a_folder_may_be_moved(tmp_path):
  write(tmp_path / "one" / "train")
  write(tmp_path / "one" / "test", seed=1)
  shutil.copytree(tmp_path / "one", tmp_path / "far" / "two")
  here, there = load(tmp_path / "one"), load(tmp_path / "far" / "two")
  beside = sources.load("folder:two", str(tmp_path / "far"), 0, 0.25, 0.25)
  assert here.fingerprint == there.fingerprint == beside.fingerprint
  assert here.name != there.name
  save(tmp_path / "one" / "train" / "cat" / "0.png", pixels(99))
  assert load(tmp_path / "one").fingerprint != here.fingerprint
  (tmp_path / "far" / "two" / "train" / "dog").rename(tmp_path / "far" / "two" / "train" / "eel")
  (tmp_path / "far" / "two" / "test" / "dog").rename(tmp_path / "far" / "two" / "test" / "eel")
  assert load(tmp_path / "far" / "two").fingerprint != here.fingerprint


def empty(root):
  write(root)
  (root / "eel").mkdir()
  (root / "eel" / "0.tif").write_text("")


def unequal(root):
  write(root / "train")
  save(root / "test" / "cat" / "0.png", pixels(0, (7, 5, 3)))


def broken(root):
  write(root)
  whole = (root / "dog" / "2.png").read_bytes()
  (root / "dog" / "2.png").write_bytes(whole[: len(whole) // 2])


def disguised(root):
  write(root)
  save(root / "cat" / "2.png", pixels(0), format="GIF")


def lonely(root):
  write(root)
  for name in ("eel", "fox"):
    save(root / name / "0.png", pixels(0))


def unknown_class(root):
  write(root / "train")
  write(root / "test", classes=("cat", "dogs"))


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (
      lambda root: root.rmdir(),
      r"is no folder and no zip file: looked at {root}\. Write 'folder:'",
    ),
    (lambda root: None, r"{root} has no class folders"),
    (lambda root: save(root / "0.png", pixels(0)), r"{root} has no class folders"),
    (lambda root: save(root / "train" / "0.png", pixels(0)), r"{root}/train has no class folders"),
    (lambda root: write(root / "test"), r"{root} has test, but no folder 'train'"),
    (empty, r"{root}/eel holds no images; can read \.png, \.jpg"),
    (unknown_class, r"class 'dogs' of {root}/test is none of .* Did you mean 'dog'"),
    (unequal, r"{root}/train/cat/0\.png is 5x6 .* {root}/test/cat/0\.png is 5x7"),
    (broken, r"1 of 8 images:\n  {root}/dog/2\.png: it is damaged .*\n.*skip_corrupt=true"),
    (disguised, r"1 of 8 images:\n  {root}/cat/2\.png: it is a GIF.* Convert it"),
    (lonely, r"{root} has classes with fewer than two .*: 'eel' \(1\), 'fox' \(1\)\. .*add images"),
  ],
)
def test_errors_name_the_place(tmp_path, make, message):
  root = tmp_path / "set"
  root.mkdir()
  make(root)
  with pytest.raises(UserError, match=message.replace("{root}", re.escape(str(root)))):
    load(root)


def test_a_name_without_a_path():
  with pytest.raises(UserError, match="'folder:' is no folder"):
    sources.load("folder", None, 0, 0.1, 0.1)


@pytest.mark.slow
@pytest.mark.skipif(not PREPARE.exists(), reason="needs GTSRB: ../shared/data is not there")
def test_gtsrb(tmp_path):
  command = [sys.executable, PREPARE, "--data_dir", tmp_path, "gtsrb32"]
  subprocess.run(command, check=True, capture_output=True)
  data = sources.load("folder:gtsrb32", str(tmp_path), 0, holdout=0.1, test=0)
  assert [len(s) for s in (data.train, data.holdout, data.test)] == [7057, 784, 3000]
  assert data.image_shape == (32, 32, 3)
  assert data.class_names == tuple(f"{k:02d}" for k in range(43))
  assert all((np.bincount(s.labels, minlength=43) > 0).all() for s in (data.train, data.holdout))
