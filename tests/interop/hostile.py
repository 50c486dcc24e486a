"""Files that nobody should read, by name. Where one could run code, it would make a canary."""

import functools
import struct
import zipfile
import zlib

from handmade import (
  FOUR,
  PROTO,
  legacy,
  name,
  number,
  numbers,
  plain,
  stack_name,
  state,
  storage,
  stored_zip,
  tensor,
  text,
  torch_zip,
)

from rkd_jax.interop import budget

ORDERED = name("collections", "OrderedDict")


def code(canary: str) -> dict[str, tuple[bytes, str]]:
  """{name: (a pickle that calls, what its refusal must name)}, for every opcode that can call."""
  touch = text(f"touch {canary}")
  script = text(f"open({canary!r}, 'w')")
  system, build = name("os", "system"), name("builtins", "exec")
  one = b"(" + touch + b"t"
  call = {
    "reduce": (system + one + b"R.", "os.system"),
    "reduce tuple1": (system + touch + b"\x85R.", "os.system"),
    "posix": (name("posix", "system") + touch + b"\x85R.", "posix.system"),
    "python 2": (name("__builtin__", "eval") + script + b"\x85R.", "builtins.eval"),
    "exec": (build + script + b"\x85R.", "builtins.exec"),
    "stack global": (stack_name("os", "system") + touch + b"\x85R.", "os.system"),
    "memoised name": (
      text("os") + b"q\x000" + text("system") + b"q\x010h\x00h\x01\x93" + touch + b"\x85R.",
      "os.system",
    ),
    "dotted": (stack_name("torch", "os.system") + touch + b"\x85R.", "torch.os.system"),
    "nested module": (name("torch.serialization", "os.system") + touch + b"\x85R.", "os.system"),
    "inst": (b"(" + touch + b"ios\nsystem\n.", "os.system"),
    "obj": (b"(" + system + touch + b"o.", "os.system"),
    "obj of ours": (b"(" + ORDERED + touch + b"o.", "OBJ"),
    "inst of ours": (b"(" + touch + b"icollections\nOrderedDict\n.", "INST"),
    "newobj": (system + touch + b"\x85\x81.", "os.system"),
    "newobj_ex": (system + touch + b"\x85}\x92.", "os.system"),
    "newobj_ex of ours": (ORDERED + b")" + state(a=touch) + b"\x92.", "damaged"),
    "subprocess": (name("subprocess", "Popen") + touch + b"\x85R.", "subprocess.Popen"),
    "hub": (name("torch.hub", "load") + touch + b"\x85R.", "torch.hub.load"),
    "load": (name("torch", "load") + touch + b"\x85R.", "torch.load"),
    "nested pickle": (name("pickle", "loads") + touch + b"\x85R.", "pickle.loads"),
    "nested pickle in c": (name("_pickle", "loads") + touch + b"\x85R.", "_pickle.loads"),
    "marshal": (name("marshal", "loads") + touch + b"\x85R.", "marshal.loads"),
    "import": (name("importlib", "import_module") + text("os") + b"\x85R.", "importlib"),
    "getattr": (name("builtins", "getattr") + text("os") + b"\x85R.", "builtins.getattr"),
    "getitem": (name("operator", "attrgetter") + text("a") + b"\x85R.", "operator.attrgetter"),
    "partial": (name("functools", "partial") + text("a") + b"\x85R.", "functools.partial"),
    "numpy load": (name("numpy", "load") + touch + b"\x85R.", "numpy.load"),
    "numpy testing": (name("numpy.testing._private.utils", "runstring") + b").", "runstring"),
    "runpy": (name("runpy", "_run_code") + touch + b"\x85R.", "runpy._run_code"),
    "global alone": (system + b".", "os.system"),
    "global thrown away": (system + b"0N.", "os.system"),
    "global as key": (b"}" + system + b"Ns.", "os.system"),
    "global in a tensor": (plain(stored=b"(" + system + b"tQ"), "os.system"),
    "unknown class": (name("models.net", "Settings") + b")\x81.", "models.net.Settings"),
    "whole model": (
      name("__main__", "Net") + b")\x81}" + name("torch.nn.modules.conv", "Conv2d") + b"0b.",
      "whole model",
    ),
    "script module": (name("torch.jit._script", "RecursiveScriptModule") + b".", "TorchScript"),
    "quantised": (name("torch._utils", "_rebuild_qtensor") + b".", "quantised"),
    "quantised storage": (plain(stored=storage(cls=("torch", "QInt8Storage"))), "quantised"),
    "sparse": (name("torch._utils", "_rebuild_sparse_tensor") + b".", "sparse"),
    "meta": (name("torch._utils", "_rebuild_meta_tensor_no_storage") + b".", "meta"),
    "nested tensor": (name("torch._utils", "_rebuild_nested_tensor") + b".", "nested"),
    "setstate": (
      ORDERED + b")R" + state(__setstate__=system) + b"b.",
      "os.system",
    ),
    "setstate of ours": (ORDERED + b")R" + state(__setstate__=b"N") + b"b.", "damaged"),
    "class changed": (ORDERED + b")R" + state(__class__=b"N") + b"b.", "damaged"),
    "build a list": (b"]" + state(append=b"N") + b"b.", "BUILD"),
    "build a tensor": (tensor() + state(data=b"N") + b"b.", "BUILD"),
    "build a global": (ORDERED + state(a=b"N") + b"b.", "BUILD"),
    "ext1": (b"\x82\x01.", "EXT1"),
    "ext2": (b"\x83\x01\x00.", "EXT2"),
    "ext4": (b"\x84\x01\x00\x00\x00.", "EXT4"),
    "persid": (b"Pos.system\n.", "PERSID"),
    "string": (b"S'os.system'\n.", "STRING"),
    "buffer": (b"\x97.", "NEXT_BUFFER"),
    "reduce a text": (text("os.system") + touch + b"\x85R.", "damaged"),
    "reduce a storage": (name("torch", "FloatStorage") + number(9) + b"\x85R.", "FloatStorage"),
    "reduce a dtype": (name("torch", "float32") + b")R.", "damaged"),
    "reduce a list": (name("builtins", "list") + b"]\x85R.", "builtins.list"),
    "copyreg": (
      name("copy_reg", "_reconstructor") + b"(" + system + name("builtins", "object") + b"NtR.",
      "os.system",
    ),
    "copyreg of nothing": (name("copy_reg", "_reconstructor") + b")R.", "damaged"),
    "subclass rebuilt": (
      name("torch._tensor", "_rebuild_from_type_v2") + b"(" + ORDERED + ORDERED + b")}tR.",
      "_rebuild_from_type_v2",
    ),
    "a name with spaces": (b"cos system\nx y\n.", "global named"),
    "an escape": (b"c\x1b[31mos\nsystem\n.", "global named"),
    "in what is noted": (
      name("datetime", "datetime") + system + touch + b"\x85R\x85R.",
      "os.system",
    ),
    "in what a kind of list holds": (
      name("collections", "deque") + b")R(" + system + touch + b"\x85Re.",
      "os.system",
    ),
    "in what a kind of dictionary holds": (
      name("yacs.config", "CfgNode") + b")\x81(" + touch + system + b"u.",
      "os.system",
    ),
    "setstate of what is noted": (
      name("datetime", "datetime") + b")R" + state(__setstate__=system) + b"b.",
      "os.system",
    ),
    "a class of what is noted": (
      name("zoneinfo", "ZoneInfo._unpickle") + b")R.",
      "zoneinfo.ZoneInfo._unpickle",
    ),
    "python 2's names": (name("__builtin__", "xrange.__class__") + b")R.", "builtins.xrange"),
    "a number's class called": (name("numpy", "float32") + b")R.", "numpy.float32"),
    "a callback's class called": (
      name("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint") + b")R.",
      "ModelCheckpoint",
    ),
    "load from bytes": (
      name("torch.storage", "_load_from_bytes") + b"C\x01N\x85R.",
      "_load_from_bytes",
    ),
    "a class as key": (b"}" + name("subprocess", "Popen") + b"Ns.", "subprocess.Popen"),
    "objects in numpy": (
      name("numpy", "dtype") + b"(" + text("O8") + b"\x89\x88tR.",
      "O8",
    ),
  }
  return {key: (PROTO + value, said) for key, (value, said) in call.items()}


@functools.cache
def damaged() -> dict[str, bytes]:
  """{name: a pickle that breaks rules, lies, or costs too much}."""
  deep = 100_000
  often = b")" + b"2\x86" * 60  # a tuple that would take 2**60 words to spell out
  noted, listed = name("datetime", "datetime") + b")R", name("collections", "deque") + b")R"
  laugh = b"](" + b"N" * 9 + b"eq\x00" + b"0](" + b"".join(b"h\x00" * 9 for _ in range(1)) + b"e"
  for level in range(1, 30):
    laugh += b"q" + bytes([level]) + b"0](" + (b"h" + bytes([level])) * 9 + b"e"
  array = name("numpy.core.multiarray", "_reconstruct")
  array += b"(" + name("numpy", "ndarray") + numbers((0,)) + b"C\x01btR"
  kind = name("numpy", "dtype") + b"(" + text("f4") + b"\x89\x88tR"
  values = {
    "nothing": b"",
    "no value": b".",
    "two values": b"NN.",
    "open mark": b"(N.",
    "pop of nothing": b"0.",
    "pop below mark": b"N(0R.",
    "mark missing": b"t.",
    "append to nothing": b"Na.",
    "append below mark": b"](Na.",
    "setitem in a list": b"]NNs.",
    "odd items": b"}(Nu.",
    "memo missing": b"h\x07.",
    "memo text": b"gx\n.",
    "text is no utf-8": b"X\x02\x00\x00\x00\xff\xfe.",
    "long text": b"X\xff\xff\xff\xff.",
    "long text 8": b"\x8d" + b"\xff" * 8 + b".",
    "long bytes": b"\x8e" + b"\xff" * 8 + b".",
    "long bytearray": b"\x96" + b"\x7f" * 8 + b".",
    "long frame": b"\x95" + b"\xff" * 8 + b".",
    "long number": b"\x8b\xff\xff\xff\x7f" + b"1" * 99 + b".",
    "negative length": b"\x8b\xff\xff\xff\xff.",
    "large number": b"\x8b\x00\x10\x00\x00" + b"\x11" * 4096 + b".",
    "large decimal": b"L" + b"9" * 4000 + b"L\n.",
    "decimal without end": b"I" + b"9" * 100_000,
    "number is none": b"Iseven\n.",
    "float is none": b"Fseven\n.",
    "protocol 9": b"\x80\x09N.",
    "opcode is none": b"\xff.",
    "deep tuples": b")" + b"\x85" * deep + b".",
    "deep lists": b"]" * deep + b"a" * (deep - 1) + b".",
    "deep marks": b"(" * deep + b"t" * deep + b".",
    "deep dictionaries": b"}" + (text("a") + b"}") * deep + b"s" * deep + b".",
    "memo flood": b"N" + b"".join(b"r" + struct.pack("<I", i) for i in range(2_500_000)) + b".",
    "list flood": b"](" + b"]" * 3_000_000 + b"e.",
    "set flood": b"](" + b"\x8f" * 900_000 + b"e.",
    "laughs": laugh + b".",
    "copies": (
      name("_codecs", "encode") + b"q\x000" + text("a" * 2**20) + text("latin1") + b"\x86q\x010]("
      + b"h\x00h\x01R" * 20_000 + b"e."
    ),
    "cycle": b"]q\x00h\x00a.",
    "cycle in a dictionary": b"}q\x00" + text("a") + b"h\x00s.",
    "cycle through a tuple": b"]q\x00h\x00\x85a.",
    "cycle in an object": (
      name("argparse", "Namespace") + b")\x81q\x00" + state(me=b"h\x00") + b"b."
    ),
    "cycle in a kind of list": listed + b"q\x00h\x00a.",
    "cycle in a kind of dictionary": (
      name("yacs.config", "CfgNode") + b")\x81q\x00" + text("a") + b"h\x00s."
    ),
    "a list, then a dictionary": listed + b"(Ne" + text("a") + b"Ns.",
    "noted twice": noted + (state(a=b"N") + b"b") * 2 + b".",
    "noted and called": noted + b")R.",
    "noted flood": b"](" + (listed + b"(Ne") * 200_000 + b"e.",
    "tuples": often + b".",
    "tuples as key": b"}" + often + b"Ns.",
    "tuples in a key": b"}" + often + b"\x85Ns.",
    "tuples as reference": often + b"Q.",
    "tuples in a reference": b"(" + text("storage") + often * 4 + b"tQ.",
    "tuples as shape": state(w=name("torch", "Size") + often + b"\x85R") + b".",
    "tuples as name": often * 2 + b"\x93.",
    "tuples noted": name("datetime", "datetime") + often + b"\x85R.",
    "key in a tuple twice": b"}(K\x01\x85NK\x01\x85Nu.",
    "key in a tuple is long": b"}(" + text("a" * 65) + b"\x85Nu.",
    "keys that collide": (
      b"}(" + b"".join(number(i << 36) + b"N" for i in range(1, 250_000)) + b"u."
    ),
    "more after its end": plain()[2:] + b"cos\nsystem\n.",
    "view of nothing begins far": state(w=tensor(offset=9, shape=(), strides=())) + b".",
    "key twice": b"}(" + (text("w") + tensor()) * 2 + b"u.",
    "key twice, once true": b"}(\x88NK\x01Nu.",
    "key is a list": b"}]Ns.",
    "key is a tuple": b"})Ns.",
    "key is long": state(**{"k" * 5000: tensor()}) + b".",
    "key of many bits": b"}" + number(2**90) + b"Ns.",
    "names collide": b"}(" + text("1") + tensor() + number(1) + tensor() + b"u.",
    "storage in a dictionary twice": state(a=tensor(), b=tensor(storage(numel=3))) + b".",
    "storage of two types": state(
      a=tensor(), b=tensor(storage(cls=("torch", "IntStorage")))
    ) + b".",
    "storage is missing": state(w=tensor(storage(key="7"))) + b".",
    "storage elsewhere": state(w=tensor(storage(key="../version"))) + b".",
    "storage on meta": state(w=tensor(storage(where="meta"))) + b".",
    "storage class is none": state(w=tensor(storage(cls=("collections", "OrderedDict")))) + b".",
    "storage is larger": state(w=tensor(storage(numel=2**20), shape=(2**20,))) + b".",
    "storage is negative": state(w=tensor(storage(numel=-4))) + b".",
    "storage is huge": state(w=tensor(storage(numel=2**62), shape=(2**62,))) + b".",
    "reference is short": b"(" + text("storage") + b"tQ.",
    "reference is empty": b")Q.",
    "reference is text": text("storage") + b"Q.",
    "reference to a module": b"(" + text("module") + b"NNNNtQ.",
    "view leaves at its end": state(w=tensor(shape=(5,))) + b".",
    "view leaves by offset": state(w=tensor(offset=1)) + b".",
    "view begins before": state(w=tensor(offset=-1)) + b".",
    "view begins far": state(w=tensor(offset=2**61)) + b".",
    "stride leaves": state(w=tensor(shape=(2, 2), strides=(3, 1))) + b".",
    "stride is negative": state(w=tensor(offset=3, strides=(-1,))) + b".",
    "stride overflows": state(w=tensor(shape=(5,), strides=(2**62 // 4,))) + b".",
    "shape overflows": state(w=tensor(shape=(2**33, 2**33), strides=(0, 0))) + b".",
    "shape is negative": state(w=tensor(shape=(-4,))) + b".",
    "shape is huge but empty": state(w=tensor(shape=(0, 2**61, 2**61), strides=(1, 1, 1))) + b".",
    "more strides": state(w=tensor(strides=(1, 1))) + b".",
    "many dimensions": state(w=tensor(shape=(1,) * 65, strides=(0,) * 65)) + b".",
    "expanded": state(w=tensor(shape=(2**40,), strides=(0,))) + b".",
    "expanded often": state(
      **{str(i): tensor(shape=(2**20,), strides=(0,)) for i in range(99)}
    ) + b".",
    "tensor of nothing": name("torch._utils", "_rebuild_tensor_v2") + b")R.",
    "tensor of text": name("torch._utils", "_rebuild_tensor_v2") + text("a") + b"\x85R.",
    "parameter of text": name("torch._utils", "_rebuild_parameter") + text("a") + b"\x85R.",
    "size of text": name("torch", "Size") + text("a") + b"\x85R.",
    "device of nothing": name("torch", "device") + b")R.",
    "encoding is another": name("_codecs", "encode") + text("a") + text("rot13") + b"\x86R.",
    "encoded too far": name("_codecs", "encode") + text("\u4e00") + text("latin1") + b"\x86R.",
    "array is short": array + b"(K\x01" + numbers((9,)) + kind + b"\x89C\x04abcdtb.",
    "array is none": array + b"Nb.",
    "array twice": array + (b"(K\x01" + numbers((1,)) + kind + b"\x89C\x04abcdtb") * 2 + b".",
    "scalar is short": (
      name("numpy.core.multiarray", "scalar") + kind + b"C\x02ab\x86R."
    ),
    "pairs are three": ORDERED + b"](](K\x01K\x02K\x03ee\x85R.",
  }  # fmt: skip
  return {key: PROTO + value for key, value in values.items()}


@functools.cache
def archives() -> dict[str, bytes]:
  """{name: a zip file whose parts disagree, or that is made to harm}."""
  good = [("archive/data.pkl", plain()), ("archive/data/0", FOUR)]
  pickle, data = (path for path, _ in good)
  whole = stored_zip(good)
  zeros = torch_zip(
    plain(stored=storage(numel=2**25), shape=(2**25,)),
    {"0": bytes(2**27)},
    method=zipfile.ZIP_DEFLATED,
  )

  def said(path, **fields):
    return stored_zip(good, directory={path: fields})

  wide = struct.pack("<HHQQ", 1, 16, 2**62, 2**62)
  end = len(whole) - 22
  far = struct.pack("<4sIQI", b"PK\6\7", 0, 2**63, 1)
  return {
    "bomb": zeros,
    "an entry within another": _within(),
    "overlap": said(data, begin=0, name=pickle.encode()),
    "same bytes twice": stored_zip(
      [*good, ("archive/data/1", FOUR)],
      directory={"archive/data/1": {"begin": 46 + len(plain()), "name": b"archive/data/0"}},
    ),
    "name twice": stored_zip([*good, good[1]]),
    "another name": said(data, name=b"archive/data/1"),
    "name leads out": stored_zip([*good, ("archive/../../etc/passwd", b"")]),
    "name is absolute": stored_zip([*good, ("/etc/passwd", b"")]),
    "name of windows": stored_zip([*good, ("archive/..\\x", b"")]),
    "name with a drive": stored_zip([*good, ("C:x", b"")]),
    "name with an escape": stored_zip([*good, ("archive/\x1b[2J", b"")]),
    "size is larger": said(data, size=2**31),
    "both sizes are larger": said(data, size=2**31, packed=2**31),
    "size is smaller": said(data, size=8, packed=8),
    "begins beyond": said(data, begin=2**31),
    "begins elsewhere": said(data, begin=1),
    "method is unknown": said(data, method=99),
    "deflated, not stored": said(data, method=8),
    "encrypted": said(data, flags=1),
    "on another disk": said(data, disk=3),
    "checksum": said(data, crc=7),
    "zip64 lies": said(data, size=0xFFFFFFFF, packed=0xFFFFFFFF, extra=wide),
    "zip64 is missing": said(data, size=0xFFFFFFFF, packed=0xFFFFFFFF),
    "zip64 is short": said(data, size=0xFFFFFFFF, extra=struct.pack("<HH", 1, 0)),
    "zip64 directory is far": whole[:end] + far + whole[end:],
    "directory is short": whole[: end + 8] + struct.pack("<HH", 1, 1) + whole[end + 12 :],
    "directory is long": whole[: end + 8] + struct.pack("<HH", 9, 9) + whole[end + 12 :],
    "directory is elsewhere": whole[: end + 16] + struct.pack("<I", 7) + whole[end + 20 :],
    "disks": whole[: end + 4] + struct.pack("<H", 1) + whole[end + 6 :],
    "zeros before": bytes(8) + whole,
    "bytes before": b"PK\3\4" + whole,
    "bytes after": whole + b"more",
    "comment is cut": whole[:-2] + b"\xff\x00",
    "tensor data changed": whole.replace(FOUR, FOUR[::-1]),
    "torchscript": torch_zip(plain(), entries={"archive/constants.pkl": b"N."}),
    "torchscript code": torch_zip(plain(), entries={"archive/code/__torch__.py": b""}),
    "two pickles": torch_zip(plain(), entries={"other/data.pkl": b"N."}),
    "stray entry": torch_zip(plain(), entries={"other/file": b"N."}),
    "byte order": stored_zip([*good, ("archive/byteorder", b"middle")]),
    "byte order is long": stored_zip([*good, ("archive/byteorder", b"little" * 99)]),
    "keras": stored_zip([("config.json", b"{}"), ("model.weights.h5", b"")]),
    "documents": stored_zip([("word/document.xml", b"")]),
    "no entries": stored_zip([]),
    "deflate bomb with a lying size": _lying_deflate(),
  }


def _within() -> bytes:
  """An entry whose header and bytes are in another one's bytes; all headers tell the truth."""
  inner = stored_zip([("archive/data/1", FOUR)])
  inner = inner[: inner.index(b"PK\1\2")]
  made = stored_zip([("archive/data.pkl", plain()), ("archive/data/0", inner)])
  entry = stored_zip([("archive/data/1", FOUR)])
  entry = bytearray(entry[entry.index(b"PK\1\2") : -22])
  entry[42:46] = struct.pack("<I", made.index(inner))
  end, table = len(made) - 22, made.index(b"PK\1\2")
  tail = struct.pack("<HHII", 3, 3, end - table + len(entry), table)
  return made[:end] + bytes(entry) + made[end : end + 8] + tail + bytes(2)


def _lying_deflate() -> bytes:
  packer = zlib.compressobj(9, zlib.DEFLATED, -15)
  packed = packer.compress(bytes(2**24)) + packer.flush()
  made = stored_zip([("archive/data.pkl", plain()), ("archive/data/0", packed)])
  sizes = struct.pack("<III", zlib.crc32(FOUR), len(packed), 16)
  old = struct.pack("<III", zlib.crc32(packed), len(packed), len(packed))
  made = made.replace(old, sizes)
  begin = made.index(b"PK\3\4", 4)
  made = made[: begin + 8] + struct.pack("<H", 8) + made[begin + 10 :]
  entry = made.rindex(b"PK\1\2")
  return made[: entry + 10] + struct.pack("<H", 8) + made[entry + 12 :]


def files(canary: str) -> dict[str, bytes]:
  """All of them, as files."""
  found = {}
  for key, (pickle, _) in code(canary).items():
    found[f"zip, {key}"] = torch_zip(pickle)
    found[f"legacy, {key}"] = legacy(pickle)
    found[f"bare, {key}"] = pickle
  for key, pickle in damaged().items():
    found[f"zip, {key}"] = torch_zip(pickle)
    if len(pickle) < budget.MIB:
      found[f"legacy, {key}"] = legacy(pickle)
  return found | {f"archive, {key}": data for key, data in archives().items()}
