"""Trees, catalogues and stores: what is listed, what is refused, how much memory a list takes."""

import io
import os
import pickle
import stat
import struct
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from rkd_jax.data import catalogue, files, zipped
from rkd_jax.data.catalogue import Catalogue
from rkd_jax.data.files import Directory
from rkd_jax.data.headers import ImageError
from rkd_jax.data.zipped import Zip
from rkd_jax.errors import UserError

CONTENT = {
  "a/10.png": b"ten",
  "a/2.png": b"two" * 999,
  "a/deep/er/x.JPG": b"x",
  "b/1.webp": b"one",
  "b c/é.bmp": b"e",
}
PASSED_OVER = {
  "a/.hidden.png": b"h",
  "a/notes.txt": b"n",
  "__MACOSX/a/._2.png": b"m",
  ".git/x.png": b"g",
}


def directory(root, content):
  for name, data in content.items():
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(data)
  return Directory(str(root))


def zip_file(path, content, method=zipfile.ZIP_DEFLATED):
  with zipfile.ZipFile(path, "w", method) as archive:
    for name, data in content.items():
      archive.writestr(name, data)
  return path


def store_of(tree, *paths):
  with Catalogue(tree) as found:
    return found.store([p.encode() for p in paths] or [b""])


def contents(store):
  return {store.name(k): store.read(k) for k in range(len(store))}


@pytest.fixture(params=["directory", "stored", "deflated"])
def tree(request, tmp_path):
  everything = CONTENT | PASSED_OVER
  if request.param == "directory":
    return directory(tmp_path / "set", everything)
  method = zipfile.ZIP_STORED if request.param == "stored" else zipfile.ZIP_DEFLATED
  return Zip(str(zip_file(tmp_path / "set.zip", everything, method)))


def test_what_is_listed_and_read(tree):
  store, folders = store_of(tree)
  assert contents(store) == {f"{tree.where}/{name}": data for name, data in CONTENT.items()}
  assert [store.name(k) for k in range(5)] == [f"{tree.where}/{n}" for n in sorted(CONTENT)]
  assert folders.dtype == np.int32 and not folders.any()


def test_folders_and_their_images(tree):
  with Catalogue(tree) as found:
    assert found.folders(b"") == [b"a", b"b", b"b c"] and found.folders(b"a") == [b"deep"]
    assert found.folders(b"a/deep/er") == [] and found.has_files(b"a")
    assert not found.has_files(b"") and not found.has_files(b"a/deep")
    store, folders = found.store([b"b", b"b c", b"a"])
  assert folders.tolist() == [0, 1, 2, 2, 2]
  assert store.name(0).endswith("b/1.webp") and store.read(3) == CONTENT["a/2.png"]


def test_a_store_is_read_from_threads_and_after_pickling(tree):
  store, _ = store_of(tree)
  expected = [store.read(k) for k in range(5)]
  with ThreadPoolExecutor(8) as pool:
    rows = [k % 5 for k in range(200)]
    assert list(pool.map(store.read, rows)) == [expected[k] for k in rows]
  again = pickle.loads(pickle.dumps(store))
  assert [again.read(k) for k in range(5)] == expected
  assert again.digest(np.arange(5)) == store.digest(np.arange(5))


def test_a_digest_says_which_files_in_which_order(tmp_path):
  one, _ = store_of(directory(tmp_path / "one", CONTENT))
  rows = np.arange(5)
  assert one.digest(rows) != one.digest(rows[::-1]) != one.digest(rows[:4])
  os.rename(tmp_path / "one", tmp_path / "moved")
  moved, _ = store_of(Directory(str(tmp_path / "moved")))
  assert moved.digest(rows) == one.digest(rows)
  os.utime(tmp_path / "moved" / "a" / "2.png", ns=(1, 1))
  assert store_of(Directory(str(tmp_path / "moved")))[0].digest(rows) != one.digest(rows)


def test_a_zips_digest_does_not_depend_on_how_it_is_packed(tmp_path):
  rows = np.arange(5)
  stored, _ = store_of(Zip(str(zip_file(tmp_path / "a.zip", CONTENT, zipfile.ZIP_STORED))))
  packed, _ = store_of(Zip(str(zip_file(tmp_path / "b.zip", CONTENT))))
  other, _ = store_of(Zip(str(zip_file(tmp_path / "c.zip", CONTENT | {"a/2.png": b"TWO" * 999}))))
  assert stored.digest(rows) == packed.digest(rows) != other.digest(rows)


def test_names_for_people_have_no_control_characters(tmp_path):
  name = b"evil\x1b[31m\n\xff.png"
  (tmp_path / "set").mkdir()
  (tmp_path / "set" / os.fsdecode(name)).write_bytes(b"data")
  store, _ = store_of(Directory(str(tmp_path / "set")))
  assert store.name(0) == f"{tmp_path}/set/evil\\x1b[31m\\n\\udcff.png"
  assert store.read(0) == b"data"


def test_links_within_are_read_or_passed_over(tmp_path):
  tree = directory(tmp_path / "set", {"a/1.png": b"one", "b/2.png": b"two"})
  (tmp_path / "set" / "b" / "again.png").symlink_to("../a/1.png")
  (tmp_path / "set" / "b" / "loop").symlink_to("..")
  (tmp_path / "set" / "b" / "self").symlink_to("self")
  (tmp_path / "set" / "b" / "notes").symlink_to("/etc/hostname")  # no image: not read at all
  found = contents(store_of(tree)[0])
  names = ["a/1.png", "b/2.png", "b/again.png"]
  assert list(found) == [f"{tree.where}/{n}" for n in names]
  assert found[f"{tree.where}/b/again.png"] == b"one"


def test_a_linked_root_is_a_root(tmp_path):
  directory(tmp_path / "set", CONTENT)
  (tmp_path / "link").symlink_to("set")
  assert len(store_of(Directory(str(tmp_path / "link")))[0]) == 5


@pytest.mark.parametrize(
  ("name", "target", "message"),
  [
    ("x.png", "../outside/secret.png", r"set/a/x\.png is a link that leads out of .*/set, to "),
    ("x.png", "/etc/passwd", r"leads out of .*/set, to /etc/passwd\. Copy what it points to"),
    ("folder", "../../outside", r"set/a/folder is a link that leads out of .*outside"),
    ("x.png", "nowhere.png", r"x\.png is a link to .*nowhere\.png, which is not there\. Remove it"),
    ("x.png", "x.png", r"x\.png is a link to .*which is not there"),
  ],
)
def test_links_that_lead_out_or_nowhere_are_refused(tmp_path, name, target, message):
  directory(tmp_path / "outside", {"secret.png": b"secret"})
  tree = directory(tmp_path / "set", {"a/1.png": b"one"})
  (tmp_path / "set" / "a" / name).symlink_to(
    tmp_path / "outside" / "secret.png" if target.endswith("secret.png") else target
  )
  with pytest.raises(UserError, match=message):
    store_of(tree)


def test_a_sibling_whose_name_begins_alike_is_outside(tmp_path):
  directory(tmp_path / "set-2", {"x.png": b"secret"})
  tree = directory(tmp_path / "set", {"a/1.png": b"one"})
  (tmp_path / "set" / "a" / "x.png").symlink_to("../../set-2/x.png")
  with pytest.raises(UserError, match="leads out"):
    store_of(tree)


def test_pipes_are_passed_over_and_never_waited_for(tmp_path):
  tree = directory(tmp_path / "set", {"a/1.png": b"one", "a/2.png": b"two"})
  os.mkfifo(tmp_path / "set" / "a" / "pipe.png")
  store, _ = store_of(tree)
  assert len(store) == 2
  (tmp_path / "set" / "a" / "2.png").unlink()
  os.mkfifo(tmp_path / "set" / "a" / "2.png")
  with pytest.raises(ImageError, match=r"a/2\.png: it is no regular file any more"):
    store.read(1)


def test_files_that_are_gone_or_too_large(tmp_path, monkeypatch):
  store, _ = store_of(directory(tmp_path / "set", {"a/1.png": b"one", "a/2.png": b"two" * 99}))
  (tmp_path / "set" / "a" / "1.png").unlink()
  with pytest.raises(ImageError, match=r"a/1\.png: No such file or directory\. Check that it is"):
    store.read(0)
  monkeypatch.setattr(files, "MAX_BYTES", 100)
  with pytest.raises(ImageError, match=r"a/2\.png: it has more than"):
    store.read(1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_named(tmp_path):
  tree = directory(tmp_path / "set", CONTENT)
  store, _ = store_of(tree)
  (tmp_path / "set" / "a" / "10.png").chmod(0)
  with pytest.raises(ImageError, match=r"a/10\.png: Permission denied\. Check that"):
    store.read(0)
  (tmp_path / "set" / "a").chmod(0)
  with pytest.raises(UserError, match=r"Cannot read the folder .*/set/a: Permission denied"):
    store_of(tree)
  (tmp_path / "set" / "a").chmod(0o700)


def refuse_to_scan(monkeypatch, error):
  def scandir(path):
    raise error

  monkeypatch.setattr(os, "scandir", scandir)


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
  tree = directory(tmp_path / "set", CONTENT)
  refuse_to_scan(monkeypatch, PermissionError(13, "Permission denied"))
  with pytest.raises(UserError, match=r"Cannot read the folder .*/set: Permission denied\. Check"):
    store_of(tree)


def test_a_full_disk_is_said(tmp_path, monkeypatch):
  tree = directory(tmp_path / "set", CONTENT)

  def full(self, values):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(catalogue.Column, "add", full)
  with pytest.raises(UserError, match=r"list of images to .*No space left .* set TMPDIR"):
    store_of(tree)


class Synthetic:
  """A tree of so many files that are nowhere."""

  where, width, stamp = "synthetic", 2, 2

  def __init__(self, count):
    self.count = count

  def walk(self):
    for k in range(self.count):
      number = k * 7919 % self.count  # 7919 is prime: each once, in no order
      yield f"class {number % 100}/image number {number:09d}.jpg".encode(), (number, k)

  def read(self, path, marks):
    return path


def peak_of(count):
  tracemalloc.start()
  store, folders = store_of(Synthetic(count), *[f"class {k}" for k in range(100)])
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert len(store) == count and np.bincount(folders).tolist() == [count // 100] * 100
  return peak, store


def test_a_list_takes_no_memory_for_each_file():
  small, _ = peak_of(10_000)
  large, store = peak_of(100_000)
  # Batches of rows, whatever the count. Names alone would take 60 bytes each as Python strings.
  assert large < 6e6 and (large - small) / 90_000 < 8
  assert store.read(0) == b"class 0/image number 000000000.jpg"
  assert store.read(99_999) == b"class 99/image number 000099999.jpg"
  assert store.name(1000) == "synthetic/class 1/image number 000000001.jpg"


def entry(name="a/x.png", data=b"data" * 10, **fields):
  info = zipfile.ZipInfo(name)
  for field, value in fields.items():
    setattr(info, field, value)
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w") as archive:
    archive.writestr(info, data, fields.get("compress_type", zipfile.ZIP_STORED))
  return bytearray(buffer.getvalue())


def renamed(name):
  """zipfile mends some names on writing."""
  data = entry("x" * len(name) + ".png")
  return data.replace(b"x" * len(name), name.encode())


def patched(offset, form, value, data=None):
  """A zip whose entry in the directory at the end has another value in one field."""
  data = data or entry()
  at = data.index(b"PK\1\2")
  struct.pack_into(form, data, at + offset, value)
  return data


def far():
  """A zip whose entry lies beyond what 63 bits count."""
  at = (data := entry()).index(b"PK\1\2")
  data = patched(42, "<I", 0xFFFFFFFF, patched(30, "<H", 12))
  data[at + 53 : at + 53] = struct.pack("<HHQ", 1, 8, 2**63)
  struct.pack_into("<I", data, len(data) - 10, len(data) - 22 - at)
  return data


LINK = (stat.S_IFLNK | 0o777) << 16
BAD_ZIPS = {  # name: (file, what the message says)
  "leads up": (renamed("../../evil"), "'../../evil.png' has a name that could lead out"),
  "leads up within": (renamed("a/../../evil"), "could lead out of the archive. Make the zip anew"),
  "absolute": (renamed("/etc/evil"), "could lead out"),
  "backslashes": (renamed("a\\..\\evil"), "could lead out"),
  "a drive": (renamed("C:evil"), "could lead out"),
  "hidden and leads up": (renamed(".x/../evil"), "could lead out"),
  "a link": (entry(external_attr=LINK, create_system=3), "'a/x.png' is a symbolic link. Zip what"),
  "encrypted": (patched(8, "<H", 1), "'a/x.png' is encrypted. Make a zip without a password"),
  "unusual packing": (entry(compress_type=zipfile.ZIP_LZMA), "packed by an unusual method"),
  "a bomb": (
    entry(data=bytes(2**22), compress_type=zipfile.ZIP_DEFLATED),
    "'a/x.png' unpacks to 1,0.. times its size, as a zip bomb does. If you trust it, unpack",
  ),
  "says it is huge": (patched(24, "<I", 2**31), "'a/x.png' unpacks to 2,048 MiB"),
  "cut off": (entry()[:-30], "no complete zip file.* Copy it again"),
  "only its end": (entry()[-22:], "no complete zip file"),
  "no zip": (b"Rar!\x1a\7" + bytes(500), "no complete zip file.* unpacked"),
  "empty": (b"", "no complete zip file"),
  "more entries than there are": (
    entry()[:-14] + struct.pack("<HH", 9, 9) + entry()[-10:], "no complete zip file"
  ),
  "fewer entries than there are": (
    entry()[:-14] + struct.pack("<HH", 0, 0) + entry()[-10:], "no complete zip file"
  ),
  "an entry beyond the end": (patched(42, "<I", 500), "no complete zip file"),
  "an entry far beyond the end": (far(), "no complete zip file"),
  "several parts": (
    entry()[:-18] + struct.pack("<HH", 1, 1) + entry()[-14:], "one part of several"
  ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ZIPS)
def test_bad_zips_are_refused(tmp_path, name):
  data, message = BAD_ZIPS[name]
  (tmp_path / "set.zip").write_bytes(data)
  with pytest.raises(UserError, match=f"{tmp_path}/set.zip.*{message}"):
    store_of(Zip(str(tmp_path / "set.zip")))


def test_a_name_twice_is_refused(tmp_path):
  with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
    archive.writestr("a/x.png", b"one")
    with pytest.warns(UserWarning, match="Duplicate"):
      archive.writestr("a/x.png", b"two")
  with pytest.raises(UserError, match=r"set\.zip holds 'a/x\.png' twice\. Make the zip anew"):
    store_of(Zip(str(tmp_path / "set.zip")))


DAMAGED = {
  "another checksum": patched(16, "<I", 12345),
  "more than it says": patched(24, "<I", 12),
  "less than it says": patched(24, "<I", 400, entry(compress_type=zipfile.ZIP_DEFLATED)),
  "elsewhere": patched(42, "<I", 7),
  "broken packing": entry(compress_type=zipfile.ZIP_DEFLATED).replace(b"a/x.pngK", b"a/x.png\7"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_entries_are_named_when_read(tmp_path, name):
  (tmp_path / "set.zip").write_bytes(DAMAGED[name])
  store, _ = store_of(Zip(str(tmp_path / "set.zip")))
  with pytest.raises(ImageError, match=r"set\.zip/a/x\.png: the zip file is damaged there .*again"):
    store.read(0)


def test_no_more_is_unpacked_than_was_declared(tmp_path):
  bomb = patched(24, "<I", 1000, entry(data=bytes(2**26), compress_type=zipfile.ZIP_DEFLATED))
  (tmp_path / "set.zip").write_bytes(bomb)
  store, _ = store_of(Zip(str(tmp_path / "set.zip")))
  tracemalloc.start()
  with pytest.raises(ImageError, match="size or checksum differ"):
    store.read(0)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 2**20


def test_something_before_a_zip_and_a_comment_after_it(tmp_path):
  zip_file(tmp_path / "set.zip", CONTENT)
  with zipfile.ZipFile(tmp_path / "set.zip", "a") as archive:
    archive.comment = b"PK comment" * 99
  whole = (tmp_path / "set.zip").read_bytes()
  (tmp_path / "set.zip").write_bytes(b"#!/bin/sh\n" * 50 + whole)
  store, _ = store_of(Zip(str(tmp_path / "set.zip")))
  assert sorted(contents(store).values()) == sorted(CONTENT.values())


def test_zips_with_64_bit_fields_and_streamed_ones(tmp_path, monkeypatch):
  class Unseekable(io.BytesIO):
    def seekable(self):
      return False

  raw = Unseekable()
  monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)
  monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
  with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as archive:
    for name, data in CONTENT.items():
      archive.writestr(name, data)
  assert b"PK\6\6" in raw.getvalue()
  (tmp_path / "set.zip").write_bytes(raw.getvalue())
  store, _ = store_of(Zip(str(tmp_path / "set.zip")))
  assert sorted(contents(store).values()) == sorted(CONTENT.values())


def test_more_entries_than_16_bits_count(tmp_path):
  data = entry("a/x.png")
  at = data.index(b"PK\1\2")
  others = entry("notes.txt", b"")
  note = others[others.index(b"PK\1\2") : others.index(b"PK\5\6")]
  data[at:at] = note * 2**16
  struct.pack_into("<I", data, len(data) - 10, len(data) - 22 - at)  # the directory's length
  assert data[-12:-10] == struct.pack("<H", 1)  # modulo 2**16, as some programs write it
  (tmp_path / "set.zip").write_bytes(data)
  store, _ = store_of(Zip(str(tmp_path / "set.zip")))
  assert list(contents(store).values()) == [b"data" * 10]


def test_old_names_are_in_the_old_code_page(tmp_path):
  data = entry("a/x.png").replace(b"a/x", b"a/\x82")  # é there
  (tmp_path / "set.zip").write_bytes(data)
  store, _ = store_of(Zip(str(tmp_path / "set.zip")))
  assert store.name(0).endswith("set.zip/a/é.png") and store.read(0) == b"data" * 10


def test_a_zip_that_is_gone(tmp_path):
  zip_file(tmp_path / "set.zip", CONTENT)
  store, _ = store_of(Zip(str(tmp_path / "set.zip")))
  (tmp_path / "set.zip").unlink()
  with pytest.raises(ImageError, match=r"No such file or directory\. Check that the zip file is"):
    store.read(0)
  with pytest.raises(UserError, match=r"Cannot read .*set\.zip: No such file"):
    zipped.Zip(str(tmp_path / "set.zip"))
