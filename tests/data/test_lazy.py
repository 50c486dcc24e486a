"""Images on disk behave as an array of them does, and are read only when rows are asked for."""

import pickle
import threading

import numpy as np
import pytest
from PIL import Image

from rkd_jax.data import decode, lazy
from rkd_jax.data.catalogue import Catalogue
from rkd_jax.data.files import Directory, Store
from rkd_jax.data.lazy import Files, Joined, Lazy, concatenate, cropped
from rkd_jax.errors import UserError

N, SHAPE = 23, (6, 5, 3)
PIXELS = np.random.default_rng(0).integers(0, 256, (N, *SHAPE), np.uint8)


def stored(root, pixels):
  root.mkdir(parents=True)
  for k, image in enumerate(pixels):
    Image.fromarray(image.squeeze()).save(root / f"{k:03d}.png")
  with Catalogue(Directory(str(root))) as found:
    return found.store([b""])[0]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
  return stored(tmp_path_factory.mktemp("lazy") / "set", PIXELS)


@pytest.fixture
def images(store):
  return Lazy(Files(store, SHAPE, fit=False))


@pytest.fixture
def reads(monkeypatch):
  """Which files are read, in any order."""
  seen, real = [], Store.read
  monkeypatch.setattr(Store, "read", lambda self, row: (seen.append(row), real(self, row))[1])
  return seen


ROWS = [
  slice(None), slice(3, 9, 2), slice(0, 0), np.array([4, 4, 0]), np.array([-1, 2]),
  np.arange(N) % 3 == 0, np.array([], np.int64), [1, 2], np.array([5], np.int32),
]  # fmt: skip


@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_rows_are_those_of_an_array(images, rows):
  found = images[rows]
  assert isinstance(found, np.ndarray) and found.dtype == np.uint8 and found.flags.writeable
  np.testing.assert_array_equal(found, PIXELS[rows])


def test_one_row_and_what_an_array_says(images):
  np.testing.assert_array_equal(images[7], PIXELS[7])
  np.testing.assert_array_equal(images[np.int32(-1)], PIXELS[-1])
  for name in ("shape", "dtype", "ndim", "nbytes"):
    assert getattr(images, name) == getattr(PIXELS, name)
  assert len(images) == N and isinstance(images.nbytes, int)
  for wrong in (N, np.array([0, N])):
    with pytest.raises(IndexError):
      images[wrong]


def test_taking_reads_nothing(images, reads):
  some = images.take(np.array([5, 1, 9, 1])).take(np.array([2, 0]), axis=0)
  assert some.shape == (2, *SHAPE) and not reads
  np.testing.assert_array_equal(some[:], PIXELS[[9, 5]])
  assert sorted(reads) == [5, 9]
  with pytest.raises(ValueError, match="along axis 0"):
    images.take([0], axis=1)


def test_no_array_is_made_by_mistake(images, reads):
  for make in (np.asarray, np.array, lambda x: np.concatenate([x, x]), np.mean):
    with pytest.raises(TypeError, match="would decode them all"):
      make(images)
  assert not reads


def test_an_array_and_images_on_disk_behind_each_other(images, reads):
  more = 255 - PIXELS[:4]
  joined = concatenate([images.take(np.arange(3)), more, images.take(np.array([9]))])
  expected = np.concatenate([PIXELS[:3], more, PIXELS[[9]]])
  assert isinstance(joined, Lazy) and joined.shape == expected.shape and not reads
  rows = np.array([7, 0, 3, 2, 6, 3])
  np.testing.assert_array_equal(joined[rows], expected[rows])
  again = concatenate([joined, joined.take(rows)]).take(np.array([8, 0, 13]))
  np.testing.assert_array_equal(again[:], expected[[7, 0, 3]])


def test_arrays_behind_each_other_are_an_array():
  found = concatenate([PIXELS[:2], PIXELS[5:6]])
  assert isinstance(found, np.ndarray)
  np.testing.assert_array_equal(found, PIXELS[[0, 1, 5]])


def test_other_shapes_cannot_be_joined(images):
  with pytest.raises(ValueError, match="differ in shape"):
    concatenate([images, PIXELS[:, :5]])


def test_digests_name_the_images_and_their_order(images):
  joined = concatenate([images, PIXELS])
  digests = [
    images.digest(),
    images.take(np.arange(N)[::-1]).digest(),
    images.take(np.arange(N - 1)).digest(),
    joined.digest(),
    joined.take(np.arange(N)).digest(),
    concatenate([images, 255 - PIXELS]).digest(),
  ]
  assert len(set(digests)) == len(digests) and all(len(d) == 32 for d in digests)
  assert images.take(np.arange(N)).digest() == digests[0]


def rngs(count, seed=0):
  return [np.random.default_rng([seed, k]) for k in range(count)]


def test_crops_on_disk_and_in_memory_are_the_same(images):
  rows = np.array([3, 3, 20, 0])
  found = cropped(images, rows, rngs(4), 0.3, (4, 3))
  assert found.shape == (4, 4, 3, 3) and found.dtype == np.uint8
  np.testing.assert_array_equal(found, cropped(PIXELS, rows, rngs(4), 0.3, (4, 3)))
  np.testing.assert_array_equal(found, images.cropped(rows, rngs(4), 0.3, (4, 3)))
  joined = concatenate([PIXELS[:10], images.take(np.arange(10, N))])
  np.testing.assert_array_equal(found, cropped(joined, rows, rngs(4), 0.3, (4, 3)))
  assert not np.array_equal(found[0], found[1])  # a generator each
  one = cropped(images, rows[2:3], rngs(4)[2:3], 0.3, (4, 3))
  np.testing.assert_array_equal(found[2:3], one)


def test_crops_are_of_the_original_not_of_the_resized(tmp_path):
  big = np.random.default_rng(1).integers(0, 256, (1, 40, 60, 3), np.uint8)
  source = Lazy(Files(stored(tmp_path / "big", big), (8, 8, 3), fit=True))
  assert source[0].shape == (8, 8, 3)
  box = decode.crop_box(40, 60, 0.1, rngs(1)[0])
  expected = decode.crop_array(big[0], box, (8, 8))
  np.testing.assert_array_equal(source.cropped([0], rngs(1), 0.1, (8, 8))[0], expected)


def test_many_threads_read_the_same(images):
  wrong = []

  def read(seed):
    rows = np.random.default_rng(seed).integers(0, N, 40)
    if not np.array_equal(images[rows], PIXELS[rows]):
      wrong.append(seed)

  threads = [threading.Thread(target=read, args=(k,)) for k in range(6)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not wrong


def test_it_can_be_sent_to_another_process(images):
  again = pickle.loads(pickle.dumps(images.take(np.arange(5))))
  np.testing.assert_array_equal(again[:], PIXELS[:5])


def test_a_bad_file_is_named_with_what_to_do(tmp_path):
  store = stored(tmp_path / "set", PIXELS)
  images = Lazy(Files(store, SHAPE, fit=False))
  whole = (tmp_path / "set" / "011.png").read_bytes()
  (tmp_path / "set" / "011.png").write_bytes(whole[:50])
  np.testing.assert_array_equal(images[:11], PIXELS[:11])
  message = r"set/011\.png: it .* --config\.data\.skip_corrupt=true\.$"
  for ask in (
    lambda: images[:],
    lambda: images[11],
    lambda: cropped(images, [11], rngs(1), 1, (4, 4)),
  ):
    with pytest.raises(UserError, match=message):
      ask()
  with pytest.raises(UserError, match=message):
    concatenate([images, PIXELS])[10:14]


def test_another_size_is_named_with_what_to_do(tmp_path):
  store = stored(tmp_path / "set", [*PIXELS[:2], PIXELS[2][:5]])
  images = Lazy(Files(store, SHAPE, fit=False))
  with pytest.raises(UserError, match=r"is 5x6 .*set/002\.png is 5x5\. .*--config\.data\.size=32"):
    images[:]
  assert Lazy(Files(store, (4, 4, 3), fit=True))[:].shape == (3, 4, 4, 3)


@pytest.mark.parametrize("count", [0, 1, 2, 63, 64, 65, 1000])
def test_each_runs_all_of_them_once(count, monkeypatch):
  monkeypatch.setattr("os.sched_getaffinity", lambda _: range(7))
  seen = []
  lazy.each(seen.append, count)
  assert sorted(seen) == list(range(count))


def test_the_first_error_ends_the_work(monkeypatch):
  monkeypatch.setattr("os.sched_getaffinity", lambda _: range(2))
  seen = []

  def work(k):
    seen.append(k)
    if k == 3:
      raise KeyError("three")

  with pytest.raises(KeyError, match="three"):
    lazy.each(work, 100_000)
  assert len(seen) < 100_000


def test_joined_parts_are_found_by_number():
  joined = Joined([PIXELS[:2], PIXELS[:0], PIXELS[2:5]])
  assert len(joined) == 5
  for k in range(5):
    np.testing.assert_array_equal(joined.one(k), PIXELS[k])
