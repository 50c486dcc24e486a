"""Folders of images: what is written is read back, wherever it lies; mistakes are named."""

import dataclasses
import io
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from rkd_jax.data import folder, reading, sources
from rkd_jax.data.lazy import Lazy
from rkd_jax.data.reading import Options
from rkd_jax.errors import UserError

PREPARE = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data" / "prepare.py"
COLOUR, GREY = (6, 5, 3), (6, 5)


def pixels(seed, shape=COLOUR):
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def encoded(image):
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, "PNG")
  return buffer.getvalue()


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


def test_numbers_have_any_length(tmp_path):  # Python's int refuses 4,300 digits
  classes = ("10", "9" * 5000, "010", "9", "00", "0")
  with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:  # file systems have no such names
    for name in classes:
      for k in range(2):
        archive.writestr(f"{name}/{k}.png", encoded(pixels(k)))
  found = folder.read(str(tmp_path / "set.zip"), None).names
  assert found == ("0", "00", "9", "010", "10", "9" * 5000)


def test_without_splits_some_of_the_images_become_the_test_part(tmp_path):
  write(tmp_path, 8)
  assert folder.read(str(tmp_path), None)[1] is None
  data = load(tmp_path)
  assert [len(s) for s in (data.train, data.holdout, data.test)] == [9, 3, 4]
  assert np.bincount(data.test.labels).tolist() == [2, 2]


@pytest.mark.parametrize(
  ("first", "second"),
  [
    *(("train", name) for name in ("test", "val", "validation", "valid")),
    *(("Train", "Test"), ("TRAIN", "val"), ("training", "testing")),
  ],
)
def test_what_the_parts_are_called(tmp_path, first, second):
  write(tmp_path / first)
  write(tmp_path / second, 1)
  data = load(tmp_path)
  assert len(data.test) == 2 and data.class_names == ("cat", "dog")


def test_the_test_part_goes_before_a_validation_part(tmp_path):
  for split, number in (("train", 4), ("val", 1), ("test", 3)):
    write(tmp_path / split, number)
  assert len(load(tmp_path).test) == 6


@pytest.mark.parametrize("around", ["", "set"])
def test_a_test_folder_without_classes_is_passed_over_for_one_with(tmp_path, around):
  root = tmp_path / "own" / around  # as ImageNet is given out
  write(root / "train", 4)
  made = write(root / "val", 2, seed=1)
  save(root / "test" / "1.jpeg", pixels(9))
  data = load(tmp_path / "own")
  np.testing.assert_array_equal(data.test.images, np.concatenate([made["cat"], made["dog"]]))
  (line,) = data.skipped
  before = f"{around}/" if around else ""
  assert line == f"{before}test: has no class folders, so {before}val is the test part"
  more = load(tmp_path / "own", options=Options(unlabelled=str(root / "test")))
  assert more.unlabelled is not None and len(more.unlabelled) == 1
  shutil.rmtree(root / "val")
  with pytest.raises(UserError, match="test has no class folders"):
    load(tmp_path / "own")


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
  (images, labels), test, names, *_ = folder.read(str(tmp_path), None)
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


def test_images_beside_the_class_folders_are_named(tmp_path):
  write(tmp_path / "train")
  for name in ("b", "a"):
    save(tmp_path / "train" / f"{name}.png", pixels(0))
  (line,) = load(tmp_path).skipped
  assert line == "train/a.png and 1 more: beside the class folders, so of no class"


def test_a_name_without_a_path():
  with pytest.raises(UserError, match="'folder:' is no folder"):
    sources.load("folder", None, 0, 0.1, 0.1)


def zipped(root, path, around=""):
  """The same images as a zip file, within further folders if there are any."""
  with zipfile.ZipFile(path, "w") as archive:
    for file in sorted(root.rglob("*.*")):
      archive.write(file, f"{around}{file.relative_to(root)}")
  return path


@pytest.mark.parametrize("around", ["", "set/", "set/images/"])
@pytest.mark.parametrize("splits", [True, False])
def test_a_zip_file_is_read_in_place(tmp_path, around, splits):
  root = tmp_path / "set"
  write(root / "train" if splits else root)
  if splits:
    write(root / "test", seed=1)
  path = zipped(root, tmp_path / "set.zip", around)
  before = sorted(tmp_path.rglob("*"))
  one, two = load(root), load(path)
  assert one.fingerprint == two.fingerprint and one.class_names == two.class_names
  assert sorted(tmp_path.rglob("*")) == before
  lazily = load(path, options=Options(memory=0))
  for part in ("train", "holdout", "test"):
    expected, found = getattr(one, part), getattr(lazily, part)
    assert isinstance(found.images, Lazy)
    np.testing.assert_array_equal(found.images[:], expected.images)
    np.testing.assert_array_equal(found.labels, expected.labels)


def test_images_may_lie_deeper_in_a_class(tmp_path):
  write(tmp_path / "flat")
  for k, file in enumerate(sorted((tmp_path / "flat").rglob("*.png"))):
    place = tmp_path / "deep" / file.parent.name / "abcdefgh"[k] / file.name
    save(place, Image.open(file))
  assert load(tmp_path / "deep").fingerprint == load(tmp_path / "flat").fingerprint


def test_a_folder_around_everything_is_looked_into(tmp_path):
  write(tmp_path / "set" / "outer" / "inner")
  assert load(tmp_path / "set").class_names == ("cat", "dog")


def test_one_class_is_not_taken_for_a_folder_around(tmp_path):
  write(tmp_path / "set", classes=("cat",))
  assert folder.read(str(tmp_path / "set"), None).names == ("cat",)
  with pytest.raises(UserError, match=r"one class, 'cat'; there must be two"):
    load(tmp_path / "set")


def test_in_memory_or_on_disk_by_size(tmp_path):
  write(tmp_path / "train", 4)
  write(tmp_path / "test", 2)
  whole = 12 * 6 * 5 * 3
  small, large = (load(tmp_path, options=Options(memory=m)) for m in (whole, whole - 1))
  assert isinstance(small.train.images, np.ndarray) and isinstance(large.train.images, Lazy)
  assert isinstance(large.test.images, Lazy)
  assert small.image_shape == large.image_shape == COLOUR
  assert (small.mean, small.std) == (large.mean, large.std)
  assert small.fingerprint == load(tmp_path).fingerprint != large.fingerprint
  assert large.fingerprint == load(tmp_path, options=Options(memory=0)).fingerprint


def test_on_disk_a_change_of_a_file_is_noticed(tmp_path):
  write(tmp_path)
  lazily = Options(memory=0)
  before = load(tmp_path, options=lazily).fingerprint
  save(tmp_path / "cat" / "0.png", pixels(99))
  assert load(tmp_path, options=lazily).fingerprint != before


@pytest.mark.parametrize("memory", [0, 2**30])
def test_images_of_any_size_become_squares_of_one(tmp_path, memory):
  for k, shape in enumerate([(6, 5, 3), (20, 31, 3), (8, 8), (64, 9, 3)] * 2):
    save(tmp_path / "ab"[k % 2] / f"{k}.png", pixels(k, shape))
  with pytest.raises(
    UserError, match=r"one size, but .*png is .*--config\.data\.size=32 \(pixels\)"
  ):
    load(tmp_path, options=Options(memory=memory))
  data = load(tmp_path, options=Options(size=8, memory=memory))
  assert data.image_shape == (8, 8, 3)
  other = load(tmp_path, options=Options(size=9, memory=memory))
  assert other.fingerprint != data.fingerprint
  (images, _), *_ = folder.read(str(tmp_path), None, Options(size=8, memory=memory))
  grey = np.stack([pixels(2, (8, 8))] * 3, -1)
  assert (images[:] == grey).all((1, 2, 3)).sum() == 1


@pytest.mark.parametrize("memory", [0, 2**30])
def test_orientation_counts_for_the_size(tmp_path, memory):
  exif = Image.Exif()
  exif[0x0112] = 6
  write(tmp_path)
  save(tmp_path / "cat" / "9.png", np.ascontiguousarray(np.rot90(pixels(9))), exif=exif)
  (images, _), *_ = folder.read(str(tmp_path), None, Options(memory=memory))
  np.testing.assert_array_equal(images[4], pixels(9))


def spoil(root, count):
  """Makes 20 images, and `count` of them unreadable, each in another way."""
  write(root, 10)
  files = sorted(root.rglob("*.png"))[::2][:count]
  for k, file in enumerate(files):
    whole = file.read_bytes()
    file.write_bytes([b"", b"<html>", whole[: len(whole) // 2], whole[:20]][k % 4])
  return [str(file) for file in files]


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("count", [1, 7])
def test_all_bad_images_are_counted_and_the_first_ones_named(tmp_path, count, pack):
  bad, path = spoil(tmp_path / "set", count), tmp_path / "set"
  if pack:
    path = zipped(path, tmp_path / "set.zip")
    bad = [name.replace("/set/", "/set.zip/") for name in bad]
  with pytest.raises(UserError) as caught:
    load(path)
  head, *lines, advice = str(caught.value).split("\n")
  assert head == f"Cannot read {count} of 20 images:"
  assert [line.split(": ")[0].strip() for line in lines] == bad
  assert "empty (0 bytes)" in lines[0] and "--config.data.skip_corrupt=true" in advice


def test_of_many_bad_images_ten_are_named(tmp_path):
  write(tmp_path, 20)
  for file in sorted(tmp_path.rglob("*.png"))[3:16]:
    file.write_bytes(b"")
  with pytest.raises(UserError, match="Cannot read 13 of 40 images") as caught:
    load(tmp_path)
  lines = str(caught.value).split("\n")
  assert len(lines) == 1 + 10 + 1 + 1 and lines[11].strip() == "and 3 more"


@pytest.mark.parametrize("memory", [0, 2**30])
def test_bad_images_are_left_out_if_asked_for_and_listed(tmp_path, memory):
  bad = spoil(tmp_path / "set", 5)
  data = load(tmp_path / "set", options=Options(memory=memory, skip_corrupt=True))
  assert [line.split(": ")[0] for line in data.skipped] == bad
  assert all(line.endswith(".") for line in data.skipped)
  assert sum(len(s) for s in (data.train, data.holdout, data.test)) == 15
  for name in bad:
    pathlib.Path(name).unlink()
  clean = load(tmp_path / "set", options=Options(memory=memory))
  np.testing.assert_array_equal(data.train.images[:], clean.train.images[:])
  np.testing.assert_array_equal(data.test.labels, clean.test.labels)
  assert clean.skipped == () and clean.fingerprint == data.fingerprint


def test_on_disk_a_bad_image_is_an_error_when_it_is_read(tmp_path):
  bad = spoil(tmp_path / "set", 1)
  (images, _), *_ = folder.read(str(tmp_path / "set"), None, Options(memory=0))
  assert images[1:].shape == (19, *COLOUR)
  with pytest.raises(UserError, match=f"{bad[0]}: it is empty .*skip_corrupt=true"):
    images[:2]


def test_a_class_of_which_one_image_is_left_is_refused(tmp_path):
  write(tmp_path, 2)
  (tmp_path / "dog" / "1.png").write_bytes(b"")
  with pytest.raises(UserError, match=r"fewer than two images that can be read: 'dog' \(1\)"):
    load(tmp_path, options=Options(skip_corrupt=True))


@pytest.mark.parametrize("skip", [True, False])
def test_nothing_that_can_be_read(tmp_path, skip):
  write(tmp_path, 2)
  for file in tmp_path.rglob("*.png"):
    file.write_bytes(b"")
  for memory in (0, 2**30):
    with pytest.raises(UserError, match="Cannot read 4 of 4 images"):
      load(tmp_path, options=Options(skip_corrupt=skip, memory=memory))


def test_more_images_than_are_looked_at_first(tmp_path, monkeypatch):
  monkeypatch.setattr(reading, "SAMPLE", 3)
  write(tmp_path, 5, shape=GREY)
  colour = tmp_path / "cat" / "2.png"
  save(colour, pixels(7))
  assert load(tmp_path).image_shape == COLOUR
  # Grey they would fit into memory.
  whole = 10 * 6 * 5 * 3
  for memory, kind in ((whole, np.ndarray), (whole - 1, Lazy), (whole // 3, Lazy)):
    data = load(tmp_path, options=Options(memory=memory))
    assert isinstance(data.train.images, kind) and data.image_shape == COLOUR
  # On disk those that are looked at decide; the others are brought to that.
  (images, _), *_ = folder.read(str(tmp_path), None, Options(memory=0))
  assert images.shape == (10, 6, 5, 1)
  np.testing.assert_array_equal(images[2], np.asarray(Image.open(colour).convert("L"))[..., None])
  assert load(tmp_path, options=Options(memory=0, skip_corrupt=True)).image_shape == COLOUR


def test_unlabelled_images_lie_anywhere_and_are_made_to_fit(tmp_path):
  write(tmp_path / "set")
  save(tmp_path / "more" / "0.png", pixels(1))
  save(tmp_path / "more" / "deep" / "er" / "1.jpg", pixels(2, (30, 40, 3)))
  save(tmp_path / "more" / "z.png", pixels(3, GREY))
  data = load(tmp_path / "set", options=Options(unlabelled=str(tmp_path / "more")))
  assert isinstance(data.unlabelled, np.ndarray) and data.unlabelled.shape == (3, *COLOUR)
  np.testing.assert_array_equal(data.unlabelled[0], pixels(1))
  np.testing.assert_array_equal(data.unlabelled[2], np.stack([pixels(3, GREY)] * 3, -1))
  path = zipped(tmp_path / "more", tmp_path / "more.zip")
  again = load(tmp_path / "set", options=Options(unlabelled=str(path)))
  np.testing.assert_array_equal(again.unlabelled, data.unlabelled)
  plain = load(tmp_path / "set")
  assert again.fingerprint == data.fingerprint != plain.fingerprint and plain.unlabelled is None
  lazily = load(tmp_path / "set", options=Options(memory=0, unlabelled=str(path)))
  np.testing.assert_array_equal(lazily.unlabelled[:], data.unlabelled)


OVERLAP = r"holds images of the data set .* Name a folder of other"
PARTS = ("train", "Test", "Test/dog")


@pytest.mark.parametrize("more", [".", "own", "own/Test/..", "link", *(f"own/{p}" for p in PARTS)])
@pytest.mark.parametrize("around", ["", "set", "set/images"])
def test_unlabelled_images_are_others(tmp_path, more, around):
  for part in PARTS[:2]:
    write(tmp_path / "own" / around / part)
  (tmp_path / "link").symlink_to("own")
  path = tmp_path / more.replace("own/", f"own/{around}/", 1)
  with pytest.raises(UserError, match=OVERLAP):
    load(tmp_path / "own", options=Options(unlabelled=str(path)))
  with pytest.raises(UserError, match=OVERLAP):
    load(tmp_path / "own" / around / "Test" / "..", options=Options(unlabelled=str(path)))


@pytest.mark.parametrize("around", ["", "set"])
def test_unlabelled_images_are_of_no_class_where_there_are_no_parts(tmp_path, around):
  write(tmp_path / "own" / around)
  for more in ("own", f"own/{around}", f"own/{around}/cat"):
    with pytest.raises(UserError, match=OVERLAP):
      load(tmp_path / "own", options=Options(unlabelled=str(tmp_path / more)))


def test_unlabelled_images_are_not_those_of_the_zip_file(tmp_path):
  write(tmp_path / "own" / "train")
  write(tmp_path / "own" / "test", seed=1)
  path = zipped(tmp_path / "own", tmp_path / "own.zip", "set/")
  with pytest.raises(UserError, match=OVERLAP):
    load(path, options=Options(unlabelled=str(path)))
  save(tmp_path / "more" / "0.png", pixels(1))
  data = load(path, options=Options(unlabelled=str(tmp_path / "more")))
  assert data.unlabelled is not None and len(data.unlabelled) == 1


def test_unlabelled_images_are_looked_for_in_the_home_folder_too(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  write(tmp_path / "own" / "train")
  write(tmp_path / "own" / "test", seed=1)
  for data_dir, more in (("~", "own/test"), (None, "~/own/test")):
    with pytest.raises(UserError, match=OVERLAP):
      sources.load("folder:~/own", data_dir, 0, 0.25, 0.25, options=Options(unlabelled=more))


@pytest.mark.parametrize("more", ["more", "cat"])  # the name says nothing: it is not used
@pytest.mark.parametrize("around", ["", "set"])
def test_unlabelled_images_may_lie_beside_the_parts(tmp_path, more, around):
  root = tmp_path / "own" / around
  write(root / "train")
  write(root / "test", seed=1)
  write(root / more, classes=("web",), seed=2)
  data = load(tmp_path / "own", options=Options(unlabelled=str(root / more)))
  assert data.unlabelled is not None and len(data.unlabelled) == 4


def test_unlabelled_images_beside_other_data_sets(tmp_path):
  save(tmp_path / "more" / "0.png", pixels(1, (40, 60, 3)))
  options = Options(unlabelled="more")
  data = sources.load("digits", str(tmp_path), 0, 100, 100, options=options)
  assert data.unlabelled is not None and data.unlabelled.shape == (1, 16, 16, 1)


def test_bad_unlabelled_images(tmp_path):
  write(tmp_path / "set")
  spoil(tmp_path / "more", 3)
  options = Options(unlabelled=str(tmp_path / "more"))
  with pytest.raises(UserError, match=r"Cannot read 3 of 20 images:\n  .*/more/cat/0\.png"):
    load(tmp_path / "set", options=options)
  data = load(tmp_path / "set", options=dataclasses.replace(options, skip_corrupt=True))
  assert len(data.skipped) == 3 and data.unlabelled is not None and len(data.unlabelled) == 17
  for path, message in (("gone", "'folder:.*gone' is no folder"), ("none", "none holds no images")):
    (tmp_path / "none").mkdir(exist_ok=True)
    with pytest.raises(UserError, match=message):
      load(tmp_path / "set", options=Options(unlabelled=str(tmp_path / path)))


@pytest.mark.parametrize(("field", "value"), [("size", -1), ("size", 5000), ("memory", -1)])
def test_options_are_checked(field, value):
  with pytest.raises(UserError, match=r"config\.data\.(size|memory_mib) is .* must lie between"):
    Options(**{field: value})


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
