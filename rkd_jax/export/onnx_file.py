"""A graph as an ONNX file, checked as strictly as ONNX can."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from rkd_jax.export import needs
from rkd_jax.export.graph import Graph, Node
from rkd_jax.export.simplify import simplify
from rkd_jax.export.translate import graph
from rkd_jax.export.values import BATCH, Lengths
from rkd_jax.models.network import Network

OPSET, IR = 17, 8  # of 2022: what runs models today has them
NOTES = ("count",)  # attributes of our own


def model(network: Network, variables: Any, layout: str, about: Mapping[str, str]) -> Any:
  """The network as an `onnx.ModelProto`: images float32 in [0, 1], of any number -> logits.

  Args:
    layout: of the images, "nchw" or "nhwc".
    about: {name: text} of its metadata.

  Raises:
    UserError: onnx is not installed, or the network computes what is not translated.
  """
  needs.package("onnx", "ONNX")
  made = graph(network, variables, layout)
  simplify(made)
  return _model(made, network.classes, about)


def _model(made: Graph, classes: int, about: Mapping[str, str]) -> Any:
  import onnx
  from onnx import helper, numpy_helper

  body = helper.make_graph(
    [_node(node) for node in made.nodes],
    "network",
    [_value(made.images.name, made.images.lies())],
    [_value("logits", (BATCH, classes))],
    [numpy_helper.from_array(array, name) for name, array in made.constants.items()],
  )
  body.node.append(helper.make_node("Identity", [made.output], ["logits"]))
  found = helper.make_model(body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
  found.producer_name = "rkd_jax"
  helper.set_model_props(found, dict(about))
  onnx.checker.check_model(found, full_check=True)
  onnx.shape_inference.infer_shapes(found, check_type=True, strict_mode=True, data_prop=True)
  return found


def _node(node: Node) -> Any:
  from onnx import helper

  attributes = {name: value for name, value in node.attributes.items() if name not in NOTES}
  return helper.make_node(node.op, node.inputs, node.outputs, node.outputs[0], **attributes)


def _value(name: str, shape: Lengths) -> Any:
  from onnx import TensorProto, helper

  lengths = ["batch" if n is BATCH else n for n in shape]
  return helper.make_tensor_value_info(name, TensorProto.FLOAT, lengths)


def session(model: bytes, threads: int = 0) -> Any:
  """An onnxruntime session on the processor; a `UserError` where it is not installed.

  `threads`: that one operation may take; 0: as many as there are cores.
  """
  runtime = needs.package("onnxruntime", "Running ONNX")
  options = runtime.SessionOptions()
  options.intra_op_num_threads = threads
  options.log_severity_level = 3
  return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def logits(session: Any, images: np.ndarray) -> np.ndarray:
  """float32[B, K] of images as the model takes them."""
  return session.run(["logits"], {"images": images})[0]
