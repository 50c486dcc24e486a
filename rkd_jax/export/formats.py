"""The files that there are: each as bytes, with what answers as whoever runs it elsewhere would."""

import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

import jax
import numpy as np

import rkd_jax
from rkd_jax import interop
from rkd_jax.errors import UserError
from rkd_jax.export import int8, onnx_file, stablehlo, weights
from rkd_jax.export.check import Answer
from rkd_jax.export.subject import Subject

LAYOUTS = {"stablehlo": "nhwc", "onnx": "nchw"}  # of images, where nothing else is asked for
NORMALISED = "inside: images are pixels in [0, 1]"


@dataclasses.dataclass(frozen=True)
class Made:
  """One file.

  Attributes:
    data: its bytes.
    suffix: what its name ends with.
    precision: "f32" or "int8".
    about: what is said beside it, and within it where the format has a place for that.
    answer: images float32[B, H, W, C] in [0, 1] -> logits, by what the file holds.
    runtime: what answers.
    timed: the same answer for images as the file takes them; None: it is JAX's own.
  """

  data: bytes
  suffix: str
  precision: str
  about: Mapping[str, Any]
  answer: Answer
  runtime: str
  timed: Answer | None = None


def reference(subject: Subject) -> Answer:
  """What JAX answers, in full float32 wherever it runs."""
  network = subject.network
  call = jax.jit(lambda variables, x: network.apply(variables, x, train=False)[0].logits)

  def answer(images: np.ndarray) -> np.ndarray:
    with jax.default_matmul_precision("highest"):
      return np.asarray(call(subject.variables, images))

  return answer


def turned(images: np.ndarray, layout: str) -> np.ndarray:
  """float32[B, H, W, C] as a model takes them."""
  images = np.asarray(images, np.float32)
  return np.ascontiguousarray(images.transpose(0, 3, 1, 2)) if layout == "nchw" else images


def about(subject: Subject, form: str, precision: str, layout: str = "") -> dict[str, Any]:
  """What a file says of itself."""
  height, width, channels = subject.network.image_shape
  shape = [channels, height, width] if layout == "nchw" else [height, width, channels]
  found = {"rkd_jax": rkd_jax.__version__, "format": form, "precision": precision}
  if layout:
    found |= {
      "input": {"name": "images", "dtype": "float32", "shape": ["batch", *shape], "range": [0, 1]},
      "output": {"name": "logits", "dtype": "float32", "shape": ["batch", subject.network.classes]},
      "layout": layout,
      "normalisation": NORMALISED,
    }
  return found | subject.about()


def texts(said: Mapping[str, Any]) -> dict[str, str]:
  """The same as texts by name, JSON where it is no text."""
  return {key: v if isinstance(v, str) else json.dumps(v) for key, v in said.items()}


def hlo(subject: Subject, layout: str) -> Made:
  """For `jax.export.deserialize`, on processors, GPUs and TPUs."""
  data = stablehlo.serialized(subject.network, subject.variables, layout)
  call, said = stablehlo.loaded(data), about(subject, "stablehlo", "f32", layout)
  said |= {"platforms": list(stablehlo.PLATFORMS), "jax": jax.__version__}
  return Made(
    data, ".stablehlo", "f32", said, lambda x: call(turned(x, layout)), "jax.export", call
  )


def onnx(subject: Subject, layout: str) -> Made:
  """For onnxruntime and whatever else reads ONNX."""
  said = about(subject, "onnx", "f32", layout)
  model = onnx_file.model(subject.network, subject.variables, layout, texts(said))
  return _onnx(model.SerializeToString(), "f32", said, layout)


def rounded(made: Made, images: np.ndarray, method: str) -> Made:
  """The ONNX file with int8 weights and activations.

  Args:
    images: uint8[N, H, W, C], clean, of the defender's.
    method: of calibration, see `int8.quantized`.
  """
  layout = str(made.about["layout"])
  seen = turned(np.asarray(images, np.float32) / 255, layout)
  said = {**made.about, "precision": "int8", "calibration": {"method": method, "images": len(seen)}}
  return _onnx(int8.quantized(made.data, seen, method, texts(said)), "int8", said, layout)


def _onnx(data: bytes, precision: str, said: Mapping[str, Any], layout: str) -> Made:
  session = onnx_file.session(data)
  call: Callable[[np.ndarray], np.ndarray] = lambda x: onnx_file.logits(session, x)  # noqa: E731
  suffix = ".onnx" if precision == "f32" else f"-{precision}.onnx"
  runtime = f"onnxruntime {metadata.version('onnxruntime')}"
  return Made(data, suffix, precision, said, lambda x: call(turned(x, layout)), runtime, call)


def state(subject: Subject, form: str, names: str) -> Made:
  """Weights under PyTorch's names, read back and asked.

  Args:
    form: "safetensors" or "torch".
    names: see `weights.state_dict`.
  """
  family, tensors = weights.state_dict(subject.network, subject.variables, names)
  mean, std = subject.network.mean, subject.network.std
  said = about(subject, form, "f32") | {
    "names": family.name,
    "normalisation": f"not inside: give it (pixels - {list(mean)}) / {list(std)}, pixels in [0, 1]",
  }
  if form == "torch":
    data, suffix = weights.torch_zip(tensors), ".pth"
  else:
    data, suffix = weights.safetensors(tensors, texts(said)), ".safetensors"
  back = dataclasses.replace(subject, variables=_read_back(subject, data, tensors))
  return Made(data, suffix, "f32", said, reference(back), "jax, weights read back")


def _read_back(subject: Subject, data: bytes, tensors: weights.State) -> Any:
  """The variables as our own reader finds them in the file."""
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "weights"
    path.write_bytes(data)
    found = interop.read(path)
    same = found.tensors.keys() == tensors.keys() and all(
      np.array_equal(array, tensors[name]) for name, array in found.tensors.items()
    )
    if not same:
      raise UserError("The weights read back are not those written. Please report it.")
    try:
      return interop.convert(found, subject.architecture).variables
    except UserError:  # names that were asked for, though a reader would think of another network
      return subject.variables
