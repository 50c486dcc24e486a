"""Pickle's opcodes and how their arguments are read. What they do is `machine.py`'s business."""

import re
import struct
from typing import Any

from rkd_jax.interop import budget
from rkd_jax.interop.refusals import RESAVE, RefusedError, shown

# {code: (name, kind of argument)}. Kinds: "" none; u/i + bytes: whole number; t/b/p + bytes of
# its length: text, bytes, either; n + bytes of its length: whole number; "line", "lines": text up
# to "\n".
OPCODES = {
  0x80: ("PROTO", "u1"),
  0x95: ("FRAME", "u8"),
  ord("."): ("STOP", ""),
  ord("("): ("MARK", ""),
  ord("0"): ("POP", ""),
  ord("1"): ("POP_MARK", ""),
  ord("2"): ("DUP", ""),
  ord("N"): ("NONE", ""),
  0x88: ("NEWTRUE", ""),
  0x89: ("NEWFALSE", ""),
  ord("I"): ("INT", "line"),
  ord("L"): ("LONG", "line"),
  ord("F"): ("FLOAT", "line"),
  ord("K"): ("BININT1", "u1"),
  ord("M"): ("BININT2", "u2"),
  ord("J"): ("BININT", "i4"),
  0x8A: ("LONG1", "n1"),
  0x8B: ("LONG4", "n4"),
  ord("G"): ("BINFLOAT", "f8"),
  ord("V"): ("UNICODE", "line"),
  ord("X"): ("BINUNICODE", "t4"),
  0x8C: ("SHORT_BINUNICODE", "t1"),
  0x8D: ("BINUNICODE8", "t8"),
  ord("U"): ("SHORT_BINSTRING", "p1"),  # Python 2's str: text, or the bytes of a number
  ord("T"): ("BINSTRING", "p4"),
  ord("C"): ("SHORT_BINBYTES", "b1"),
  ord("B"): ("BINBYTES", "b4"),
  0x8E: ("BINBYTES8", "b8"),
  0x96: ("BYTEARRAY8", "b8"),
  ord(")"): ("EMPTY_TUPLE", ""),
  ord("t"): ("TUPLE", ""),
  0x85: ("TUPLE1", ""),
  0x86: ("TUPLE2", ""),
  0x87: ("TUPLE3", ""),
  ord("]"): ("EMPTY_LIST", ""),
  ord("l"): ("LIST", ""),
  ord("a"): ("APPEND", ""),
  ord("e"): ("APPENDS", ""),
  ord("}"): ("EMPTY_DICT", ""),
  ord("d"): ("DICT", ""),
  ord("s"): ("SETITEM", ""),
  ord("u"): ("SETITEMS", ""),
  0x8F: ("EMPTY_SET", ""),
  0x90: ("ADDITEMS", ""),
  0x91: ("FROZENSET", ""),
  ord("g"): ("GET", "line"),
  ord("h"): ("BINGET", "u1"),
  ord("j"): ("LONG_BINGET", "u4"),
  ord("p"): ("PUT", "line"),
  ord("q"): ("BINPUT", "u1"),
  ord("r"): ("LONG_BINPUT", "u4"),
  0x94: ("MEMOIZE", ""),
  ord("c"): ("GLOBAL", "lines"),
  0x93: ("STACK_GLOBAL", ""),
  ord("R"): ("REDUCE", ""),
  ord("b"): ("BUILD", ""),
  0x81: ("NEWOBJ", ""),
  0x92: ("NEWOBJ_EX", ""),
  ord("Q"): ("BINPERSID", ""),
  # Known, so that they can be named, and never followed:
  ord("i"): ("INST", "lines"),
  ord("o"): ("OBJ", ""),
  ord("P"): ("PERSID", "line"),
  ord("S"): ("STRING", "line"),
  0x82: ("EXT1", "u1"),
  0x83: ("EXT2", "u2"),
  0x84: ("EXT4", "i4"),
  0x97: ("NEXT_BUFFER", ""),
  0x98: ("READONLY_BUFFER", ""),
}
_NUMBERS = {"u1": "<B", "u2": "<H", "u4": "<I", "u8": "<Q", "i4": "<i", "f8": ">d"}
_FORMATS = {kind: struct.Struct(form) for kind, form in _NUMBERS.items()}
_LINE = 4_096  # bytes; the longest module and class are far shorter
_WHOLE = re.compile(r"-?[0-9]{1,500}")


class Opcodes:
  """Reads one opcode after the other from bytes that nobody vouches for.

  Attributes:
    at: where the next opcode begins.
    start, count: where the last one began, and how many stood before it.
  """

  def __init__(self, view: memoryview, at: int = 0):
    self._view, self.at, self.start, self.count = view, at, at, -1
    self._end = min(len(view), at + budget.PICKLE)

  def next(self) -> tuple[str, object]:
    """(name, argument). Raises `RefusedError` where there is none."""
    self.start, self.count = self.at, self.count + 1
    code = self.take(1)[0]
    name, kind = OPCODES.get(code, ("", ""))
    if not name:
      raise RefusedError(
        f"byte 0x{code:02x} is no pickle opcode (opcode {self.where}): it is damaged"
      )
    return name, self._argument(kind) if kind else None

  @property
  def where(self) -> str:
    return f"{self.count}, byte {self.start}"

  def take(self, size: int) -> memoryview:
    """The next bytes, not copied."""
    if size > self._end - self.at:
      if self._end < len(self._view):
        raise RefusedError(f"its pickle is longer than {budget.PICKLE // budget.MIB} MiB", RESAVE)
      raise RefusedError(
        f"its pickle is cut off: opcode {self.where} needs {size} more bytes, there are "
        f"{self._end - self.at}"
      )
    self.at += size
    return self._view[self.at - size : self.at]

  def _argument(self, kind: str) -> object:
    if kind in _FORMATS:
      return _FORMATS[kind].unpack(self.take(_FORMATS[kind].size))[0]
    if kind == "line":
      return self._line()
    if kind == "lines":
      return self._line(), self._line()
    size = int.from_bytes(self.take(int(kind[1:])), "little")
    if kind[0] == "n" and size > budget.DIGITS:
      raise RefusedError(f"a number of {size} bytes (opcode {self.where}); {budget.DIGITS} at most")
    data = self.take(size)
    if kind[0] == "n":
      return int.from_bytes(data, "little", signed=True)
    return data if kind[0] == "b" else self._text(data, or_bytes=kind[0] == "p")

  def _line(self) -> str:
    ahead = bytes(self._view[self.at : min(self.at + _LINE, self._end)])
    length = ahead.find(b"\n")
    if length < 0:
      raise RefusedError(f"a line without end (opcode {self.where}): it is damaged")
    self.at += length + 1
    return self._text(memoryview(ahead)[:length])

  def _text(self, data: memoryview, or_bytes: bool = False) -> Any:
    try:
      return str(data, "utf-8")
    except UnicodeDecodeError:
      if or_bytes:
        return data
      raise RefusedError(f"text that is no UTF-8 (opcode {self.where}): it is damaged") from None


def number(name: str, text: str) -> Any:
  """What the text of INT, LONG, FLOAT, PUT or GET says. Raises `RefusedError`."""
  if name == "INT" and text in ("00", "01"):
    return text == "01"
  plain = text.removesuffix("L") if name == "LONG" else text
  if name != "FLOAT" and _WHOLE.fullmatch(plain):
    return int(plain)
  try:
    if name == "FLOAT" and len(text) < 64:
      return float(text)
  except ValueError:
    pass
  raise RefusedError(f"{name} with '{shown(text)}', which is no number: it is damaged")
