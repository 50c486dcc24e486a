"""What methods without data taught their students on, and which of it a shuffled teacher suspects.

Every network is asked with the same shuffled teachers, drawn here: those that a vaccine learned
against would flatter it. None of it selects anything.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from rkd_jax.methods import vaccine
from rkd_jax.methods.base import Method, Plugin
from rkd_jax.training.state import Program

Arrays = dict[str, np.ndarray]
IMAGES, COPIES, LAYERS = 256, 3, 5
ENDS = ("/student/poisoned", "/vaccinated/poisoned")


def arrays(networks: Mapping[str, Any]) -> Arrays:
  """{"copies", "<network>:images": uint8[n, H, W, C], ":answers": int32[n], the teacher's classes,
  ":suspicious": bool[n], ":log10": float32[n], of KL(T || T~) / K}; {} where no one invents. A
  teacher with nothing to shuffle (a ViT) has the first two alone.

  Args:
    networks: {name: `runner.Finished`}.
  """
  found: Arrays = {}
  for name, made in networks.items():
    method, state = inventor(made.program.method, made.memory)
    teacher = dict(made.program.modules).get("teacher")
    if teacher and name.endswith(ENDS) and hasattr(method, "invent"):
      layers = min(LAYERS, len(vaccine.readers(teacher))) if len(teacher.convs) > 1 else 0
      seen = jax.device_get(_look(made.program, method, made.trees, state, layers))
      seen["images"] = np.round(255 * seen["images"]).astype(np.uint8)
      found |= {f"{name}:{key}": np.asarray(array) for key, array in seen.items()}
  return {"copies": np.int32(COPIES), **found} if found else {}  # type: ignore[dict-item]


def inventor(method: Method, state: Any) -> tuple[Method, Any]:
  """The outermost method that invents images, else the innermost there is; and its state."""
  while isinstance(method, Plugin) and not hasattr(method, "invent"):
    method, state = method.base, state["base"]
  return method, state


@functools.partial(jax.jit, static_argnames=("program", "method", "layers"))
def _look(
  program: Program, method: Any, trees: Any, state: Any, layers: int
) -> dict[str, jax.Array]:
  variables = program.bind({name: trees[name] for name, _ in program.modules})
  images = method.invent(jax.random.key(0), variables, state, IMAGES)
  teacher = variables["teacher"]
  if not layers:
    answers = teacher(images, train=False)[0].logits.argmax(-1)
    return {"images": images, "answers": answers}
  orders = vaccine.draw(jax.random.key(1), teacher.module, layers, COPIES)
  own, others = vaccine.answers(teacher, orders, images)
  distance = vaccine.log10(vaccine.divergence(own, others, "forward", "mean"))
  suspicious = vaccine.suspicious(own, others) > 0
  return {
    "images": images, "answers": own.argmax(-1), "suspicious": suspicious, "log10": distance
  }  # fmt: skip
