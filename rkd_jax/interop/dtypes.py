"""The types of numbers that files name, as NumPy's."""

import ml_dtypes
import numpy as np

_WHOLE = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
_PLAIN = ["bool", *_WHOLE, "float16", "float32", "float64", "complex64", "complex128"]
_EIGHTS = ["e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e8m0fnu"]
_SHORT = ["bfloat16", *(f"float8_{bits}" for bits in _EIGHTS)]
# {torch's and NumPy's name: type}
NAMED = {
  **{name: np.dtype(name) for name in _PLAIN},
  **{name: np.dtype(getattr(ml_dtypes, name)) for name in _SHORT},
}
# {torch's class: type}
STORAGES = {
  f"{name}Storage": NAMED[dtype]
  for name, dtype in {
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
    "ComplexDouble": "complex128",
    "ComplexFloat": "complex64",
    "Untyped": "uint8",
  }.items()
}
# {safetensors' name: type}
SAFETENSORS = {
  name: NAMED[dtype]
  for name, dtype in {
    "BOOL": "bool",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
  }.items()
}


def is_float(dtype: np.dtype) -> bool:
  """Whether it can hold what is not finite (NumPy does not know that bfloat16 is a float)."""
  return dtype.kind in "fc" or dtype.name in _SHORT


def native(raw: np.ndarray, dtype: np.dtype) -> np.ndarray:
  """uint8[N] of big-endian numbers of `dtype` in this machine's order: a copy, if that differs."""
  size = dtype.itemsize // 2 if dtype.kind == "c" else dtype.itemsize
  return raw if size == 1 else raw.view(f"u{size}").byteswap().view(np.uint8)
