"""Why a file is not read, in words that are safe to print."""

import reprlib

from rkd_jax.errors import UserError

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxtuple, _SHORT.maxlist, _SHORT.maxdict = 2, 16, 16, 4

AGAIN = (
  "Download or copy it again, and compare its size and sha256 with what its publisher says of it"
)
RESAVE = (
  "Ask its publisher for the weights alone (torch.save(model.state_dict(), path), or safetensors)"
)
HOSTILE = (
  "Do not open it with torch.load or pickle, which would run this; tell whoever published it"
)


class RefusedError(UserError):
  """A file that is not read. Its text is `cause`. `advice`.

  Attributes:
    cause: what was found, and what was expected.
    advice: what to do instead.
    globals: the names of functions and classes that its pickle had asked for by then.
  """

  def __init__(self, cause: str, advice: str = AGAIN, names: tuple[str, ...] = ()):
    super().__init__(f"{cause}. {advice}.")
    self.cause, self.advice, self.globals = cause, advice, names

  def of(self, path: str) -> "RefusedError":
    """The same, with the file's name in front."""
    return RefusedError(f"{printable(path)}: {self.cause}", self.advice, self.globals)


def printable(path: str) -> str:
  """A name of a file without what would command a terminal; letters of any script stay."""
  return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in path)


def shown(text: object, limit: int = 80) -> str:
  """A stranger's text as printable ASCII: no escape sequence of it reaches a terminal.

  Of containers the beginning: in a few bytes they can hold each other a billion times.
  """
  text = _SHORT.repr(text) if isinstance(text, (tuple, list, dict, set)) else str(text)
  plain = ascii(text[:limit])[1:-1]
  return plain if len(text) <= limit else f"{plain}..."
