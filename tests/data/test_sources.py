"""Data sets: digits, a tiny TFDS data set written and read back, CIFAR-10 where it is at hand."""

import io
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits
from tensorflow_datasets.core import registered

from rkd_jax.data import decode, sources
from rkd_jax.data.lazy import Lazy
from rkd_jax.data.reading import Options
from rkd_jax.errors import UserError

PREPARE = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data" / "prepare.py"


def pixels_of(label, number, shape=(6, 5, 3)):
  return np.random.default_rng([label, number]).integers(0, 256, shape, np.uint8)


def png(image):
  buffer = io.BytesIO()
  Image.fromarray(image.squeeze()).save(buffer, "PNG")
  return buffer.getvalue()


def write(data_dir, name, splits, channels=3, label=None):
  """Writes a TFDS data set of {split: [(uint8[H, W, C], label)]} as array_record."""
  features = {
    "image": tfds.features.Image(shape=(None, None, channels)),
    "label": label or tfds.features.ClassLabel(names=["cat", "dog", "owl"]),
  }

  def info(self):
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

  def examples(rows):
    for i, (image, label) in enumerate(rows):
      yield i, {"image": png(image), "label": label}

  body = {
    "name": name,
    "VERSION": tfds.core.Version("1.0.0"),
    "_info": info,
    "_split_generators": lambda self, _: {s: examples(rows) for s, rows in splits.items()},
    "_generate_examples": lambda self: None,
  }
  with registered.skip_registration():
    cls = type(name.title(), (tfds.core.GeneratorBasedBuilder,), body)
  config = tfds.download.DownloadConfig(register_checksums=False)
  builder = cls(data_dir=str(data_dir), file_format="array_record")
  builder.download_and_prepare(download_config=config)
  return builder


def rows_of(number, shape=(6, 5, 3)):
  return [(pixels_of(k, i, shape), k) for i in range(number) for k in range(3)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """A folder with `pets` (train, test), `ragged`, `untested`, `grey`, `words`."""
  root = tmp_path_factory.mktemp("tfds")
  write(root, "pets", {"train": rows_of(10), "test": rows_of(4)})
  write(root, "ragged", {"train": [*rows_of(2), (pixels_of(0, 9, (7, 5, 3)), 0)]})
  write(root, "untested", {"train": rows_of(10)})
  grey = {"train": rows_of(5, (4, 4, 1)), "validation": rows_of(2, (4, 4, 1))}
  write(root, "grey", grey, channels=1)
  write(root, "numbers", {"train": rows_of(2)}, label=tfds.features.Scalar(np.int64))
  return str(root)


@pytest.fixture(scope="module")
def digits():
  return sources.load("digits", None, split_seed=0, holdout=197, test=500)


def test_digits_parts(digits):
  assert [len(s) for s in (digits.train, digits.holdout, digits.test)] == [1100, 197, 500]
  assert digits.image_shape == (16, 16, 1) and digits.classes == 10
  assert digits.class_names[3] == "3"
  assert digits.train.images.dtype == np.uint8 and digits.train.labels.dtype == np.int32
  assert np.bincount(digits.test.labels).tolist() == [50] * 10
  assert set(np.bincount(digits.holdout.labels).tolist()) == {19, 20}


def test_digits_are_each_used_once(digits):
  parts = (digits.train, digits.holdout, digits.test)
  # Nearest neighbour: four equal pixels for each of the 8x8; 16 grey levels become 255.
  small = np.concatenate([p.images for p in parts])[:, ::2, ::2, 0]
  ours = np.concatenate(
    [small.reshape(-1, 64), np.concatenate([p.labels for p in parts])[:, None]], 1
  )
  grey, labels = load_digits(return_X_y=True)
  theirs = np.column_stack([np.round(np.asarray(grey) * 255 / 16), labels]).astype(int)
  assert sorted(map(tuple, ours.tolist())) == sorted(map(tuple, theirs.tolist()))
  assert np.array_equal(parts[0].images[:, ::2, ::2], parts[0].images[:, 1::2, 1::2])


def test_digits_statistics_and_fingerprint(digits):
  pixels = digits.train.images / 255
  np.testing.assert_allclose(digits.mean, [pixels.mean()], rtol=1e-9)
  np.testing.assert_allclose(digits.std, [pixels.std()], rtol=1e-9)
  again = sources.load("digits", None, 0, holdout=197.0, test=500)
  other = sources.load("digits", None, 1, holdout=197, test=500)
  assert re.fullmatch("[0-9a-f]{64}", digits.fingerprint)
  assert again.fingerprint == digits.fingerprint != other.fingerprint
  assert not np.array_equal(other.test.labels, digits.test.labels)


def test_digits_by_fractions():
  data = sources.load("digits", None, 0, holdout=0.1, test=0.25)
  assert [len(s) for s in (data.test, data.holdout, data.train)] == [449, 135, 1213]


def test_statistics_by_hand():
  images = np.zeros((2, 1, 2, 2), np.uint8)
  images[0, 0, :, 0] = 255
  mean, std = sources.statistics(images)
  assert mean == (0.5, 0.0) and std == (0.5, 1 / 255)  # a constant channel divides by one level


def keyed(split):
  return [(int(k), x.tobytes()) for x, k in zip(split.images, split.labels, strict=True)]


def written(number):
  return sorted((k, x.tobytes()) for x, k in rows_of(number))


def test_tfds_is_read_back(prepared):
  data = sources.load("tfds:pets", prepared, split_seed=0, holdout=0.2, test=0)
  assert [len(s) for s in (data.train, data.holdout, data.test)] == [24, 6, 12]
  assert data.class_names == ("cat", "dog", "owl") and data.image_shape == (6, 5, 3)
  assert np.bincount(data.holdout.labels).tolist() == [2, 2, 2]
  assert sorted(keyed(data.train) + keyed(data.holdout)) == written(10)
  assert sorted(keyed(data.test)) == written(4)
  assert "tensorflow" not in sys.modules


def test_tfds_grey_and_validation(prepared):
  data = sources.load("tfds:grey:1.0.0", prepared, 0, holdout=3, test=0)
  assert data.image_shape == (4, 4, 1) and len(data.test) == 6 and len(data.mean) == 1


def test_tfds_without_a_test_part_gives_some_of_train(prepared):
  data = sources.load("tfds:untested", prepared, 0, holdout=3, test=6)
  assert [len(s) for s in (data.train, data.holdout, data.test)] == [21, 3, 6]


def test_tfrecord_is_refused(tmp_path):
  builder = write(tmp_path, "birds", {"train": rows_of(2)})
  folder = pathlib.Path(builder.data_path)
  for file in folder.glob("*array_record*"):
    file.rename(str(file).replace("array_record", "tfrecord"))
  info = folder / "dataset_info.json"
  info.write_text(info.read_text().replace("array_record", "tfrecord"))
  with pytest.raises(UserError, match="is in tfrecord format, which has no random access"):
    sources.load("tfds:birds", str(tmp_path), 0, 1, 1)


@pytest.mark.parametrize(
  "name, message",
  [
    ("digit", "No data set is called 'digit'. Did you mean 'digits'"),
    ("cifar10", "No data set is called 'cifar10'. Did you mean 'tfds:cifar10'"),
    ("nothing-like-it", "Write 'digits', 'tfds:' and the name .*, or 'folder:' and the path"),
    ("folders:x", "Write 'digits', 'tfds:' and the name .*, or 'folder:' and the path"),
    ("digits:8", "takes nothing after its name, but got '8'"),
    ("tfds:cifar_10", "knows no data set 'cifar_10', and none lies in {root}. .*'tfds:cifar10'"),
    ("tfds:a b", "TFDS cannot open 'a b'"),
    ("tfds:cifar10:9.9.9", "TFDS cannot open 'cifar10:9.9.9'"),
    ("tfds:cifar10", "not prepared: looked in {root}/cifar10/3.0.2. .*array_record"),
    ("tfds:ragged", r"unequal size: 'train' holds .*\(6, 5, 3\).* \(height, width, channels\)"),
    ("tfds:numbers", "no set of labelled images: its feature 'label' should be a ClassLabel"),
  ],
)
def test_errors_say_what_to_do(prepared, name, message):
  with pytest.raises(UserError, match=message.replace("{root}", re.escape(prepared))):
    sources.load(name, prepared, 0, holdout=0.2, test=0.2)


def test_a_folder_without_its_kind_is_recognised(tmp_path):
  (tmp_path / "my images").mkdir()
  (tmp_path / "x.npz").write_bytes(b"")
  for name, meant in (("my images", "folder:my images"), ("x.npz", "npz:x.npz")):
    with pytest.raises(UserError, match=f"Did you mean '{meant}'"):
      sources.load(name, str(tmp_path), 0, 1, 1)


def test_empty_parts_are_refused():
  with pytest.raises(UserError, match="The holdout part of 'digits' is empty"):
    sources.load("digits", None, 0, holdout=0, test=500)
  with pytest.raises(UserError, match="The test part of 'digits' is empty"):
    sources.load("digits", None, 0, holdout=10, test=0)
  said = r"The train part of 'digits' is empty \(0 train, 1,297 holdout, 500 test\)"
  with pytest.raises(UserError, match=said):
    sources.load("digits", None, 0, holdout=1297, test=500)


@pytest.mark.slow
@pytest.mark.skipif(not PREPARE.exists(), reason="needs CIFAR-10: ../shared/data is not there")
def test_cifar10(tmp_path):
  command = [sys.executable, PREPARE, "--data_dir", tmp_path, "cifar10"]
  subprocess.run(command, check=True, capture_output=True)
  data = sources.load("tfds:cifar10", str(tmp_path), 0, holdout=0.1, test=0)
  assert [len(s) for s in (data.train, data.holdout, data.test)] == [45000, 5000, 10000]
  assert data.image_shape == (32, 32, 3) and data.classes == 10
  for split, count in ((data.train, 4500), (data.holdout, 500), (data.test, 1000)):
    assert np.bincount(split.labels).tolist() == [count] * 10
  # The published constants, from the pixels of all 50,000 training images.
  mean, std = sources.statistics(np.concatenate([data.train.images, data.holdout.images]))
  np.testing.assert_allclose(mean, data.mean, atol=5e-5)
  np.testing.assert_allclose(std, data.std, atol=5e-5)
  assert data.mean == (0.4914, 0.4822, 0.4465)


def test_train_takes_a_balanced_subset_of_what_the_other_parts_leave():
  whole = sources.load("digits", None, 0, 197, 500)
  some = sources.load("digits", None, 0, 197, 500, train=200)
  assert len(some.train) == 200 and np.bincount(some.train.labels).tolist() == [20] * 10
  rows = {image.tobytes() for image in whole.train.images}
  assert all(image.tobytes() in rows for image in some.train.images)
  np.testing.assert_array_equal(some.test.images, whole.test.images)
  np.testing.assert_array_equal(some.holdout.labels, whole.holdout.labels)
  assert some.fingerprint != whole.fingerprint


def test_a_fingerprint_stays_what_it_is():
  # Artefacts that were made from these data are found by it.
  known = {
    (0, 197, 500): "0869dc609293a151f1a90cad6aee7c2ab5b7891932dc2c6bff71afc180f8fe7b",
    (1, 197, 500): "b077e735fe109ca23c328570ffe28e5000b59f83f2c86daa488a0ad5ee8f505c",
  }
  for (seed, holdout, test), expected in known.items():
    assert sources.load("digits", None, seed, holdout, test).fingerprint == expected


def test_any_source_is_resized():
  whole, small = (
    sources.load("digits", None, 0, 3, 3, options=Options(size=size)) for size in (0, 4)
  )
  assert small.image_shape == (4, 4, 1)
  np.testing.assert_array_equal(small.train.labels, whole.train.labels)
  means = whole.train.images.reshape(-1, 4, 4, 4, 4, 1).mean((2, 4))
  # antialiased bilinear: a triangle as wide as two pixels, so like the mean of one, but smoother
  assert np.corrcoef(means.ravel(), small.train.images.ravel())[0, 1] > 0.95
  assert whole.fingerprint != small.fingerprint


def test_the_middle_is_taken_as_from_files():
  pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)
  from_file = decode.decode(png(pixels), "a.png", size=8)
  np.testing.assert_array_equal(decode.fit(pixels, 8), from_file)


class Counted:
  """Images that are made when asked for, and count it."""

  shape = (2, 2, 3)

  def __init__(self, number):
    self.number, self.asked = number, []

  def __len__(self):
    return self.number

  def one(self, row):
    self.asked.append(row)
    return np.full(self.shape, row % 251, np.uint8)


def test_statistics_of_images_on_disk_are_of_some_evenly_spaced_ones(monkeypatch):
  monkeypatch.setattr(sources, "SAMPLE", 100)
  monkeypatch.setattr(sources, "CHUNK", 64)
  made = Counted(1000)
  mean, std = sources.statistics(Lazy(made))
  assert sorted(made.asked) == list(range(0, 1000, 10))
  values = np.arange(0, 1000, 10) % 251 / 255
  np.testing.assert_allclose(mean, [values.mean()] * 3)
  np.testing.assert_allclose(std, [values.std()] * 3)
  few = Counted(40)
  sources.statistics(Lazy(few))
  assert sorted(few.asked) == list(range(40))


def test_a_split_of_images_on_disk_is_taken_without_reading():
  made = Counted(50)
  split = sources.Split(Lazy(made), np.arange(50, dtype=np.int32)).take(np.array([7, 3]))
  assert split.labels.tolist() == [7, 3] and not made.asked
  assert split.images[:][:, 0, 0, 0].tolist() == [7, 3]
