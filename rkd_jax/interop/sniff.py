"""What a file is, told by its content, and what to say of files that are no checkpoints."""

import re

from rkd_jax.interop.refusals import AGAIN, RESAVE, RefusedError

_UNPACK = "Unpack it first, and name the checkpoint within"
_EXPORT = "In the program that made it, save the weights as safetensors or with numpy.savez"
_PYTORCH = "Ask for the PyTorch or safetensors file that it was made from"
# (how it begins, what it is, what to do), the first that matches.
_BEGINNINGS = (
  (rb"version https://git-lfs", "a Git-LFS pointer, not the file itself", "Run git lfs pull there"),
  (rb"\x1f\x8b", "packed by gzip", "Unpack it first: gunzip"),
  (rb"BZh[1-9]", "packed by bzip2", "Unpack it first: bunzip2"),
  (rb"\xfd7zXZ\0", "packed by xz", "Unpack it first: unxz"),
  (rb"\x28\xb5\x2f\xfd", "packed by Zstandard", "Unpack it first: unzstd"),
  (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
  (rb"Rar!", "a RAR archive", _UNPACK),
  (rb"\x89HDF\r\n", "an HDF5 file, as Keras writes", _EXPORT),
  (rb"....TFL3", "a TensorFlow Lite model", _EXPORT),
  (rb"GGUF|ggml|lmgg", "a GGUF file of a language model", "Ask for its safetensors"),
  (rb"%PDF", "a PDF document", AGAIN),
  (rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF....WEBP", "an image", "Name a checkpoint's file"),
  (rb"\x7fELF|MZ|\xcf\xfa\xed\xfe|\xca\xfe\xba\xbe|#!", "a program", "Do not run it"),
  (rb"MATLAB 5\.0", "a MATLAB file", "Save the weights with scipy.io and numpy.savez"),
  (rb"PK\x05\x06", "a zip file without entries", AGAIN),
  (rb"PK(\x07\x08|00PK)", "one part of a zip file in several", "Join the parts: zip -FF"),
  (rb"\x08\x01\x12", "a TensorFlow SavedModel", _EXPORT),
  (rb"\x08[\x02-\x20][\x12\x1a\x22\x3a\x42]", "an ONNX model", _PYTORCH),
)
_FOREIGN = [(re.compile(how, re.DOTALL), *said) for how, *said in _BEGINNINGS]
_PAGE = re.compile(
  rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|\?xml|!--|body|script|svg)", re.IGNORECASE
)
_ERROR = re.compile(
  rb"\s*(\{|\[)?\s*(\"(error|message|detail)|access denied|not found|404|HTTP/\d)", re.I
)
_LEVELDB = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"  # ends a TensorFlow checkpoint's index


def refuse_foreign(view: memoryview) -> None:
  """Raises `RefusedError` where the content is known, and no checkpoint."""
  head = bytes(view[:4096])
  plain = head[2:].replace(b"\0", b"") if head[:2] in (b"\xff\xfe", b"\xfe\xff") else head  # UTF-16
  if _PAGE.match(plain):
    raise RefusedError(
      "it is a web page, not a checkpoint",
      "Download the file itself (on GitHub: 'raw'; on a drive: after its warning page)",
    )
  for pattern, what, advice in _FOREIGN:
    if pattern.match(head):
      raise RefusedError(f"it is {what}", advice)
  if bytes(view[-8:]) == _LEVELDB:
    raise RefusedError("it is the index of a TensorFlow checkpoint", _EXPORT)
  if _is_tar(head):
    raise _tar(head)


def _is_tar(head: bytes) -> bool:
  """By its checksum: the oldest kind has no other mark."""
  said = re.fullmatch(rb" *([0-7]{1,7})[\0 ]*", head[148:156]) if len(head) >= 512 else None
  if not said:
    return False
  return sum(head[:148]) + 8 * 32 + sum(head[156:512]) == int(said[1], 8)


def _tar(head: bytes) -> RefusedError:
  name = head[:100].rstrip(b"\0").split(b"/")[-1]
  if name in (b"sys_info", b"pickle", b"storages", b"tensors"):
    return RefusedError(
      "it is a tar file of PyTorch before 0.1.10",
      "In a closed-off environment, load it with an old PyTorch and save the state_dict anew",
    )
  return RefusedError("it is a tar archive of files (a .pth.tar is usually none)", _UNPACK)


def unknown(view: memoryview) -> RefusedError:
  """The refusal of what is nothing that is known."""
  head = bytes(view[:512])
  if not any(head):
    return RefusedError("it begins with nothing but zeros, as a download that failed leaves it")
  if _ERROR.match(head):
    return RefusedError("it is a server's message, not a checkpoint")
  if head.isascii() and (head.decode().isprintable() or b"\n" in head):
    return RefusedError("it is a text file, not a checkpoint")
  return RefusedError(
    "its content is none that is known (PyTorch, safetensors, NumPy, Flax msgpack)", RESAVE
  )


def refuse_zip(names: list[str]) -> RefusedError:
  """The refusal of a zip file that is neither PyTorch's nor NumPy's."""
  if "model.weights.h5" in names:
    return RefusedError("it is a Keras model", _EXPORT)
  if any(name.endswith((".mlmodel", "mlpackage/Manifest.json")) for name in names):
    return RefusedError("it is a Core ML model", _PYTORCH)
  return RefusedError("it is a zip file of other things than a checkpoint", _UNPACK)
