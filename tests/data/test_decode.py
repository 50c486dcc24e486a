"""One image file at a time: odd ones have the right pixels, broken ones are named and refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rkd_jax.data import decode, headers
from rkd_jax.errors import UserError

H, W = 12, 17


def smooth(height=H, width=W, channels=3):
  """A picture that lossy formats keep nearly as it is: ramps, another in each channel."""
  y, x = np.mgrid[0:height, 0:width]
  planes = [y / (height - 1), x / (width - 1), (y + x) / (height + width - 2)]
  return np.round(40 + 170 * np.stack(planes[:channels], -1)).astype(np.uint8)


PIXELS = smooth()
NOISE = np.random.default_rng(0).integers(0, 256, (H, W, 3), np.uint8)


def encoded(image, kind, **how):
  buffer = io.BytesIO()
  image = image if isinstance(image, Image.Image) else Image.fromarray(image)
  image.save(buffer, kind, **how)
  return buffer.getvalue()


def png(pixels, colour, depth, extra=()):
  """A PNG by hand: what Pillow does not write. `pixels`: uint8 or uint16[H, W(, bands)]."""

  def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

  rows = pixels.astype(f">u{depth // 8}")
  body = b"".join(b"\0" + row.tobytes() for row in rows)
  head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], depth, colour, 0, 0, 0)
  parts = [chunk(b"IHDR", head), *(chunk(*e) for e in extra), chunk(b"IDAT", zlib.compress(body))]
  return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def exif(orientation, order="<", kind=3):
  magic = b"II*\0" if order == "<" else b"MM\0*"
  value = struct.pack(
    order + ("HH" if kind == 3 else "I"), *([orientation, 0] if kind == 3 else [orientation])
  )
  return magic + struct.pack(order + "IHHHI", 8, 1, 0x0112, kind, 1) + value + bytes(4)


# As a camera stores what should be looked at as `upright`, for EXIF's orientations 1 to 8.
STORED = {
  1: lambda a: a,
  2: lambda a: a[:, ::-1],
  3: lambda a: a[::-1, ::-1],
  4: lambda a: a[::-1],
  5: lambda a: a.transpose(1, 0, 2),
  6: lambda a: np.rot90(a, 1),
  7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
  8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_orientations(kind, turn):
  stored = np.ascontiguousarray(STORED[turn](PIXELS))
  how = {"PNG": {}, "WEBP": {"lossless": True}, "JPEG": FINE}[kind]
  data = encoded(stored, kind, exif=b"Exif\0\0" + exif(turn), **how)
  found = decode.decode(data, "a")
  assert found.shape == PIXELS.shape
  assert np.abs(found.astype(int) - PIXELS).max() <= (3 if kind == "JPEG" else 0)
  assert decode.probe(data, "a") == (H, W, False)
  cut = decode.resized_crop(data, "a", (1, 2, 8, 8), (8, 8))
  np.testing.assert_array_equal(cut, found[1:9, 2:10])


@pytest.mark.parametrize(("order", "kind"), [("<", 3), (">", 3), ("<", 4), (">", 4)])
def test_orientation_in_either_byte_order_and_width(order, kind):
  data = encoded(PIXELS, "PNG", exif=exif(6, order, kind))
  assert decode.decode(data, "a").shape == (W, H, 3)


@pytest.mark.parametrize("bad", [b"", b"II", b"nonsense" * 9, exif(9), exif(0), exif(6)[:14]])
def test_nonsense_in_exif_changes_nothing(bad):
  # Pillow would warn of some of these, which here is an error.
  for kind in ("JPEG", "PNG", "WEBP"):
    data = encoded(PIXELS, kind, exif=b"Exif\0\0" + bad)
    assert decode.decode(data, "a").shape == PIXELS.shape


def rgba(alpha):
  return Image.fromarray(np.dstack([NOISE, np.full((H, W), alpha, np.uint8)]), "RGBA")


def palette(transparent=False):
  image = Image.fromarray(NOISE).quantize(16)
  if transparent:
    image.info["transparency"] = bytes([0] * 16)
  return image


GREY = NOISE[..., 0]
DEEP = np.random.default_rng(1).integers(0, 65536, (H, W), np.uint16)
DEEP_RGB = np.random.default_rng(2).integers(0, 65536, (H, W, 3), np.uint16)
THREE = np.stack([GREY] * 3, -1)
HALF = np.round((NOISE.astype(float) * 128 + 255 * 127) / 255)  # alpha 128 over white
WHITE = np.full((H, W, 3), 255, np.uint8)
RAMP = smooth(channels=1)[..., 0]
CLEAR = Image.fromarray(np.dstack([GREY, GREY * 0]), "LA")
KEYED = png(np.tile(np.uint8([9, 8, 7]), (H, W, 1)), 2, 8, [(b"tRNS", b"\0\x09\0\x08\0\x07")])
DEEP_ALPHA = np.dstack([DEEP, DEEP * 0 + 65535])
DEEP_KEYED = png(DEEP_RGB, 2, 16, [(b"tRNS", b"\x01\x09\x02\x08\0\x07")])
FINE = {"quality": 100, "subsampling": 0}
ODD = {  # name: (file, pixels[H, W, 3], tolerance)
  "grey png": (encoded(GREY, "PNG"), THREE, 0),
  "grey jpeg": (encoded(RAMP, "JPEG", quality=100), np.stack([RAMP] * 3, -1), 3),
  "bilevel png": (encoded(Image.fromarray(GREY > 127), "PNG"), np.where(THREE > 127, 255, 0), 0),
  "grey and alpha": (encoded(CLEAR, "PNG"), WHITE, 0),
  "palette": (encoded(palette(), "PNG"), np.asarray(palette().convert("RGB")), 0),
  "palette, all clear": (encoded(palette(True), "PNG", transparency=bytes(16)), WHITE, 0),
  "palette bmp": (encoded(palette(), "BMP"), np.asarray(palette().convert("RGB")), 0),
  "opaque rgba": (encoded(rgba(255), "PNG"), NOISE, 0),
  "half transparent": (encoded(rgba(128), "PNG"), HALF, 1),
  "transparent webp": (encoded(rgba(0), "WEBP", lossless=True), WHITE, 0),
  "colour key": (KEYED, WHITE, 0),
  "16 bits grey": (png(DEEP, 0, 16), np.stack([np.round(DEEP / 257)] * 3, -1), 0),
  "16 bits grey, white": (png(DEEP * 0 + 65535, 0, 16), WHITE, 0),
  "16 bits rgb": (png(DEEP_RGB, 2, 16), DEEP_RGB >> 8, 0),
  "16 bits grey and opaque": (png(DEEP_ALPHA, 4, 16), np.stack([DEEP >> 8] * 3, -1), 0),
  "16 bits rgb and a colour key": (DEEP_KEYED, DEEP_RGB >> 8, 0),
  "cmyk jpeg": (encoded(Image.fromarray(PIXELS).convert("CMYK"), "JPEG", quality=100), PIXELS, 4),
  "progressive jpeg": (encoded(PIXELS, "JPEG", **FINE, progressive=True), PIXELS, 3),
  "lossy webp": (encoded(PIXELS, "WEBP", quality=100), PIXELS, 8),
  "bmp": (encoded(NOISE, "BMP"), NOISE, 0),
  "bmp with alpha": (encoded(rgba(255), "BMP"), NOISE, 0),
  "an apng of one frame": (png(NOISE, 2, 8, [(b"acTL", struct.pack(">II", 1, 0))]), NOISE, 0),
  "one pixel": (encoded(NOISE[:1, :1], "PNG"), NOISE[:1, :1], 0),
  "bytes after its end": (encoded(NOISE, "PNG") + b"more", NOISE, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_odd_files_have_the_right_pixels(name):
  data, expected, tolerance = ODD[name]
  found = decode.decode(data, name)
  assert found.dtype == np.uint8 and found.shape == expected.shape
  assert np.abs(found.astype(int) - expected).max() <= tolerance
  grey = name.startswith(("grey", "bilevel", "16 bits grey"))
  assert decode.probe(data, name) == (*expected.shape[:2], grey)
  one = decode.decode(data, name, channels=1)
  luminance = expected.astype(float) @ [0.299, 0.587, 0.114]
  assert one.shape[-1] == 1 and np.abs(one[..., 0] - luminance).max() <= tolerance + 1


def animated(kind):
  frames = [Image.fromarray(NOISE), Image.fromarray(255 - NOISE)]
  return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


def huge(kind):
  """A small file that says it is 60,000 pixels wide and high."""
  data = bytearray(encoded(NOISE, kind))
  if kind == "PNG":
    data[16:24] = struct.pack(">II", 60_000, 60_000)
  elif kind == "BMP":
    data[18:26] = struct.pack("<ii", 60_000, -60_000)
  else:
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 60_000, 60_000)
  return bytes(data)


def flat(height, width):
  """A PNG of few bytes that is truly so large."""
  buffer = io.BytesIO()
  Image.new("1", (width, height)).save(buffer, "PNG")
  return buffer.getvalue()


def wide_webp():
  """The header of a WebP of 16,384 x 16,384 pixels."""
  size = struct.pack("<IIHBHB", 10, 0, 16383, 0, 16383, 0)
  return b"RIFF" + struct.pack("<I", 100) + b"WEBPVP8X" + size + bytes(70)


def two_sizes(kind):
  """The header says that it is small, a second one that it is 60,000 pixels wide and high."""
  small, large = encoded(NOISE, kind), huge(kind)
  if kind == "PNG":
    second = large[8:29]
    return small[:33] + second + struct.pack(">I", zlib.crc32(second[4:])) + small[33:]
  at = small.index(b"\xff\xc0")
  end = at + 2 + struct.unpack_from(">H", small, at + 2)[0]
  return small[:end] + large[at:]


WHOLE = {
  "png": encoded(NOISE, "PNG"),
  "jpg": encoded(NOISE, "JPEG", quality=95),
  "webp": encoded(NOISE, "WEBP", lossless=True),
  "bmp": encoded(NOISE, "BMP"),
}
REFUSED = {  # name: (file, what the message says)
  "empty": (b"", "is empty \\(0 bytes\\). Copy it again"),
  "zeros": (bytes(5000), "only zeros.* Copy it again"),
  "html": (b"\n<!DOCTYPE html><p>404", "an HTML page, whatever .* Download the image again"),
  "html, another": (b"<html lang=en>", "an HTML page"),
  "svg": (b"<svg width=1>", "an SVG"),
  "xml": (b"<?xml version=1>", "an XML file"),
  "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS.* git lfs pull"),
  "gif": (encoded(NOISE, "GIF"), "a GIF, whatever its name says. Convert it"),
  "tiff": (encoded(NOISE, "TIFF"), "a TIFF, whatever its name says. Convert it"),
  "icon": (encoded(Image.fromarray(NOISE), "ICO"), "an icon"),
  "pdf": (b"%PDF-1.7", "a PDF"),
  "heic": (b"\0\0\0\x18ftypheic" + bytes(40), "a HEIC.* Convert it"),
  "avif": (b"\0\0\0\x18ftypavif" + bytes(40), "an AVIF"),
  "video": (b"\0\0\0\x18ftypisom" + bytes(40), "a video"),
  "zip": (b"PK\3\4" + bytes(40), "a zip file.* Unpack"),
  "gzip": (b"\x1f\x8b" + bytes(40), "a gzip file"),
  "npy": (b"\x93NUMPY" + bytes(40), "npz:<file>"),
  "text": (b"a note about this image", "no PNG, JPEG, WebP or BMP"),
  "animated png": (animated("PNG"), "an animation. Save the picture"),
  "animated webp": (animated("WEBP"), "an animation. Save the picture"),
  "apng of no frame": (png(NOISE, 2, 8, [(b"acTL", bytes(8))]), "an animation"),
  "huge png": (huge("PNG"), "is 60000x60000; at most 89,478,485 pixels"),
  "huge jpeg": (huge("JPEG"), "is 60000x60000; at most"),
  "huge bmp": (huge("BMP"), "is 60000x60000; at most"),
  "huge webp": (wide_webp(), "is 16384x16384; at most"),
  "a png of two sizes": (two_sizes("PNG"), "says two sizes of itself, 17x12 and 60000x60000"),
  "a jpeg of two sizes": (two_sizes("JPEG"), "says two sizes of itself, 17x12 and 60000x60000"),
  "a bomb": (flat(12_000, 12_000), "is 12000x12000; at most .* Resize it"),
  "a png of no width": (png(NOISE[:0], 2, 8), "is 17x0"),
  "a jpeg without a picture": (b"\xff\xd8\xff\xe0\0\4ab" * 3, "breaks off"),
  "a jpeg that begins and ends": (b"\xff\xd8\xff\xd9", "breaks off"),
  "a jpeg of markers": (b"\xff\xd8" + b"\xff" * 5000, "breaks off"),
  "a jpeg that points nowhere": (b"\xff\xd8\xff\xe0\xff\xff", "breaks off"),
  "a png with a wrong checksum": (WHOLE["png"][:29] + b"xxxx" + WHOLE["png"][33:], "damaged"),
  "a png packed wrongly": (WHOLE["png"][:60] + b"\0" * 40 + WHOLE["png"][100:], "damaged"),
  "a bmp of strange depth": (WHOLE["bmp"][:28] + b"\x63\0" + WHOLE["bmp"][30:], "damaged"),
  "a webp of noise": (WHOLE["webp"][:30] + bytes(200), "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_broken_files_are_refused_with_the_reason(name):
  data, message = REFUSED[name]
  with pytest.raises(UserError, match=f"Cannot read the image set/{name}\\.jpg: it .*{message}"):
    decode.decode(data, f"set/{name}.jpg")
  with pytest.raises(UserError, match=message):
    decode.decode(data, f"set/{name}.jpg", size=8)


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("part", [0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.97, "last 16", "last"])
def test_truncated_files_are_refused_or_whole(kind, part):
  whole = WHOLE[kind]
  end = {"last 16": len(whole) - 16, "last": len(whole) - 1}.get(part) or int(part * len(whole))
  try:
    found = decode.decode(whole[:end], "set/a")
  except UserError as error:
    assert "Cannot read the image set/a: it " in str(error)
    assert error.args[0].endswith(("Copy it again.", "Convert it, or copy it again."))
  else:  # only what comes after the pixels was missing
    assert end > 0.9 * len(whole)
    np.testing.assert_array_equal(found, decode.decode(whole, "a"))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_damage_anywhere_is_refused_or_decoded_and_nothing_else(data):
  whole = data.draw(st.sampled_from([*WHOLE.values(), ODD["colour key"][0], animated("WEBP")]))
  broken = bytearray(whole)
  for place in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=6)):
    broken[place] = data.draw(st.integers(0, 255))
  try:
    found = decode.decode(bytes(broken), "a", size=8)
    assert found.shape == (8, 8, 3)
  except headers.ImageError as error:
    assert error.name == "a" and error.reason.endswith(".")


def test_a_misnamed_image_is_decoded():
  np.testing.assert_array_equal(decode.decode(WHOLE["png"], "a.jpg"), NOISE)
  np.testing.assert_array_equal(decode.decode(WHOLE["bmp"], "a.webp"), NOISE)


def reference(pixels, size):
  """Shorter side to `size`, then the middle: as torchvision's Resize and CenterCrop."""
  image = Image.fromarray(pixels)
  factor = size / min(image.size)
  image = image.resize([round(side * factor) for side in image.size], Image.Resampling.BILINEAR)
  left, top = (image.width - size) / 2, (image.height - size) / 2
  return np.asarray(image.crop((round(left), round(top), round(left) + size, round(top) + size)))


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (40, 40), (41, 83)])
@pytest.mark.parametrize("size", [8, 20, 64])
def test_resizing_takes_the_middle(shape, size):
  pixels = smooth(*shape)
  found = decode.decode(encoded(pixels, "PNG"), "a", size)
  assert found.shape == (size, size, 3)
  assert np.abs(found.astype(int) - reference(pixels, size)).max() <= 4  # half a pixel of a ramp
  square = decode.decode(encoded(pixels, "PNG"), "a", (size, size), channels=1)
  assert square.shape == (size, size, 1)


def test_what_has_the_size_is_left_as_it_is():
  np.testing.assert_array_equal(decode.decode(WHOLE["png"], "a", (H, W)), NOISE)
  square = np.ascontiguousarray(NOISE[:, :H])
  np.testing.assert_array_equal(decode.decode(encoded(square, "PNG"), "a", H), square)


def test_a_very_long_image_does_not_blow_up():
  data = encoded(np.full((1, 60_000, 3), 7, np.uint8), "PNG")
  assert (decode.decode(data, "a", 224) == 7).all()


def test_large_jpegs_are_decoded_small_and_nearly_the_same(monkeypatch):
  rng = np.random.default_rng(0)
  coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8))
  data = encoded(coarse.resize((1600, 1200), Image.Resampling.BICUBIC), "JPEG", quality=90)
  drafts = []
  real = decode.OPEN["JPEG"].draft
  spy = lambda self, mode, size: (real(self, mode, size), drafts.append(self.size))[0]  # noqa: E731
  monkeypatch.setattr(decode.OPEN["JPEG"], "draft", spy)
  for size, side in ((50, 150), (150, 600)):
    quick = decode.decode(data, "a", size)
    assert drafts.pop()[1] == side
    monkeypatch.setattr(decode, "SPARE", 10**9)
    exact = decode.decode(data, "a", size)
    monkeypatch.undo()
    monkeypatch.setattr(decode.OPEN["JPEG"], "draft", spy)
    assert not drafts and np.abs(quick.astype(int) - exact).mean() < 1


def torchvision_box(height, width, scale, rng):
  """RandomResizedCrop.get_params, with our order of draws."""
  area, ratio = height * width, np.log([3 / 4, 4 / 3])
  for _ in range(10):
    target = area * rng.uniform(scale, 1)
    aspect = np.exp(rng.uniform(*ratio))
    w, h = round(np.sqrt(target * aspect)), round(np.sqrt(target / aspect))
    if 0 < w <= width and 0 < h <= height:
      return rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w
  in_ratio = width / height
  if in_ratio < 3 / 4:
    w, h = width, round(width / (3 / 4))
  elif in_ratio > 4 / 3:
    h, w = height, round(height * (4 / 3))
  else:
    w, h = width, height
  return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize("shape", [(375, 500), (500, 375), (32, 32), (1, 1), (10, 900), (900, 10)])
@pytest.mark.parametrize("scale", [0.08, 0.5, 1.0])
def test_crops_follow_torchvisions_rule(shape, scale):
  for seed in range(50):
    box = decode.crop_box(*shape, scale, np.random.default_rng(seed))
    expected = torchvision_box(*shape, scale, np.random.default_rng(seed))
    assert box == tuple(map(int, expected)) and all(type(side) is int for side in box)
    top, left, tall, wide = box
    assert min(top, left) >= 0 and top + tall <= shape[0] and left + wide <= shape[1]


def test_the_areas_of_crops_are_spread_over_their_range():
  rng = np.random.default_rng(0)
  areas = [np.prod(decode.crop_box(400, 400, 0.25, rng)[2:]) / 400**2 for _ in range(2000)]
  assert 0.24 < min(areas) < 0.27 and max(areas) > 0.95
  # Uniform, but of a square an area a fits only where |log ratio| <= -log a.
  grid = np.linspace(0.25, 1, 10_001)
  weight = np.minimum(1, -np.log(grid) / np.log(4 / 3)).cumsum()
  assert abs(np.median(areas) - grid[np.searchsorted(weight, weight[-1] / 2)]) < 0.02


def test_a_crop_is_that_part_resized():
  data = encoded(smooth(60, 80), "PNG")
  box = (7, 11, 40, 30)
  expected = Image.fromarray(smooth(60, 80)).resize(
    (16, 12), Image.Resampling.BILINEAR, box=(11, 7, 41, 47)
  )
  np.testing.assert_array_equal(decode.resized_crop(data, "a", box, (12, 16)), np.asarray(expected))
  np.testing.assert_array_equal(
    decode.crop_array(smooth(60, 80), box, (12, 16)), np.asarray(expected)
  )
  grey = decode.crop_array(smooth(60, 80, 1), box, (12, 16))
  np.testing.assert_array_equal(grey[..., 0], np.asarray(expected)[..., 0])
