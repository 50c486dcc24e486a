"""Arrays in a file: every usual naming is read, everything else is refused and never unpickled."""

import io
import zipfile

import numpy as np
import pytest

from rkd_jax.data import npz, sources
from rkd_jax.data.reading import Options
from rkd_jax.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (24, 6, 5, 3), np.uint8)
LABELS = np.arange(24) % 4
MORE = np.random.default_rng(1).integers(0, 256, (8, 6, 5, 3), np.uint8)
MORE_LABELS = np.arange(8) % 4
BOTH = {"x_train": IMAGES, "y_train": LABELS, "x_test": MORE, "y_test": MORE_LABELS}


def saved(tmp_path, save=np.savez, **arrays):
  save(tmp_path / "set.npz", **arrays)
  return tmp_path


def load(tmp_path, **options):
  return sources.load("npz:set.npz", str(tmp_path), 0, 4, 4, options=Options(**options))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("label", [np.int64, np.uint8, np.int32, np.dtype(">i2")])
def test_images_and_labels(tmp_path, save, label):
  saved(tmp_path, save, images=IMAGES, labels=LABELS.astype(label), other=np.zeros(3))
  (images, labels), test, names = npz.read("set.npz", str(tmp_path))
  np.testing.assert_array_equal(images, IMAGES)
  np.testing.assert_array_equal(labels, LABELS)
  assert (images.dtype, labels.dtype, test) == (np.uint8, np.int32, None)
  assert names == ("0", "1", "2", "3")
  data = load(tmp_path)
  assert [len(s) for s in (data.train, data.holdout, data.test)] == [16, 4, 4]


@pytest.mark.parametrize(
  "names",
  [("x_train", "y_train", "x_test", "y_test"),
   ("train_images", "train_labels", "test_images", "test_labels"),
   ("images", "labels", "x_test", "y_test")],
)  # fmt: skip
def test_a_test_part_of_its_own(tmp_path, names):
  saved(tmp_path, **dict(zip(names, BOTH.values(), strict=True)))
  data = load(tmp_path)
  assert [len(s) for s in (data.train, data.holdout, data.test)] == [20, 4, 8]
  np.testing.assert_array_equal(data.test.images, MORE)


def test_forms_that_are_as_good(tmp_path):
  column, fortran = LABELS[:, None], np.asfortranarray(IMAGES)
  names = np.array(["ant", "bee", "cat", "dog", "eel"])
  saved(tmp_path, images=fortran, labels=column, class_names=names)
  (images, labels), _, found = npz.read("set.npz", str(tmp_path))
  np.testing.assert_array_equal(images, IMAGES)
  assert images.flags.c_contiguous and labels.shape == (24,) and found == tuple(names)
  encoded = np.array(["é".encode(), b"b", b"c", b"d"])
  saved(tmp_path, images=IMAGES[..., 0], labels=LABELS, class_names=encoded)
  assert load(tmp_path).class_names == ("é", "b", "c", "d")
  assert load(tmp_path).image_shape == (6, 5, 1)


def test_a_file_may_be_moved_and_is_known_by_its_content(tmp_path):
  one = load(saved(tmp_path, **BOTH))
  (tmp_path / "set.npz").rename(tmp_path / "b.npz")
  moved = sources.load(f"npz:{tmp_path / 'b.npz'}", None, 0, 4, 4)
  other = load(saved(tmp_path, **(BOTH | {"x_test": MORE + 1})))
  assert one.fingerprint == moved.fingerprint != other.fingerprint


class Evil:
  def __reduce__(self):
    return pytest.fail, ("unpickled!",)


def floats(nan=False):
  found = IMAGES / 255
  if nan:
    found[3, 2, 1, 0] = np.nan
  return found


OBJECTS = np.empty(24, object)
OBJECTS[:] = [Evil() for _ in range(24)]
BAD = {  # name: (arrays, what the message says)
  "objects": ({"images": OBJECTS, "labels": LABELS}, "'images.npy' holds Python obj.* not read"),
  "objects as labels": ({"images": IMAGES, "labels": OBJECTS}, "'labels.npy' holds Python objects"),
  "records of objects": (
    {"images": IMAGES, "labels": np.zeros(24, [("a", object)])}, "holds Python objects"
  ),
  "floats": ({"images": floats(), "labels": LABELS}, r"'images' is float64; .*np\.round\(images"),
  "nan": ({"images": floats(True), "labels": LABELS}, "float64, with NaN; .*Mend the NaN first"),
  "int64 pixels": ({"images": IMAGES.astype(int), "labels": LABELS}, "is int64; it must be uint8"),
  "nan labels": ({"images": IMAGES, "labels": LABELS * np.nan}, "'labels' is float64, with NaN"),
  "float labels": ({"images": IMAGES, "labels": LABELS / 1}, r"float64; .*labels\.astype"),
  "one-hot": ({"images": IMAGES, "labels": np.eye(4, dtype=int)[LABELS]}, r"labels\.argmax\(1\)"),
  "names as labels": ({"images": IMAGES, "labels": LABELS.astype(str)}, "go into 'class_names'"),
  "fewer labels": ({"images": IMAGES, "labels": LABELS[:20]}, "24 'images', but 20 'labels'"),
  "none at all": ({"images": IMAGES[:0], "labels": LABELS[:0]}, "0 'images', but 0.*at least one"),
  "negative": ({"images": IMAGES, "labels": LABELS - 1}, "labels from -1 to 2; they begin at 0"),
  "from one on": ({"images": IMAGES, "labels": LABELS + 1}, "to 4, but no training .* label 0"),
  "a gap": ({"images": IMAGES, "labels": LABELS * 1000}, "to 3000, but no training .* label 1"),
  "a huge label": ({"images": IMAGES, "labels": LABELS + 2**40}, "labels from 1099"),
  "other test labels": (BOTH | {"y_test": MORE_LABELS + 1}, "test labels run to 4, but .* 4 class"),
  "too few names": (
    {"images": IMAGES, "labels": LABELS, "class_names": np.array(["a", "b"])},
    "training labels run to 3, but there are 2 classes .*'class_names'",
  ),
  "numbers as names": ({"images": IMAGES, "labels": LABELS, "class_names": LABELS}, "must be str"),
  "names that are no text": (
    {"images": IMAGES, "labels": LABELS, "class_names": np.array([b"a", b"b", b"c", b"\xff"])},
    "'class_names' is no text: .*0xff.* Save str in UTF-8",
  ),
  "a name twice": (
    {"images": IMAGES, "labels": LABELS, "class_names": np.array(["a", "b", "c", "b"])},
    "'class_names' has 'b' twice. Give each class its own name",
  ),
  "channels first": (
    {"images": IMAGES.transpose(0, 3, 1, 2), "labels": LABELS}, r"images\.transpose\(0, 2, 3, 1\)"
  ),
  "flat": ({"images": IMAGES.reshape(24, -1), "labels": LABELS}, r"the shape \(24, 90\)"),
  "four channels": ({"images": np.zeros((24, 6, 5, 4), np.uint8), "labels": LABELS}, "1 or 3"),
  "no labels": ({"images": IMAGES}, "no array 'labels'; it has images. Save 'images' and 'labels'"),
  "no test labels": ({k: BOTH[k] for k in list(BOTH)[:3]}, "no array 'y_test'"),
  "other names": ({"a": IMAGES, "b": LABELS}, "no array 'images'; it has none that is known"),
  "other test size": (BOTH | {"x_test": MORE[:, :5]}, r"\(6, 5, 3\) .* test images \(5, 5, 3\)"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*pickle.*")
@pytest.mark.parametrize("name", BAD)
def test_bad_arrays_are_refused(tmp_path, name):
  arrays, message = BAD[name]
  saved(tmp_path, **arrays)
  with pytest.raises(UserError, match=f"{tmp_path}/set.npz.*{message}"):
    load(tmp_path)


def whole():
  buffer = io.BytesIO()
  np.savez(buffer, images=IMAGES, labels=LABELS)
  return buffer.getvalue()


def npy(array):
  buffer = io.BytesIO()
  np.save(buffer, array)
  return buffer.getvalue()


def packed(**entries):
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
    for name, data in entries.items():
      archive.writestr(f"{name}.npy", data)
  return buffer.getvalue()


def claims(count):
  """An array of 24 numbers whose header says there are `count`."""
  said, instead = (f"({n},), }}".encode().ljust(30) for n in (24, count))
  whole = npy(np.zeros(24, np.uint8))
  assert said in whole
  return whole.replace(said, instead)


FILES = {  # name: (bytes, what the message says)
  "empty": (b"", "is no whole .npz file"),
  "text": (b"images", "is no whole .npz file.* copy it again"),
  "a single array": (npy(IMAGES), "is a single array .*numpy.savez"),
  "cut off": (whole()[:-200], "is no whole .npz file"),
  "damaged": (whole().replace(IMAGES[3, 2].tobytes(), bytes(15)), "no whole .npz.*CRC"),
  "no array in it": (packed(images=b"something", labels=npy(LABELS)), "'images.npy' is no array"),
  "an empty entry": (packed(images=b"", labels=npy(LABELS)), "'images.npy' is no array"),
  "says it is huge": (packed(images=claims(10**13), labels=npy(LABELS)), "not as long as it says"),
  "a strange version": (
    packed(images=npy(IMAGES).replace(b"NUMPY\1", b"NUMPY\7"), labels=npy(LABELS)), "is no array"
  ),
  "cut header": (packed(images=npy(IMAGES)[:20], labels=npy(LABELS)), "'images.npy' is no array"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_bad_files_are_refused(tmp_path, name):
  data, message = FILES[name]
  (tmp_path / "set.npz").write_bytes(data)
  with pytest.raises(UserError, match=f"{tmp_path}/set.npz.*{message}"):
    load(tmp_path)


def test_bombs_are_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(npz, "MAX_BYTES", 2**16)
  saved(tmp_path, np.savez_compressed, images=np.zeros((999, 32, 32), np.uint8), labels=LABELS)
  with pytest.raises(UserError, match=r"'images\.npy' unpacks to .* as a zip bomb does\. If you"):
    load(tmp_path)


def test_names_and_options(tmp_path):
  with pytest.raises(UserError, match=r"'npz:set\.npz' is no file: looked at .*Write 'npz:'"):
    load(tmp_path)
  with pytest.raises(UserError, match="'npz:' is no file"):
    sources.load("npz:", str(tmp_path), 0, 4, 4)
