"""From the bytes of one image file to uint8[H, W, C], whoever wrote them.

PNG, JPEG, WebP and BMP, told apart by content. Pillow decodes and resizes. OpenCV finds the same
pixels in ImageNet's JPEGs in 3/4 of the time, but photographs are resized, and then the two come to
the same (2.9 ms of a processor each, to 224 pixels): its own resizing either aliases or gives other
pixels (`benchmarks/decode.py`, `results/bench/*/decode.json`).

What becomes of unusual images:
- EXIF's orientation is applied; other metadata and colour profiles are left aside.
- Palettes, CMYK and YCCK become RGB; grey and RGB turn into each other as the data set needs it.
- Transparency is laid over white. (A colour key in a PNG of 16 bits is ignored.)
- 16 bits a channel are scaled to 8: grey to the nearest level, colour by its upper byte.
- Animations, other formats, and more than `headers.MAX_PIXELS` pixels are refused.
"""

import io
import math

import numpy as np
from PIL import BmpImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from rkd_jax.data import headers
from rkd_jax.data.headers import Header, ImageError

# Pillow's `Image.open` would try every format, and warns where we refuse.
OPEN = {
  "PNG": PngImagePlugin.PngImageFile,
  "JPEG": JpegImagePlugin.JpegImageFile,
  "WEBP": WebPImagePlugin.WebPImageFile,
  "BMP": BmpImagePlugin.BmpImageFile,
}
GREY = ("1", "L", "LA")  # Pillow's modes that hold no colour
ALPHA = ("LA", "PA", "RGBA")
TURN = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}
# A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that leaves this many pixels for each one
# that is wanted: the resize then still decides. On ImageNet's photographs, brought to 32 pixels,
# the mean difference is 0.6 grey levels; an image of 12 megapixels decodes several times faster.
SPARE = 3

Box = tuple[int, int, int, int]  # top, left, height, width
Size = tuple[int, int]  # height, width


def probe(data: bytes, name: str) -> tuple[int, int, bool]:
  """(H, W, whether it is grey), from the header; H and W as it is looked at.

  Raises:
    ImageError: as `headers.read`.
  """
  header = headers.read(data, name)
  grey = header.grey
  if grey is None:
    grey = _opened(data, name, header).mode in GREY
  return *header.shape, grey


def decode(
  data: bytes, name: str, size: int | tuple[int, int] = 0, channels: int = 3
) -> np.ndarray:
  """Decodes an image.

  Args:
    data: the file.
    name: of the file, for messages.
    size: 0: as stored. Else the middle of the image, as large as fits, resized (bilinear, with
      antialiasing) to size x size, or to (height, width): the shorter side becomes `size`, and the
      longer one is cropped.
    channels: 1 (luminance) or 3 (RGB).

  Returns:
    uint8[H, W, channels].

  Raises:
    ImageError: if it is no such image, truncated, or too large.
  """
  header = headers.read(data, name)
  if not size:
    return _array(_turned(_whole(data, name, header, channels), header))
  height, width = (size, size) if isinstance(size, int) else size
  return _resized(data, name, header, _middle(header.shape, height, width), height, width, channels)


def resized_crop(data: bytes, name: str, box: Box, size: Size, channels: int = 3) -> np.ndarray:
  """The same for a part of the image: uint8[*size, channels]; `box` in upright pixels."""
  header = headers.read(data, name)
  top, left, height, width = box
  window = (left, top, left + width, top + height)
  return _resized(data, name, header, window, *size, channels)


def fit(pixels: np.ndarray, size: int) -> np.ndarray:
  """As `decode`, of an image that is decoded: uint8[H, W, C] -> uint8[size, size, C]."""
  return _windowed(pixels, (size, size), _middle(pixels.shape[:2], size, size))


def crop_array(pixels: np.ndarray, box: Box, size: Size) -> np.ndarray:
  """As `resized_crop`, of an image that is decoded: uint8[H, W, C] -> uint8[*size, C]."""
  top, left, height, width = box
  return _windowed(pixels, size, (left, top, left + width, top + height))


def _windowed(
  pixels: np.ndarray, size: Size, window: tuple[float, float, float, float]
) -> np.ndarray:
  """The window (left, top, right, bottom), resized."""
  image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
  return _array(image.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=window))


def crop_box(height: int, width: int, scale: float, rng: np.random.Generator) -> Box:
  """torchvision's RandomResizedCrop: where to crop an image of this size.

  The area is uniform in [scale, 1] of the image's, the logarithm of the ratio of width to height in
  [log 3/4, log 4/3]. What does not fit is drawn anew; after ten tries it is the middle, with the
  nearest ratio.

  Returns:
    (top, left, height, width), within the image.
  """
  low, high = math.log(3 / 4), math.log(4 / 3)
  for _ in range(10):
    area = height * width * rng.uniform(scale, 1)
    ratio = math.exp(rng.uniform(low, high))
    wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    if 0 < wide <= width and 0 < tall <= height:
      top, left = rng.integers(0, height - tall + 1), rng.integers(0, width - wide + 1)
      return int(top), int(left), tall, wide
  tall = min(height, round(width / (3 / 4)))
  wide = min(width, round(height * (4 / 3)))
  return (height - tall) // 2, (width - wide) // 2, tall, wide


def _middle(shape: tuple[int, int], height: int, width: int) -> tuple[float, float, float, float]:
  """(left, top, right, bottom) of the largest part with this ratio of height to width."""
  factor = min(shape[0] / height, shape[1] / width)
  tall, wide = height * factor, width * factor
  left, top = (shape[1] - wide) / 2, (shape[0] - tall) / 2
  return left, top, left + wide, top + tall


def _resized(data, name, header, window, height, width, channels) -> np.ndarray:
  """The window (left, top, right, bottom) of the upright image, resized."""
  left, top, right, bottom = window
  spare = min((right - left) / (SPARE * width), (bottom - top) / (SPARE * height))
  image = _turned(_whole(data, name, header, channels, spare), header)
  if image.size == (width, height) and window == (0, 0, width, height):
    return _array(image)
  x, y = image.width / header.shape[1], image.height / header.shape[0]
  # Rounding must not push the window out of the image, which Pillow refuses.
  inside = (left * x, top * y, min(right * x, image.width), min(bottom * y, image.height))
  return _array(image.resize((width, height), Image.Resampling.BILINEAR, box=inside))


def _whole(data, name, header: Header, channels: int, spare: float = 1) -> Image.Image:
  """All of it in mode L or RGB, as stored; a JPEG at a fraction of its size if there is enough."""
  try:
    image = _opened(data, name, header)
    if header.kind == "JPEG" and spare >= 2:
      image.draft(None, (math.ceil(header.width / spare), math.ceil(header.height / spare)))
    image.load()
    return _plain(image, header.deep, "L" if channels == 1 else "RGB")
  except (ImageError, MemoryError):
    raise
  except Exception as error:  # Pillow has no one class for what a damaged file may raise
    raise ImageError(name, f"it is damaged ({error}). Copy it again.") from error


def _opened(data: bytes, name: str, header: Header) -> Image.Image:
  for start, end in reversed(header.cut):  # Pillow would read them, and may warn
    data = data[:start] + data[end:]
  try:
    image = OPEN[header.kind](io.BytesIO(data))
  except Exception as error:
    raise ImageError(name, f"it is damaged ({error}). Copy it again.") from error
  if image.size != (header.width, header.height):  # only the header's was compared with the limit
    sizes = f"{header.width}x{header.height} and {image.width}x{image.height}"
    raise ImageError(name, f"it says two sizes of itself, {sizes}. Copy it again.")
  return image


def _plain(image: Image.Image, deep: bool, mode: str) -> Image.Image:
  if deep:
    image.info.pop("transparency", None)
  if image.mode.startswith("I"):
    levels = np.asarray(image).astype(np.uint32)
    image = Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
  if image.mode in ALPHA or "transparency" in image.info:
    above = image.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), above)
  return image if image.mode == mode else image.convert(mode)


def _turned(image: Image.Image, header: Header) -> Image.Image:
  return image.transpose(TURN[header.orientation]) if header.orientation > 1 else image


def _array(image: Image.Image) -> np.ndarray:
  pixels = np.asarray(image)
  return pixels[..., None] if pixels.ndim == 2 else pixels
