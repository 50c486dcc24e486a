"""A zip file as a tree of images, read in place: nothing is extracted.

Python's `zipfile` holds an object for each entry, a gigabyte for a million of them, so the
directory at the file's end is read here, entry by entry. Strangers make zip files: whatever could
write elsewhere, hide what it is, or unpack to far more than it seems is refused before it is read.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from typing import IO

from rkd_jax.data.files import MAX_BYTES, Marks, is_hidden, is_image, shown
from rkd_jax.data.headers import ImageError
from rkd_jax.errors import UserError

ENTRY = struct.Struct("<4sHHHHHHIIIHHHHHII")  # of the directory at the end
LOCAL = struct.Struct("<4s22xHH")  # before each file
END = struct.Struct("<4sHHHHIIH")
END64 = struct.Struct("<4sQHHIIQQQQ")
LOCATOR_SIZE = 20
MAX_COMMENT = 65_535
# Images are packed already; only bitmaps still shrink. Beyond this it is no image, or blank.
MAX_RATIO, FROM_BYTES = 200, 2**20


class Zip:
  """A zip file. Its marks: size in bytes, CRC-32, size as packed, place, method."""

  width, stamp = 5, 2

  def __init__(self, where: str):
    """Finds the directory at its end.

    Raises:
      UserError: if it is no zip file, cut off, or one of several parts.
    """
    self.where = where
    try:
      with open(where, "rb") as file:
        self._count, self._directory, self._after, self._shift = self._end(file)
    except OSError as error:
      raise UserError(f"Cannot read {where}: {error.strerror}. Check its permissions.") from error
    except struct.error:
      raise self._damaged() from None

  def _damaged(self) -> UserError:
    return UserError(
      f"{self.where} is no complete zip file: its directory is missing or damaged. Copy it again; "
      "other archives are read once they are unpacked."
    )

  def _end(self, file: IO[bytes]) -> tuple[int, int, int, int]:
    """(entries, where their directory begins and ends, how many bytes were put before it all)."""
    size = file.seek(0, 2)
    tail_at = max(0, size - MAX_COMMENT - END.size - LOCATOR_SIZE - END64.size)
    file.seek(tail_at)
    tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0:
      raise self._damaged()
    _, disk, first, _, count, length, offset, _ = END.unpack_from(tail, at)
    end = tail_at + at
    if tail[max(0, at - LOCATOR_SIZE) : at].startswith(b"PK\6\7"):  # larger numbers lie before it
      end -= LOCATOR_SIZE + END64.size
      mark, *_, disk, first, _, count, length, offset = END64.unpack_from(tail, end - tail_at)
      if mark != b"PK\6\6":
        raise self._damaged()
    if disk or first:
      raise UserError(f"{self.where} is one part of several. Join them, or unpack them all.")
    if end - length < offset:
      raise self._damaged()
    return count, end - length, end, end - length - offset

  def walk(self) -> Iterator[tuple[bytes, Marks | None]]:
    """As `Tree.walk`.

    Raises:
      UserError: if it is damaged, or has entries that are encrypted, links, bombs, packed in an
        unusual way, or named as if they lay elsewhere.
    """
    with open(self.where, "rb", buffering=2**20) as file:
      file.seek(self._directory)
      count = 0
      # Some programs write the count modulo 2**16 and nothing larger: the length says the end.
      while file.tell() < self._after:
        fixed = file.read(ENTRY.size)
        if len(fixed) < ENTRY.size or fixed[:4] != b"PK\1\2":
          raise self._damaged()
        fields = ENTRY.unpack(fixed)
        name = file.read(fields[10])
        extra = file.read(fields[11])
        file.seek(fields[12], 1)
        count += 1
        if found := self._entry(fields, name, extra):
          yield found
      if file.tell() != self._after or (count - self._count) % 2**16:
        raise self._damaged()

  def _entry(self, fields: tuple, raw: bytes, extra: bytes) -> tuple[bytes, Marks | None] | None:
    _, made, _, flags, method, _, _, crc, packed, size, _, _, _, _, _, attributes, offset = fields
    name = _utf8(raw, bool(flags & 0x800))
    self._check_name(name)
    if any(is_hidden(part) for part in name.split(b"/")):
      return None
    if name.endswith(b"/"):
      return name.rstrip(b"/"), None
    if made >> 8 == 3 and attributes >> 28 == 0o12:  # Unix's kind of file
      raise self._refused(name, "is a symbolic link", "Zip what it points to instead")
    if not is_image(name):
      return None
    size, packed, offset = _wide(extra, size, packed, offset)
    if flags & 0x41:
      raise self._refused(name, "is encrypted", "Make a zip without a password")
    if method not in (0, 8):
      raise self._refused(name, "is packed by an unusual method", "Zip it with Deflate, or unpack")
    if size > MAX_BYTES or packed > MAX_BYTES:
      raise self._refused(name, f"unpacks to {size >> 20:,} MiB", "Leave it out")
    if size > FROM_BYTES and size > MAX_RATIO * packed:
      what = f"unpacks to {size / max(packed, 1):,.0f} times its size, as a zip bomb does"
      raise self._refused(name, what, "If you trust it, unpack it and give the folder")
    if offset + self._shift > self._directory:
      raise self._damaged()
    return name, (size, crc, packed, offset + self._shift, method)

  def _check_name(self, name: bytes) -> None:
    odd = name.startswith(b"/") or b"\\" in name or re.match(rb"[A-Za-z]:", name)
    if odd or not name or any(part in (b"..", b".") for part in name.split(b"/")):
      raise self._refused(
        name, "has a name that could lead out of the archive", "Make the zip anew"
      )

  def _refused(self, name: bytes, what: str, advice: str) -> UserError:
    return UserError(f"{self.where}: the entry {shown(name)!r} {what}. {advice}.")

  def read(self, path: bytes, marks: Marks) -> bytes:
    """As `Tree.read`. Opens the file anew: threads and processes share nothing."""
    size, crc, packed, offset, method = marks
    name = f"{self.where}/{shown(path)}"
    try:
      with open(self.where, "rb") as file:
        file.seek(offset)
        mark, names, extra = LOCAL.unpack(file.read(LOCAL.size))
        file.seek(names + extra, 1)
        data = file.read(packed)
      if mark != b"PK\3\4" or len(data) != packed:
        raise zlib.error("no file where one should begin")
      if method:  # at most one byte more than declared is ever unpacked
        data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
      if len(data) != size or zlib.crc32(data) != crc:
        raise zlib.error("size or checksum differ")
      return data
    except (zlib.error, struct.error) as error:
      raise ImageError(name, f"the zip file is damaged there ({error}). Copy it again.") from error
    except OSError as error:
      raise ImageError(name, f"{error.strerror}. Check that the zip file is there.") from error


def _utf8(raw: bytes, declared: bool) -> bytes:
  """The name in UTF-8; where it is not, it is in the code page of the first zip programs."""
  try:
    return raw.decode().encode()
  except UnicodeDecodeError:
    return raw if declared else raw.decode("cp437").encode()


def _wide(extra: bytes, *fields: int) -> list[int]:
  """The fields, those that did not fit into 32 bits from the extra part."""
  found, at = list(fields), 0
  while at + 4 <= len(extra):
    kind, length = struct.unpack_from("<HH", extra, at)
    if kind == 1:
      numbers = struct.unpack_from(f"<{min(length, len(extra) - at - 4) // 8}Q", extra, at + 4)
      following = iter(numbers)
      found = [next(following, n) if n == 0xFFFFFFFF else n for n in found]
    at += 4 + length
  return found
