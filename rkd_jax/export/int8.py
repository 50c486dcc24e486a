"""int8 by static calibration: activations are rounded by what they are on clean images."""

import contextlib
import logging
import pathlib
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from rkd_jax.errors import UserError
from rkd_jax.export import needs

METHODS = ("minmax", "entropy", "percentile")
ROUNDED = ("Conv", "Gemm", "MatMul")  # the operations that take the time; all others stay float32
IMAGES, BATCH = 512, 32  # that it is calibrated on at most, and at a time


def quantized(
  model: bytes, images: np.ndarray, method: str = "minmax", about: Mapping[str, str] | None = None
) -> bytes:
  """The ONNX model with int8 weights (per channel) and activations, as QDQ, in bytes.

  Args:
    model: of float32.
    images: float32[N, ...] in [0, 1] as the model takes them, clean: never of the test set.
    method: how a range comes from what was seen, one of `METHODS`.
    about: {name: text} of its metadata.

  Raises:
    UserError: onnxruntime is not installed, or there is no image.
  """
  if method not in METHODS:
    raise UserError(f"--calibration is {method!r}; choose one of {', '.join(METHODS)}.")
  if not len(images):
    raise UserError("int8 is calibrated on clean images, and there are none.")
  tools = _tools()
  kinds = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
  with tempfile.TemporaryDirectory() as folder, _quiet():
    given, out = (pathlib.Path(folder) / name for name in ("float32.onnx", "int8.onnx"))
    given.write_bytes(model)
    tools.quantize_static(
      given,
      out,
      _reader(tools, images),
      quant_format=tools.QuantFormat.QDQ,
      op_types_to_quantize=list(ROUNDED),
      per_channel=True,
      activation_type=tools.QuantType.QUInt8,  # what x86's dot products of bytes take
      weight_type=tools.QuantType.QInt8,
      calibrate_method=getattr(tools.CalibrationMethod, kinds[method]),
    )
    return _described(out.read_bytes(), about or {})


def _described(data: bytes, about: Mapping[str, str]) -> bytes:
  import onnx

  found = onnx.load_from_string(data)
  del found.metadata_props[:]  # the calibration leaves notes of its own there
  found.producer_name = "rkd_jax"
  onnx.helper.set_model_props(found, dict(about))
  onnx.checker.check_model(found, full_check=True)
  return found.SerializeToString()


def _tools() -> Any:
  needs.package("onnx", "int8")
  needs.package("onnxruntime", "int8")
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    return needs.package("onnxruntime.quantization", "int8")


def _reader(tools: Any, images: np.ndarray) -> Any:
  """What gives the images to the calibration, a batch at a time."""

  class Reader(tools.CalibrationDataReader):
    def __init__(self):
      self.batches = iter(np.split(images, range(BATCH, len(images), BATCH)))

    def get_next(self):
      found = next(self.batches, None)
      return None if found is None else {"images": found}

  return Reader()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Its advice to run a step that our graphs do not need is for nobody."""
  root = logging.getLogger()
  level = root.level
  root.setLevel(logging.ERROR)
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      yield
  finally:
    root.setLevel(level)
