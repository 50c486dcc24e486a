"""A zip file as a table of entries, read in place. Two readers must not see it differently.

The directory at the end and the header before each entry must say the same; entries must not
overlap; no name may stand there twice. Nothing is extracted.
"""

import dataclasses
import re
import struct
import zlib

import numpy as np

from rkd_jax.interop import budget
from rkd_jax.interop.refusals import AGAIN, RefusedError, shown
from rkd_jax.interop.source import as_bytes, release

_ENTRY = struct.Struct("<4sHHHHHHIIIHHHHHII")  # of the directory at the end
_LOCAL = struct.Struct("<4sHHHHHIIIHH")  # before each entry
_END = struct.Struct("<4sHHHHIIH")
_END64 = struct.Struct("<4sQHHIIQQQQ")
_LOCATOR = struct.Struct("<4sIQI")
_FULL = 0xFFFFFFFF  # "see the wide field"
_ENCRYPTED, _LATER = 0x2041, 0x8  # flags; the latter: sizes stand after the entry
_CHUNK, _RELEASE = 2**16, 2**22


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
  """Attributes:
  name: of it.
  packed: its bytes in the file.
  size: unpacked, in bytes.
  crc: of the unpacked bytes; 0: none was noted.
  method: 0 stored, 8 deflated.
  begin, end: where its header begins, and its bytes end.
  """

  name: str
  packed: memoryview
  size: int
  crc: int
  method: int
  begin: int
  end: int


class Archive:
  """The entries of a zip file.

  Attributes:
    entries: {name: Entry}, in the directory's order.
  """

  def __init__(self, view: memoryview):
    """Reads and checks the directory. Raises `RefusedError`."""
    self._view = view
    self._left = max(budget.UNPACKED, budget.RATIO * len(view))
    count, at, self._end = self._directory()
    self.entries: dict[str, Entry] = {}
    for _ in range(count):
      entry, at = self._entry(at)
      if entry.name in self.entries:
        raise RefusedError(
          f"the entry '{shown(entry.name)}' stands there twice: it was tampered with"
        )
      self.entries[entry.name] = entry
    if at != self._end:
      raise _lies("its directory is of another length than it says")
    self._check_overlaps()

  def _directory(self) -> tuple[int, int, int]:
    """(entries, where their directory begins and ends)."""
    view, size = self._view, len(self._view)
    tail = bytes(view[max(0, size - _END.size - 0xFFFF) :])
    place = tail.rfind(b"PK\5\6", 0, len(tail) - _END.size + 4)
    if place < 0:
      raise RefusedError("it is cut off: the directory at the end of a zip file is missing")
    end = size - len(tail) + place
    _, disk, first, here, count, length, offset, comment = _END.unpack_from(view, end)
    if end + _END.size + comment != size:
      raise RefusedError("bytes follow the end of the zip file, or some are missing")
    found = (disk, first, here, count, length, offset)
    if end >= _LOCATOR.size and view[end - _LOCATOR.size : end - 16] == b"PK\6\7":
      found, end = self._wide_directory(end, found)
    disk, first, here, count, length, offset = found
    if disk or first or here != count:
      raise RefusedError(
        "it is one part of a zip file in several", "Join the parts: zip -FF, or unpack"
      )
    if count > budget.ENTRIES or count * _ENTRY.size > length or offset + length != end:
      raise _lies("its directory is not where it says, or has not as many entries")
    return count, offset, end

  def _wide_directory(self, end: int, found: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    _, _, place, disks = _LOCATOR.unpack_from(self._view, end - _LOCATOR.size)
    if disks > 1 or place + _END64.size + _LOCATOR.size != end:
      raise _lies("its zip64 directory is not where it says")
    mark, length, _, _, *wide = _END64.unpack_from(self._view, place)
    if mark != b"PK\6\6" or length != _END64.size - 12:
      raise _lies("its zip64 directory is none")
    for narrow, value in zip(found, wide, strict=True):
      if narrow not in (0xFFFF, _FULL, value):
        raise _lies("its two directories differ")
    return tuple(wide), place

  def _entry(self, at: int) -> tuple[Entry, int]:
    """(the entry whose record begins here, where the next one does)."""
    if at + _ENTRY.size > self._end or self._view[at : at + 4] != b"PK\1\2":
      raise _lies("its directory is damaged")
    fields = _ENTRY.unpack_from(self._view, at)
    flags, method, _, _, crc, packed, size, names, extras, comment, disk, *_, begin = fields[3:]
    at += _ENTRY.size
    after = at + names + extras + comment
    if after > self._end:
      raise _lies("its directory is damaged")
    raw = bytes(self._view[at : at + names])
    extra = bytes(self._view[at + names : at + names + extras])
    size, packed, begin, disk = _wide(extra, (size, packed, begin, disk))
    name = _name(raw)
    if flags & _ENCRYPTED:
      raise RefusedError(f"the entry '{shown(name)}' is encrypted", "Make it without a password")
    if method not in (0, 8):
      raise RefusedError(
        f"the entry '{shown(name)}' is packed by method {method}; only 0 and 8 (deflate) are read",
        "Save it again as its program does",
      )
    if disk:
      raise RefusedError(
        "it is one part of a zip file in several", "Join the parts: zip -FF, or unpack"
      )
    if (method == 0 and packed != size) or size > budget.DEFLATE * (packed + 1):
      raise _lies(f"the entry '{shown(name)}' cannot unpack to {size:,} bytes")
    data = self._data(begin, raw, (method, crc, packed, size))
    end = data + packed
    return Entry(name, self._view[data:end], size, crc, method, begin, end), after

  def _data(self, begin: int, raw: bytes, said: tuple[int, ...]) -> int:
    """Where an entry's bytes begin: after its header, which must say the same."""
    method, crc, packed, size = said
    if begin + _LOCAL.size > self._end or self._view[begin : begin + 4] != b"PK\3\4":
      raise _lies(f"the entry '{shown(raw.decode('latin1'))}' is not where it says")
    _, _, own, kind, _, _, own_crc, own_packed, own_size, names, extras = _LOCAL.unpack_from(
      self._view, begin
    )
    at = begin + _LOCAL.size
    data = at + names + extras
    if data + packed > self._end:
      raise _lies(f"the entry '{shown(raw.decode('latin1'))}' goes on beyond the directory")
    extra = bytes(self._view[at + names : data])
    own_size, own_packed, _, _ = _wide(extra, (own_size, own_packed, 0, 0))
    here, there = (own_crc, own_packed, own_size), (crc, packed, size)
    later = own & _LATER and all(a in (0, b) for a, b in zip(here, there, strict=True))
    same = here == there or later
    if bytes(self._view[at : at + names]) != raw or kind != method or own & _ENCRYPTED or not same:
      raise _lies(f"the directory and the header of '{shown(raw.decode('latin1'))}' differ")
    return data

  def _check_overlaps(self) -> None:
    end = 0
    for entry in sorted(self.entries.values(), key=lambda entry: entry.begin):
      if entry.begin < end:
        raise _lies(f"the entry '{shown(entry.name)}' overlaps another")
      end = entry.end

  def read(self, entry: Entry) -> memoryview:
    """An entry's bytes, checked: mapped where they are stored, unpacked otherwise."""
    data = entry.packed
    if entry.method:
      self._left -= entry.size
      if self._left < 0:
        raise RefusedError(
          f"it unpacks to over {budget.RATIO} times its size, as a zip bomb does",
          "If you trust it, save it again uncompressed",
        )
      data = memoryview(_inflated(entry))
    if entry.crc and _checksum(data) != entry.crc:
      raise RefusedError(
        f"the entry '{shown(entry.name)}' is damaged: its checksum is another", AGAIN
      )
    return data.toreadonly()

  def array(self, entry: Entry) -> np.ndarray:
    """uint8[N] of an entry, read-only."""
    return as_bytes(self.read(entry))


def _inflated(entry: Entry) -> bytearray:
  """Unpacks into one buffer of the size that was declared, piece by piece."""
  found, at, unpacker = bytearray(entry.size), 0, zlib.decompressobj(-zlib.MAX_WBITS)
  try:
    for start in range(0, len(entry.packed), _CHUNK):
      rest: bytes | memoryview = entry.packed[start : start + _CHUNK]
      while rest:
        piece = unpacker.decompress(rest, budget.MIB)
        if at + len(piece) > entry.size or unpacker.unused_data:
          raise zlib.error
        found[at : at + len(piece)] = piece
        at, rest = at + len(piece), unpacker.unconsumed_tail
      if start % _RELEASE == 0:
        release(entry.packed)
    tail = unpacker.flush()
    if not unpacker.eof or tail or at != entry.size:
      raise zlib.error
  except zlib.error:
    raise RefusedError(f"the entry '{shown(entry.name)}' does not unpack to what it says") from None
  return found


def _checksum(data: memoryview) -> int:
  """CRC-32, a piece at a time: what is only looked at here need not stay in memory."""
  found = 0
  for start in range(0, len(data), _RELEASE):
    found = zlib.crc32(data[start : start + _RELEASE], found)
    release(data)
  return found


def _lies(what: str) -> RefusedError:
  return RefusedError(f"{what}: it is damaged or tampered with")


def _name(raw: bytes) -> str:
  try:
    name = raw.decode()
  except UnicodeDecodeError:
    raise _lies("an entry whose name is no UTF-8") from None
  parts = name.split("/")
  if not name or "\\" in name or re.search(r"[\x00-\x1f\x7f:]", name) or {"..", "."} & set(parts):
    raise _lies(f"the entry '{shown(name)}' has a name that could lead out of the archive")
  if name.startswith("/") or len(name) > budget.NAME:
    raise _lies(f"the entry '{shown(name)}' has a name that could lead out of the archive")
  return name


def _wide(extra: bytes, fields: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
  """(size, packed, begin, disk), from the zip64 field where they did not fit; each is there at most
  once, in this order, if its narrow field is full."""
  found, at = list(fields), 0
  full = [i for i, value in enumerate(fields) if value == (0xFFFF if i == 3 else _FULL)]
  while full and at + 4 <= len(extra):
    kind, length = struct.unpack_from("<HH", extra, at)
    at += 4
    if kind == 1 and at + length <= len(extra):
      for i in full:
        width = 4 if i == 3 else 8
        if length < width:
          raise _lies("a zip64 field that is too short")
        found[i] = int.from_bytes(extra[at : at + width], "little")
        at, length = at + width, length - width
      return found[0], found[1], found[2], found[3]
    at += length
  if full and not all(i == 3 for i in full):
    raise _lies("a zip64 field is missing")
  return fields
