"""A pickle machine that only takes notes: it follows the opcodes, and makes nothing but records.

Lists, tuples, dictionaries, numbers and text are made; tensors, storages and all else that a pickle
would call for become the records of `values.py`. What it may cost is counted (`budget.py`).
"""

import re
import sys
from collections.abc import Callable
from typing import Any

from rkd_jax.interop import budget as limits
from rkd_jax.interop import meanings
from rkd_jax.interop.budget import Budget
from rkd_jax.interop.opcodes import Opcodes, number
from rkd_jax.interop.refusals import HOSTILE, RefusedError, shown
from rkd_jax.interop.suspects import refusal
from rkd_jax.interop.values import Global, NumpyArray, NumpyType, Opaque, Ordered

Persistent = Callable[[tuple], Any]  # what a tuple of ("storage", ...) stands for
_OLD = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # modules of Python 2
_OLDER = {"builtins.long": "int", "builtins.unicode": "str", "builtins.xrange": "range"}
_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_COST = 72  # bytes of a small object and what points to it
_SET = 216  # of an empty set
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_MADE = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}


class Machine:
  """Reads one pickle.

  Attributes:
    end: where it ended.
    globals: the names it asked for.
  """

  def __init__(
    self,
    view: memoryview,
    at: int = 0,
    budget: Budget | None = None,
    persistent: Persistent | None = None,
    opaque: frozenset[str] = frozenset(),
  ):
    """
    Args:
      view, at: where the pickle begins.
      budget: what it may still cost.
      persistent: called with the tuple of each storage; None: there must be none.
      opaque: names of further classes to be noted and not made.
    """
    self._codes, self._view, self._first = Opcodes(view, at), view, at
    self._budget, self._persistent = budget or Budget(), persistent
    self._opaque = meanings.OPAQUE | opaque
    self._stack: list[Any] = []
    self._marks: list[int] = []
    self._memo: dict[int, Any] = {}
    self.globals: set[str] = set()
    self.end = at

  def run(self) -> Any:
    """What it holds, as records. Raises `RefusedError`."""
    try:
      while True:
        name, argument = self._codes.next()
        self._budget.spend(_COST)
        if name == "STOP":
          return self._stop()
        _STEPS.get(name, Machine._unfollowed)(self, name, argument)
    except RefusedError as error:
      raise RefusedError(error.cause, error.advice, tuple(sorted(self.globals))) from None

  def _stop(self) -> Any:
    if len(self._stack) != 1 or self._marks:
      raise self._damaged("it ends with more or less than one value")
    self.end = self._codes.at
    return self._stack[0]

  def _damaged(self, why: str) -> RefusedError:
    return RefusedError(
      f"its pickle is damaged or tampered with: {why} (opcode {self._codes.where})"
    )

  def _unfollowed(self, name: str, argument: Any) -> None:
    what = f"{name} at opcode {self._codes.where}"
    if name == "INST" or name == "OBJ":
      at = self._marks[-1] if self._marks else len(self._stack)
      first = self._stack[at] if name == "OBJ" and at < len(self._stack) else None
      named = ".".join(argument) if argument else getattr(first, "name", "")
      if named and named not in meanings.KNOWN:
        raise self._unknown(named)
      what = f"{shown(named, 120)} by {what}"
    raise RefusedError(f"its pickle asks for {what}, which torch.save never writes", HOSTILE)

  # The stack: what is below the last mark is out of reach.

  def _push(self, value: Any) -> None:
    self._stack.append(value)

  def _pop(self) -> Any:
    self._top()
    return self._stack.pop()

  def _top(self) -> Any:
    if len(self._stack) <= (self._marks[-1] if self._marks else 0):
      raise self._damaged("it takes a value that is not there")
    return self._stack[-1]

  def _to_mark(self) -> list[Any]:
    if not self._marks:
      raise self._damaged("it looks for a mark that is not there")
    at = self._marks.pop()
    found = self._stack[at:]
    del self._stack[at:]
    return found

  # One step for each opcode, or for several alike.

  def _proto(self, name: str, version: int) -> None:
    if version > 5:
      raise self._damaged(f"protocol {version}; 5 is the newest")

  def _frame(self, name: str, size: int) -> None:
    here = self._codes.at
    if size <= limits.PICKLE:  # a longer one is found where it ends
      self._codes.take(size)
    self._codes.at = here

  def _literal(self, name: str, value: Any) -> None:
    if isinstance(value, str):
      self._budget.spend(sys.getsizeof(value))
    self._push(value)

  def _text_number(self, name: str, text: str) -> None:
    self._push(number(name, text))

  def _constant(self, name: str, _: None) -> None:
    self._push(_CONSTANTS[name])

  def _empty(self, name: str, _: None) -> None:
    self._push(_MADE[name]())

  def _mark(self, name: str, _: None) -> None:
    if len(self._marks) >= limits.MARKS:
      raise self._damaged(f"more than {limits.MARKS} open containers")
    self._marks.append(len(self._stack))

  def _drop(self, name: str, _: None) -> None:
    if name == "POP_MARK" or (self._marks and self._marks[-1] == len(self._stack)):
      self._to_mark()
    else:
      self._pop()

  def _dup(self, name: str, _: None) -> None:
    self._push(self._top())

  def _tuple(self, name: str, _: None) -> None:
    if name == "TUPLE":
      return self._push(tuple(self._to_mark()))
    found = [self._pop() for _ in range(int(name[-1]))]
    return self._push(tuple(reversed(found)))

  def _list(self, name: str, _: None) -> None:
    self._push(self._to_mark())

  def _dict(self, name: str, _: None) -> None:
    items, found = self._to_mark(), {}
    self._set_items(found, items)
    self._push(found)

  def _append(self, name: str, _: None) -> None:
    items = self._to_mark() if name == "APPENDS" else [self._pop()]
    target = self._held(list)
    if type(target) is not list:
      raise self._damaged(f"{name} to what is no list")
    target.extend(items)

  def _held(self, kind: type) -> Any:
    """What takes the items: the value on top, or what an object that is not made holds."""
    target = self._top()
    if not isinstance(target, Opaque):
      return target
    if target.items is None:
      self._budget.spend(_SET)
      target.items = kind()
    return target.items

  def _set_item(self, name: str, _: None) -> None:
    items = self._to_mark() if name == "SETITEMS" else [self._pop(), self._pop()][::-1]
    target = self._held(dict)
    if type(target) not in (dict, Ordered):
      raise self._damaged(f"{name} in what is no dictionary")
    self._set_items(target, items)

  def _set_items(self, target: dict, items: list[Any]) -> None:
    if len(items) % 2:
      raise self._damaged("a key without a value")
    for key, value in zip(items[::2], items[1::2], strict=True):
      target[meanings.check_key(key, target, self._budget)] = value

  def _sets(self, name: str, _: None) -> None:
    self._budget.spend(_SET)
    items = [] if name == "EMPTY_SET" else self._to_mark()
    target: Any = set() if name != "ADDITEMS" else self._top()
    if type(target) is not set:
      raise self._damaged(f"{name} to what is no set")
    for item in items:
      target.add(meanings.check_key(item, target, self._budget))
    if name != "ADDITEMS":
      self._push(target)

  def _put(self, name: str, index: Any) -> None:
    if name == "MEMOIZE":
      index = len(self._memo)
    index = number(name, index) if name == "PUT" else index
    self._memo[index] = self._top()

  def _get(self, name: str, index: Any) -> None:
    index = number(name, index) if name == "GET" else index
    if index not in self._memo:
      raise self._damaged(f"it recalls value {index}, which it never noted")
    self._push(self._memo[index])

  # What would run code in another machine.

  def _global(self, name: str, argument: Any) -> None:
    if name == "STACK_GLOBAL":
      argument = (self._pop(), self._pop())[::-1]
      if not all(type(part) is str for part in argument):
        raise self._damaged("a global whose name is no text")
    module, attribute = argument
    named = f"{_OLD.get(module, module)}.{attribute}"
    if module in _OLD and named in _OLDER:
      named = f"builtins.{_OLDER[named]}"
    self._push(self._named(named))

  def _named(self, name: str) -> Any:
    if not _NAME.fullmatch(name):
      raise self._damaged(f"a global named '{shown(name)}'")
    self.globals.add(name)
    if name in meanings.TYPES:
      return meanings.TYPES[name]
    if name not in meanings.KNOWN and name not in self._opaque:
      raise self._unknown(name)
    return Global(name, self._codes.where)

  def _unknown(self, name: str) -> RefusedError:
    return refusal(name, self._codes.where, self._view[self._first : self._first + limits.PICKLE])

  def _reduce(self, name: str, _: None) -> None:
    args = self._pop()
    function = self._pop()
    if not isinstance(function, Global) or type(args) is not tuple:
      raise self._damaged(f"{name} of what is no function")
    if function.name == "copyreg._reconstructor":  # how protocols 0 and 1 make objects
      function, args = (args[0], ()) if args else (None, ())
    if isinstance(function, Global) and function.name in self._opaque:
      return self._push(Opaque(function.name, args))
    if not isinstance(function, Global):
      raise self._damaged(f"{name} of what is no class")
    return self._push(meanings.call(function, args, self._codes.where, self._budget))

  def _new(self, name: str, _: None) -> None:
    if name == "NEWOBJ_EX" and self._pop() != {}:
      raise self._damaged("arguments with names, which torch.save never writes")
    self._reduce(name, None)

  def _build(self, name: str, _: None) -> None:
    state, target = self._pop(), self._top()
    if isinstance(target, Opaque) and target.state is None:
      target.state = state
    elif isinstance(target, NumpyType):
      self._order(target, state)
    elif isinstance(target, NumpyArray) and target.array is None:
      self._fill(target, state)
    elif type(target) is not Ordered or type(state) is not dict or set(state) - {"_metadata"}:
      raise self._damaged(
        f"{name} changes what has no state: {shown(getattr(target, 'name', type(target).__name__))}"
      )

  def _order(self, target: NumpyType, state: Any) -> None:
    """(version, byte order, ...) of numpy.dtype; the rest is of structured types."""
    order = state[1] if type(state) is tuple and 8 <= len(state) <= 9 else None
    if order not in ("<", ">", "|", "=") or state[2:5] != (None, None, None):
      raise self._damaged("a NumPy type of another kind than numbers")
    target.code = order.replace("=", "<") + target.code.lstrip("<>|=")

  def _fill(self, target: NumpyArray, state: Any) -> None:
    """(version, shape, dtype, is Fortran's order, bytes) of numpy.ndarray."""
    try:
      _, shape, kind, fortran, data = state
      target.array = meanings.numpy_array(shape, kind, fortran, data)
    except (TypeError, ValueError):
      raise self._damaged("a NumPy array whose bytes are not those of its shape and type") from None

  def _persistent_id(self, name: str, _: None) -> None:
    found = self._pop()
    if self._persistent is None or type(found) is not tuple:
      raise self._damaged("a storage where none belongs")
    self._push(self._persistent(found))


_Step = Callable[[Machine, str, Any], None]
_ALIKE: dict[_Step, str] = {
  Machine._proto: "PROTO",
  Machine._frame: "FRAME",
  Machine._mark: "MARK",
  Machine._drop: "POP POP_MARK",
  Machine._dup: "DUP",
  Machine._constant: "NONE NEWTRUE NEWFALSE",
  Machine._text_number: "INT LONG FLOAT",
  Machine._literal: "BININT1 BININT2 BININT LONG1 LONG4 BINFLOAT UNICODE BINUNICODE "
  "SHORT_BINUNICODE BINUNICODE8 SHORT_BINSTRING BINSTRING SHORT_BINBYTES BINBYTES BINBYTES8 "
  "BYTEARRAY8",
  Machine._empty: "EMPTY_LIST EMPTY_DICT EMPTY_TUPLE",
  Machine._tuple: "TUPLE TUPLE1 TUPLE2 TUPLE3",
  Machine._list: "LIST",
  Machine._dict: "DICT",
  Machine._append: "APPEND APPENDS",
  Machine._set_item: "SETITEM SETITEMS",
  Machine._sets: "EMPTY_SET ADDITEMS FROZENSET",
  Machine._put: "PUT BINPUT LONG_BINPUT MEMOIZE",
  Machine._get: "GET BINGET LONG_BINGET",
  Machine._global: "GLOBAL STACK_GLOBAL",
  Machine._reduce: "REDUCE",
  Machine._new: "NEWOBJ NEWOBJ_EX",
  Machine._build: "BUILD",
  Machine._persistent_id: "BINPERSID",
}
_STEPS: dict[str, _Step] = {name: step for step, names in _ALIKE.items() for name in names.split()}
