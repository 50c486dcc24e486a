"""Checkpoints put together byte by byte. No pickle is ever made by, or given to, `pickle`."""

import io
import struct
import zipfile

PROTO = b"\x80\x02"
MAGIC = PROTO + b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
VERSION = PROTO + b"M\xe9\x03."


def text(value: str) -> bytes:
  data = value.encode()
  return b"X" + struct.pack("<I", len(data)) + data


def name(module: str, attribute: str) -> bytes:
  return f"c{module}\n{attribute}\n".encode()


def stack_name(module: str, attribute: str) -> bytes:
  return text(module) + text(attribute) + b"\x93"


def number(value: int) -> bytes:
  if -(2**31) <= value < 2**31:
    return b"J" + struct.pack("<i", value)
  data = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
  return b"\x8a" + bytes([len(data)]) + data


def numbers(values) -> bytes:
  return b"(" + b"".join(map(number, values)) + b"t"


def storage(key="0", numel=4, cls=("torch", "FloatStorage"), where="cpu", window=b"") -> bytes:
  parts = [text("storage"), name(*cls), text(key), text(where), number(numel), window]
  return b"(" + b"".join(parts) + b"tQ"


def tensor(stored=None, offset=0, shape=(4,), strides=(1,)) -> bytes:
  """The opcodes of _rebuild_tensor_v2."""
  hooks = name("collections", "OrderedDict") + b")R"
  args = [storage() if stored is None else stored, number(offset), numbers(shape), numbers(strides)]
  return (
    name("torch._utils", "_rebuild_tensor_v2") + b"(" + b"".join(args) + b"\x89" + hooks + b"tR"
  )


def state(**items: bytes) -> bytes:
  """The opcodes of a dictionary, up to its end."""
  return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def plain(**changes) -> bytes:
  """The pickle of {"w": one tensor of four}."""
  return PROTO + state(w=tensor(**changes)) + b"."


FOUR = struct.pack("<4f", 1, 2, 3, 4)


def torch_zip(
  pickle: bytes, storages=None, entries=None, method=zipfile.ZIP_STORED, order="little"
):
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w", method) as archive:
    archive.writestr("archive/data.pkl", pickle)
    archive.writestr("archive/byteorder", order)
    for key, data in ({"0": FOUR} if storages is None else storages).items():
      archive.writestr(f"archive/data/{key}", data)
    archive.writestr("archive/version", "3\n")
    for path, data in (entries or {}).items():
      archive.writestr(path, data)
  return file.getvalue()


def legacy(pickle: bytes, storages=None, width=4, little=True) -> bytes:
  storages = {"0": FOUR} if storages is None else storages
  system = PROTO + state(little_endian=b"\x88" if little else b"\x89") + b"."
  keys = PROTO + b"](" + b"".join(map(text, storages)) + b"e."
  order = "<q" if little else ">q"
  data = b"".join(struct.pack(order, len(d) // width) + d for d in storages.values())
  return MAGIC + VERSION + system + pickle + keys + data


def stored_zip(entries, *, directory=None, comment=b"") -> bytes:
  """A zip file whose directory may say something else than the headers before the entries.

  Args:
    entries: of (name, data).
    directory: {name: {field: value}} that the directory says instead: size, packed, crc, begin,
      method, flags, name.
  """
  import zlib

  body, table = b"", b""
  for path, data in entries:
    crc, begin, raw = zlib.crc32(data), len(body), path.encode()
    body += struct.pack(
      "<4sHHHHHIIIHH", b"PK\3\4", 20, 0, 0, 0, 0, crc, len(data), len(data), len(raw), 0
    )
    body += raw + data
    said = {"crc": crc, "size": len(data), "packed": len(data), "begin": begin, "method": 0}
    said |= {"flags": 0, "name": raw, "extra": b"", "disk": 0} | (directory or {}).get(path, {})
    table += struct.pack(
      "<4sHHHHHHIIIHHHHHII", b"PK\1\2", 20, 20, said["flags"], said["method"], 0, 0, said["crc"],
      said["packed"], said["size"], len(said["name"]), len(said["extra"]), 0, said["disk"], 0, 0,
      said["begin"],
    )  # fmt: skip
    table += said["name"] + said["extra"]
  end = ("<4sHHHHIIH", b"PK\5\6", 0, 0, len(entries), len(entries), len(table), len(body))
  return body + table + struct.pack(*end, len(comment)) + comment
