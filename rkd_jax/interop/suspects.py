"""What to say of a function or class that is not on the allow-list."""

import re

from rkd_jax.interop.refusals import HOSTILE, RESAVE, RefusedError, shown

_STATE_DICT = "In the program that made it: torch.save(model.state_dict(), path)"
# (names, what they are, what to do), the first that matches.
_KINDS = (
  (
    r"torch\.(\w+\.)*Q(U?Int\w+)Storage|torch\._utils\._rebuild_qtensor|torch\.per_\w+|torch\.q\w+",
    "quantised tensors",
    "Save the model before it is quantised, or tensor.dequantize()",
  ),
  (
    r"torch\._utils\._rebuild_sparse\w*|torch\.serialization\._get_layout|torch\.sparse\w*",
    "sparse tensors",
    "Save tensor.to_dense()",
  ),
  (r"torch\._utils\._rebuild_nested\w*", "nested tensors", "Save them as a list of tensors"),
  (
    r"torch\._utils\._rebuild_meta\w*",
    "tensors without values (device meta)",
    "Save the model after its weights are loaded",
  ),
  (
    r"torch\.(complex32|bits\w+|float4\w+|uint[1-7]|int[1-7])|torch\.(\w+\.)*\w+Storage",
    "tensors of a type that NumPy has not",
    "Save tensor.float()",
  ),
  (
    r"torch\.distributed\..*|torch\._utils\._rebuild_(xla|device|wrapper)\w*",
    "tensors spread over devices",
    "Save them gathered on one device, as plain tensors",
  ),
  (
    r"torch\.(jit|_C|package)\..*",
    "TorchScript",
    "In PyTorch: torch.save(torch.jit.load(path).state_dict(), other)",
  ),
  (r"torch\.nn\.(modules|parallel|quantized)\b.*", "", ""),  # a whole model
)
# Modules whose functions run programs, import, write files or talk to others; of some, a part.
_RUNS = re.compile(
  r"(_io|_pickle|asyncio|atexit|bdb|builtins|cloudpickle|code|codecs|commands|"
  r"copyreg|ctypes|dill|distutils|doctest|ensurepip|ftplib|functools|gc|getattr|"
  r"glob|http|idlelib|importlib|inspect|io|joblib|linecache|logging|marshal|"
  r"multiprocessing|nt|operator|os|pdb|pickle|pip|pkgutil|platform|posix|"
  r"posixpath|profile|pty|requests|runpy|setuptools|shutil|signal|site|smtplib|"
  r"socket|ssl|subprocess|sys|tarfile|tempfile|test|threading|timeit|torch\.(hub|"
  r"load|serialization|utils)|trace|types|unittest|urllib|weakref|webbrowser|"
  r"zipfile|zipimport)(\..*)?"
)


def refusal(name: str, where: str, pickle: memoryview) -> RefusedError:
  """The refusal of `name`, which the pickle asks for at opcode `where`."""
  said = f"{shown(name, 120)} at opcode {where}"
  for pattern, what, advice in _KINDS:
    if what and re.fullmatch(pattern, name):
      return RefusedError(f"it holds {what} ({said}); only plain tensors are read", advice)
  if _RUNS.fullmatch(name):
    return RefusedError(
      f"its pickle asks for {said}, which could run code; no weights need it", HOSTILE
    )
  if name.startswith("torch.nn.") or b"torch.nn.modules" in bytes(pickle):
    return RefusedError(
      f"it is a whole model, pickled with its code ({said}); only weights are read", _STATE_DICT
    )
  return RefusedError(
    f"its pickle asks for {said}, which is not on the list of what weights need",
    f"{RESAVE}. If that class only carries settings, name it as one to be noted and not made: "
    f"--opaque {shown(name, 120)}",
  )
