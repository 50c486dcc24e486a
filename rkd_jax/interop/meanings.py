"""What the names on the allow-list mean when a pickle calls them. Nothing is imported or called.

A pickle says "call torch._utils._rebuild_tensor_v2 with these". Here a function of ours looks at
these and notes a record (`values.py`). A name that is not on the list ends the reading.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from rkd_jax.interop.budget import NAME, Budget
from rkd_jax.interop.dtypes import NAMED, STORAGES
from rkd_jax.interop.refusals import RESAVE, RefusedError, shown
from rkd_jax.interop.values import Global, NumpyArray, NumpyType, Ordered, Storage, Tensor

Args = tuple[Any, ...]
_KEYS = (str, int, float, bool, type(None))
_LATIN = ("latin1", "latin-1", "iso-8859-1")
_NUMPY = re.compile(r"b1?|[iu][1248]|f[248]|c8|c16|[SU][1-9][0-9]{0,5}|\?")
# Classes without anything to run that training scripts leave in checkpoints: noted, never made.
_DATA = {  # {module: its classes}
  "addict.addict": "Dict",
  "argparse": "Namespace",
  "builtins": "object range slice",
  "collections": "deque",
  "datetime": "date datetime time timedelta timezone",
  "decimal": "Decimal",
  "easydict": "EasyDict",
  "fractions": "Fraction",
  "fvcore.common.config": "CfgNode",
  "lightning.fabric.utilities.data": "AttributeDict",
  "lightning.pytorch.utilities.parsing": "AttributeDict",
  "lightning_fabric.utilities.data": "AttributeDict",
  "ml_collections.config_dict.config_dict": "ConfigDict FrozenConfigDict FieldReference",
  "mmcv.utils.config": "Config ConfigDict",
  "mmengine.config.config": "Config ConfigDict",
  "munch": "Munch",
  "numpy.random._mt19937": "MT19937",
  "numpy.random._pcg64": "PCG64 PCG64DXSM",
  "numpy.random._pickle": "__bit_generator_ctor __generator_ctor __randomstate_ctor",
  "numpy.random.bit_generator": "SeedSequence __pyx_unpickle_SeedSequence",
  "omegaconf.base": "ContainerMetadata Metadata",
  "omegaconf.dictconfig": "DictConfig",
  "omegaconf.listconfig": "ListConfig",
  "omegaconf.nodes": "AnyNode BooleanNode BytesNode FloatNode IntegerNode PathNode StringNode",
  "pathlib": "PosixPath WindowsPath PurePosixPath PureWindowsPath",
  "pathlib._local": "PosixPath WindowsPath PurePosixPath PureWindowsPath",
  "PIL.Image": "Image",
  "pytorch_lightning.utilities.parsing": "AttributeDict",
  "torch": "Generator",
  "types": "SimpleNamespace",
  "uuid": "SafeUUID UUID",
  "yacs.config": "CfgNode",
  "zoneinfo": "ZoneInfo",
}
OPAQUE = frozenset(f"{module}.{name}" for module, names in _DATA.items() for name in names.split())
# Named only as an argument of others.
_CALLBACK = "callbacks.model_checkpoint.ModelCheckpoint"  # a key of Lightning's older files
MARKERS = frozenset(
  {"numpy.ndarray", "torch.Tensor", "torch.nn.parameter.Buffer", "typing.Any"}
  | {f"builtins.{name}" for name in ("list", "dict", "int", "float", "str", "bool", "tuple")}
  | {
    f"numpy.{name}"
    for name in ("bool_", "float16", "float32", "float64", "int32", "int64", "uint8")
  }
  | {f"pytorch_lightning.{_CALLBACK}", f"lightning.pytorch.{_CALLBACK}"}
)
TYPES = {
  **{f"torch.{name}": dtype for name, dtype in NAMED.items()},
  "torch.half": NAMED["float16"],
  "torch.float": NAMED["float32"],
  "torch.double": NAMED["float64"],
}
STORAGE_CLASSES = {
  f"{module}.{name}": dtype
  for module in ("torch", "torch.cuda", "torch.storage")
  for name, dtype in STORAGES.items()
}


def call(function: Global, args: Args, where: str, budget: Budget) -> Any:
  """What `function(*args)` amounts to. Raises `RefusedError` for arguments that are none of
  torch.save's."""
  try:
    return _CALLS[function.name](args, budget)
  except (KeyError, TypeError, ValueError):  # no function; too few, too many, or of another type
    raise _misused(function.name, where) from None


def _misused(name: str, where: str) -> RefusedError:
  return RefusedError(f"{name} is called at opcode {where} as torch.save never does")


def _need(met: object) -> None:
  if not met:
    raise ValueError


def _whole(value: Any) -> int:
  _need(type(value) is int and 0 <= value < 2**62)
  return value


def _wholes(value: Any) -> tuple[int, ...]:
  _need(type(value) in (tuple, list) and len(value) <= 64)
  return tuple(_whole(item) for item in value)


def _ordered(args: Args, budget: Budget) -> Ordered:
  found = Ordered()
  for pair in args[0] if args else ():  # Python 2 writes a list of pairs
    key, value = pair
    _need(type(pair) in (tuple, list) and len(args) == 1)
    found[check_key(key, found, budget)] = value
  return found


def _mapping(args: Args, budget: Budget) -> dict:
  """Counter(dict), defaultdict(type)."""
  _need(len(args) <= 1)
  if not args or args[0] is None or isinstance(args[0], Global):
    return {}
  _need(type(args[0]) is dict)
  budget.spend(128 * len(args[0]))
  return dict(args[0])


def _tensor(args: Args, budget: Budget) -> Tensor:
  """_rebuild_tensor(storage, offset, size, stride)."""
  storage, offset, shape, strides = args
  _need(isinstance(storage, Storage))
  return Tensor(storage, storage.dtype, _whole(offset), _wholes(shape), _wholes(strides))


def _tensor_v2(args: Args, budget: Budget) -> Tensor:
  """_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks[, metadata])."""
  _need(6 <= len(args) <= 7 and type(args[4]) is bool and not args[5])
  if args[6:] and args[6]:
    raise RefusedError(
      "a tensor is marked as conjugated or negated, but not computed",
      "Save it with torch.save(tensor.resolve_conj().resolve_neg(), path)",
    )
  return _tensor(args[:4], budget)


def _tensor_v3(args: Args, budget: Budget) -> Tensor:
  """_rebuild_tensor_v3(untyped, offset, size, stride, requires_grad, hooks, dtype[, metadata])."""
  _need(7 <= len(args) <= 8 and isinstance(args[6], np.dtype))
  found = _tensor_v2((*args[:6], *args[7:]), budget)
  _need(found.storage.dtype == np.uint8)
  return Tensor(found.storage, args[6], found.offset, found.shape, found.strides)


def _parameter(args: Args, budget: Budget) -> Tensor:
  """Parameter(data[, requires_grad[, hooks[, state]]]): the data."""
  _need(1 <= len(args) <= 4 and isinstance(args[0], Tensor))
  return args[0]


def _subclass(args: Args, budget: Budget) -> Tensor:
  """_rebuild_from_type_v2(function, class, args, state): a tensor with attributes, or a buffer."""
  function, kind, inner, _ = args
  _need(isinstance(kind, Global) and kind.name in (*MARKERS, "torch.nn.parameter.Parameter"))
  _need(isinstance(function, Global) and function.name.startswith("torch._utils._rebuild_"))
  _need(type(inner) is tuple)
  found = _CALLS[function.name](inner, budget)
  _need(isinstance(found, Tensor))
  return found


def _device(args: Args, budget: Budget) -> str:
  kind, *index = args
  _need(type(kind) is str and len(index) <= 1)
  return ":".join([kind, *(str(_whole(number)) for number in index)])


def _size(args: Args, budget: Budget) -> tuple[int, ...]:
  (shape,) = args
  return _wholes(shape)


def _encode(args: Args, budget: Budget) -> memoryview:
  """_codecs.encode(text, "latin1"): how protocol 2 spells bytes."""
  text, encoding = args
  _need(type(text) is str and encoding in _LATIN)
  budget.spend(len(text))
  return memoryview(text.encode("latin-1"))


def _bytes(args: Args, budget: Budget) -> memoryview:
  _need(len(args) <= 1 and all(isinstance(data, memoryview) for data in args))
  return args[0] if args else memoryview(b"")


def _complex(args: Args, budget: Budget) -> complex:
  real, imaginary = args
  _need(type(real) is float and type(imaginary) is float)
  return complex(real, imaginary)


def _set(args: Args, budget: Budget) -> set:
  found: set = set()
  for item in args[0] if args else ():
    _need(type(args[0]) is list and len(args) == 1)
    found.add(check_key(item, (), budget))
  return found


def _numpy_type(args: Args, budget: Budget) -> NumpyType:
  code, *_ = args
  _need(type(code) is str and len(args) == 3)
  if not _NUMPY.fullmatch(code):
    raise RefusedError(f"a NumPy array of type '{shown(code)}', which is more than numbers", RESAVE)
  return NumpyType(code)


def _numpy_scalar(args: Args, budget: Budget) -> Any:
  kind, data = args
  data = memoryview(data.encode()) if type(data) is str else data  # of Python 2
  dtype = kind.dtype if isinstance(kind, NumpyType) else None
  _need(dtype and isinstance(data, memoryview) and len(data) == dtype.itemsize)
  budget.spend(4 * len(data))
  return np.frombuffer(data, dtype)[0].item()


def _numpy_empty(args: Args, budget: Budget) -> NumpyArray:
  """_reconstruct(numpy.ndarray, (0,), b"b"): what it holds comes later."""
  kind, shape, _ = args
  _need(isinstance(kind, Global) and kind.name == "numpy.ndarray" and shape == (0,))
  return NumpyArray()


def _numpy_buffer(args: Args, budget: Budget) -> NumpyArray:
  """_frombuffer(data, dtype, shape, order)."""
  data, kind, shape, order = args
  _need(order in ("C", "F"))
  return NumpyArray(numpy_array(shape, kind, order == "F", data))


def numpy_array(shape: Any, kind: Any, fortran: Any, data: Any) -> np.ndarray:
  """An array over the bytes in the pickle. Raises a `ValueError` where they do not fit."""
  data = memoryview(data.encode()) if type(data) is str else data  # of Python 2
  _need(isinstance(kind, NumpyType) and isinstance(data, memoryview))
  found = np.frombuffer(data, kind.dtype) if len(data) else np.zeros(0, kind.dtype)
  found.flags.writeable = False
  return found.reshape(_wholes(shape), order="F" if fortran else "C")


def _is_short(value: Any) -> bool:
  return type(value) in _KEYS and (type(value) is not str or len(value) <= 64)


def check_key(key: Any, known: Any, budget: Budget) -> Any:
  """The key, if it is one that costs nothing to compare and is new. Raises `RefusedError`.

  A class becomes its name, and a short tuple the text of it.
  """
  if isinstance(key, Global):
    key = key.name
  if type(key) is tuple and 0 < len(key) <= 8 and all(_is_short(part) for part in key):
    key = shown(key, NAME)
  if type(key) not in _KEYS:
    raise RefusedError(f"a key of a dictionary or set that is a {type(key).__name__}", RESAVE)
  if (
    type(key) is int and abs(key) >= 2**60
  ):  # such can be chosen so that all their hashes are equal
    raise RefusedError(f"a key of {key.bit_length()} bits: it was tampered with")
  if key in known:
    raise RefusedError(f"the key '{shown(key)}' stands there twice: it was tampered with")
  budget.spend(64)
  return key


_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_CALLS: dict[str, Callable[[Args, Budget], Any]] = {
  "collections.OrderedDict": _ordered,
  "collections.Counter": _mapping,
  "collections.defaultdict": _mapping,
  "torch._utils._rebuild_tensor": _tensor,
  "torch._utils._rebuild_tensor_v2": _tensor_v2,
  "torch._utils._rebuild_tensor_v3": _tensor_v3,
  "torch._utils._rebuild_parameter": _parameter,
  "torch._utils._rebuild_parameter_with_state": _parameter,
  "torch.nn.parameter.Parameter": _parameter,
  "torch._tensor._rebuild_from_type_v2": _subclass,
  "torch.Size": _size,
  "torch.device": _device,
  "_codecs.encode": _encode,
  "builtins.bytes": _bytes,
  "builtins.bytearray": _bytes,
  "builtins.complex": _complex,
  "builtins.set": _set,
  "builtins.frozenset": _set,
  "numpy.dtype": _numpy_type,
  **{f"{module}.scalar": _numpy_scalar for module in _MULTIARRAY},
  **{f"{module}._reconstruct": _numpy_empty for module in _MULTIARRAY},
  "numpy.core.numeric._frombuffer": _numpy_buffer,
  "numpy._core.numeric._frombuffer": _numpy_buffer,
}
KNOWN = (
  frozenset(_CALLS) | OPAQUE | MARKERS | frozenset(STORAGE_CLASSES) | {"copyreg._reconstructor"}
)
