"""Reading prepared TFDS data sets into memory, without TensorFlow.

Nothing is downloaded: `tfds.data_source` would try to, for minutes where there is no network.
"""

import difflib
import io
import os
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import constants, registered

from rkd_jax.errors import UserError

CHUNK = 4096  # encoded images fetched at a time
MODES = {1: "L", 3: "RGB"}  # Pillow's names, by channels


def names() -> list[str]:
  """Names that TFDS knows (`tfds.list_builders` would import TensorFlow; this part does not)."""
  return registered.list_imported_builders()


def prepared(name: str, data_dir: str | None) -> Any:
  """The builder of a data set of labelled images that is there and can be read.

  Args:
    name: as TFDS writes it: "cifar10", "cifar10:3.0.2", "mnist_corrupted/shot_noise".
    data_dir: where it lies; None: TFDS's default, `~/tensorflow_datasets`.

  Raises:
    UserError: if it is unknown, not there, or something else than labelled 8-bit images.
  """
  where = os.path.expanduser(data_dir or constants.DATA_DIR)
  try:
    builder = tfds.builder(name, data_dir=where)
  except registered.DatasetNotFoundError as error:
    close = difflib.get_close_matches(name, names(), 1)
    hint = f"Did you mean 'tfds:{close[0]}'? " if close else ""
    raise UserError(
      f"TFDS knows no data set {name!r}, and none lies in {where}. {hint}"
      "Write it as 'tfds:cifar10' or 'tfds:cifar10:3.0.2'."
    ) from error
  except (ValueError, AssertionError) as error:  # TFDS asserts that it knows the version
    raise UserError(f"TFDS cannot open {name!r}: {error}") from error
  if not builder.info.splits:
    raise UserError(_how_to_prepare(name, where, str(builder.data_path)))
  _check_features(name, builder.info.features)
  return builder


def _how_to_prepare(name: str, where: str, looked: str) -> str:
  code = f'tfds.builder("{name}", data_dir="{where}", file_format="array_record")'
  return (
    f"'tfds:{name}' is not prepared: looked in {looked}. Give the data_dir where it lies in "
    "array_record format, or prepare it once with: python -c 'import tensorflow_datasets as tfds; "
    f"{code}.download_and_prepare()'"
  )


def _check_features(name: str, features: Any) -> None:
  for key, kind in {"image": tfds.features.Image, "label": tfds.features.ClassLabel}.items():
    if key not in features or not isinstance(features[key], kind):
      raise UserError(
        f"'tfds:{name}' is no set of labelled images: its feature {key!r} should be a "
        f"{kind.__name__}; there are: {', '.join(features)}."
      )
  image = features["image"]
  if image.shape[-1] not in MODES or image.np_dtype != np.uint8:
    raise UserError(
      f"'tfds:{name}' has images of {image.shape[-1]} channels, {np.dtype(image.np_dtype).name}; "
      "can read uint8 with 1 or 3."
    )


def class_names(builder: Any) -> tuple[str, ...]:
  """The names of its K classes, by label."""
  return tuple(builder.info.features["label"].names)


def read(builder: Any, split: str) -> tuple[np.ndarray, np.ndarray]:
  """Decodes a split: images uint8[N, H, W, C], labels int32[N].

  Pillow directly, for small images three times as fast as TFDS's own decoding. No threads: on
  images this small they only wait for each other.

  Raises:
    UserError: if there is no such split, or its images differ in size, or its files are tfrecord.
  """
  if split not in builder.info.splits:
    there = ", ".join(builder.info.splits)
    raise UserError(f"'tfds:{builder.name}' has no split {split!r}; there are: {there}.")
  try:
    source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
  except NotImplementedError as error:
    raise UserError(
      f"{builder.data_path} is in {builder.info.file_format.value} format, which has no random "
      'access. Prepare it elsewhere with file_format="array_record".'
    ) from error
  mode = MODES[builder.info.features["image"].shape[-1]]
  images, labels = np.zeros((0, 0, 0, 0), np.uint8), np.empty(len(source), np.int32)
  for start in range(0, len(source), CHUNK):
    rows = range(start, min(start + CHUNK, len(source)))
    for row, record in zip(rows, source.__getitems__(rows), strict=True):
      image = _decode(record["image"], mode)
      if row == 0:
        images = np.empty((len(source), *image.shape), np.uint8)
      if image.shape != images.shape[1:]:
        raise UserError(
          f"'tfds:{builder.name}' has images of unequal size: {split!r} holds {images.shape[1:]} "
          f"and {image.shape} (height, width, channels). Resize them to one size first."
        )
      images[row], labels[row] = image, record["label"]
  return images, labels


def _decode(encoded: bytes, mode: str) -> np.ndarray:
  """uint8[H, W, C] of a PNG or JPEG."""
  with Image.open(io.BytesIO(encoded)) as image:
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
  return pixels.reshape(*pixels.shape[:2], -1)
