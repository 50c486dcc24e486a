"""How much a stranger's file may cost, in one place. Tensors' own bytes are not counted here."""

from rkd_jax.interop.refusals import RESAVE, RefusedError

MIB = 2**20
# Beside tensors: what a pickle builds, names, metadata. A training checkpoint of a large vision
# transformer with its optimiser needs 20 MiB of it.
OBJECTS = 64 * MIB
PICKLE = 64 * MIB  # length of one pickle, without the storages
HEADER = 8 * MIB  # of safetensors, or a JSON index: 80,000 tensors; JSON costs 20 times as much
ENTRIES = 100_000  # of a zip file
DEPTH = 64  # of containers within containers
MARKS = 1_000  # of a pickle machine's open containers
DIGITS = 255  # bytes of a whole number
NAME = 1_024  # characters of one key
DIMENSIONS = 64  # of an array, NumPy's own limit
UNPACKED, RATIO = (
  64 * MIB,
  20,
)  # what deflated entries may unpack to: the larger, RATIO in file sizes
DEFLATE = 1_040  # no deflated stream unpacks to more than 1032 times its size
# Views of one storage share its bytes here, but whoever copies them pays for each.
VIEWED, VIEWS = 64 * MIB, 8


class Budget:
  """Bytes that may still be spent on objects."""

  def __init__(self):
    self._size = self._left = OBJECTS

  def grow(self, pickle: int) -> None:
    """Allows for the texts and bytes that a pickle of this length in the file is made of."""
    self._size += 2 * min(pickle, PICKLE)
    self._left += 2 * min(pickle, PICKLE)

  def spend(self, size: int) -> None:
    """Raises `RefusedError` where the file costs more than it may."""
    self._left -= size
    if self._left < 0:
      raise RefusedError(
        f"what it holds beside tensors takes over {self._size // MIB} MiB, as a memory bomb does",
        RESAVE,
      )
