"""What an image file says of itself: its kind, size and orientation, read without decoding it.

A few bytes at known places, so nothing that a stranger wrote costs memory or time before its size
is known. The content decides; what a file is called does not.
"""

import dataclasses
import struct

from rkd_jax.errors import UserError

MAX_PIXELS = 89_478_485  # Pillow's own limit: 1/4 GiB of RGB
CHUNKS = 10_000  # of a PNG, a JPEG or a WebP that are looked at
# What an image is not, by how it begins (after white space): (prefix, what it is, what to do).
OTHERS = (
  (b"GIF8", "a GIF", "Convert it to PNG or JPEG."),
  (b"II*\0", "a TIFF", "Convert it to PNG or JPEG."),
  (b"MM\0*", "a TIFF", "Convert it to PNG or JPEG."),
  (b"\0\0\0\x0cjP  ", "a JPEG 2000", "Convert it to PNG or JPEG."),
  (b"\xff\x0a", "a JPEG XL", "Convert it to PNG or JPEG."),
  (b"8BPS", "a Photoshop file", "Convert it to PNG or JPEG."),
  (b"%PDF", "a PDF", "Convert it to PNG or JPEG."),
  (b"\0\0\1\0", "an icon", "Convert it to PNG or JPEG."),
  (b"<!doctype html", "an HTML page", "Download the image again; a server answered with a page."),
  (b"<html", "an HTML page", "Download the image again; a server answered with a page."),
  (b"<svg", "an SVG drawing", "Convert it to PNG or JPEG."),
  (b"<?xml", "an XML file", "If it is a drawing, convert it to PNG or JPEG."),
  (b"version https://git-lfs", "a pointer of Git LFS", "Fetch the images: git lfs pull."),
  (b"PK\3\4", "a zip file", "Unpack it."),
  (b"\x1f\x8b", "a gzip file", "Unpack it."),
  (b"\x93NUMPY", "a NumPy array", "Give arrays as 'npz:<file>'."),
)
EXTENDED = {b"avif": "an AVIF", b"avis": "an AVIF", b"heic": "a HEIC", b"heix": "a HEIC"}


class ImageError(UserError):
  """One image that cannot be used. `name` is its file, `reason` a sentence or two."""

  def __init__(self, name: str, reason: str):
    super().__init__(f"Cannot read the image {name}: {reason}")
    self.name, self.reason = name, reason


@dataclasses.dataclass(frozen=True)
class Header:
  """Attributes:
  kind: "PNG", "JPEG", "WEBP" or "BMP".
  width, height: in pixels, as stored: before the orientation is applied.
  grey: whether it has no colour; None where only decoding tells (BMP).
  deep: more than 8 bits a channel.
  orientation: of EXIF, 1..8.
  frames: more than 1 for an animation.
  cut: (start, end) of what a decoder needs not see (a JPEG's EXIF, colour profile, thumbnails).
  """

  kind: str
  width: int
  height: int
  grey: bool | None = None
  deep: bool = False
  orientation: int = 1
  frames: int = 1
  cut: tuple[tuple[int, int], ...] = ()

  @property
  def shape(self) -> tuple[int, int]:
    """(H, W) as it is looked at: orientations 5..8 lie on their side."""
    turned = self.orientation >= 5
    return (self.width, self.height) if turned else (self.height, self.width)


def read(data: bytes, name: str) -> Header:
  """The header of an image that may be decoded.

  Raises:
    ImageError: if it is empty, of another kind, an animation, too large, or broken off.
  """
  try:
    header = _read(data)
  except (struct.error, IndexError):
    raise ImageError(name, "it breaks off within its header. Copy it again.") from None
  except ValueError as error:
    raise ImageError(name, str(error)) from None
  if header.frames != 1:
    raise ImageError(name, "it is an animation. Save the picture you want as a file of its own.")
  if header.width < 1 or header.height < 1:
    raise ImageError(name, f"it is {header.width}x{header.height} pixels. Copy it again.")
  if header.width * header.height > MAX_PIXELS:
    raise ImageError(
      name,
      f"it is {header.width}x{header.height}; at most {MAX_PIXELS:,} pixels are read. Resize it.",
    )
  return header


def _read(data: bytes) -> Header:
  if data[:8] == b"\x89PNG\r\n\x1a\n":
    return _png(data)
  if data[:3] == b"\xff\xd8\xff":
    return _jpeg(data)
  if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
    return _webp(data)
  if data[:2] == b"BM" and len(data) >= 18:
    return _bmp(data)
  raise ValueError(_what_else(data))


def _what_else(data: bytes) -> str:
  if not data:
    return "it is empty (0 bytes). Copy it again."
  if not data[:4096].strip(b"\0"):
    return "it holds only zeros, as after an interrupted copy. Copy it again."
  start = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n")
  for prefix, what, advice in OTHERS:
    if start.startswith(prefix) or start.lower().startswith(prefix):
      return f"it is {what}, whatever its name says. {advice}"
  if data[4:8] == b"ftyp":
    what = EXTENDED.get(data[8:12], "a video")
    return f"it is {what}, whatever its name says. Convert it to PNG or JPEG."
  return "it is no PNG, JPEG, WebP or BMP. Convert it, or copy it again."


def _png(data: bytes) -> Header:
  width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
  orientation, frames, position = 1, 1, 8
  for _ in range(CHUNKS):
    if position + 8 > len(data):
      break
    length, kind = struct.unpack_from(">I4s", data, position)
    if kind == b"acTL":
      frames = struct.unpack_from(">I", data, position + 8)[0]
    elif kind == b"eXIf":
      orientation = _orientation(data[position + 8 : position + 8 + length])
    position += 12 + length
  grey, deep = colour in (0, 4), depth > 8
  return Header("PNG", width, height, grey, deep, orientation, frames)


def _jpeg(data: bytes) -> Header:
  position, orientation, cut = 2, 1, []
  for _ in range(CHUNKS):
    start = data.find(b"\xff", position)
    if start < 0:
      break
    position = start
    while data[position] == 0xFF:
      position += 1
    marker, end = data[position], position + 1
    if marker in (0x00, 0x01, *range(0xD0, 0xDA)):  # stuffing, or markers that stand alone
      position = end
      continue
    end += struct.unpack_from(">H", data, position + 1)[0]
    if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
      depth, height, width, bands = struct.unpack_from(">BHHB", data, position + 3)
      return Header("JPEG", width, height, bands == 1, depth > 8, orientation, 1, tuple(cut))
    if marker in (0xE1, 0xE2, 0xED):  # EXIF and XMP, profiles and further pictures, Photoshop
      cut.append((start, end))
      if marker == 0xE1 and data[position + 3 : position + 9] == b"Exif\0\0":
        orientation = _orientation(data[position + 9 : end])
    position = end
  raise ValueError("it breaks off before its pixels. Copy it again.")


def _webp(data: bytes) -> Header:
  kind, orientation, frames = data[12:16], 1, 1
  if kind == b"VP8 ":
    width, height = (n & 0x3FFF for n in struct.unpack_from("<HH", data, 26))
  elif kind == b"VP8L":
    bits = struct.unpack_from("<I", data, 21)[0]
    width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
  else:
    flags, wide, wide_top, high, high_top = struct.unpack_from("<BxxxHBHB", data, 20)
    width, height = (wide | wide_top << 16) + 1, (high | high_top << 16) + 1
    frames = 2 if flags & 2 else 1
    orientation = _webp_orientation(data)
  return Header("WEBP", width, height, False, False, orientation, frames)


def _webp_orientation(data: bytes) -> int:
  position = 12
  for _ in range(CHUNKS):
    if position + 8 > len(data):
      break
    kind, length = struct.unpack_from("<4sI", data, position)
    if kind == b"EXIF":
      return _orientation(data[position + 8 : position + 8 + length].removeprefix(b"Exif\0\0"))
    position += 8 + length + length % 2
  return 1


def _bmp(data: bytes) -> Header:
  old = struct.unpack_from("<I", data, 14)[0] == 12
  width, height = struct.unpack_from("<HH" if old else "<ii", data, 18)
  return Header("BMP", width, abs(height))


def _orientation(exif: bytes) -> int:
  """1..8 of a TIFF header and its first directory; 1 where there is none, or nonsense."""
  order = {b"II": "<", b"MM": ">"}.get(exif[:2])
  if order is None:
    return 1
  try:
    (start,) = struct.unpack_from(order + "I", exif, 4)
    (count,) = struct.unpack_from(order + "H", exif, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
      tag, kind = struct.unpack_from(order + "HH", exif, entry)
      if tag == 0x0112:
        (value,) = struct.unpack_from(order + ("I" if kind == 4 else "H"), exif, entry + 8)
        return value if 1 <= value <= 8 else 1
  except struct.error:
    pass
  return 1
