"""A headless Chromium, driven over its debugging pipe: no port, no driver, no dependency."""

import base64
import contextlib
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import Any

FOUND = (
  shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
MISSING = "no chromium on the PATH (Debian: apt-get install chromium)"
SECONDS = 90  # to wait for an answer: two cores may be busy
FLAGS = "--headless=new --no-sandbox --disable-gpu --hide-scrollbars --disable-dev-shm-usage"
FLAGS += " --no-first-run --disable-background-networking --remote-debugging-pipe"


class Browser:
  """One tab. Keeps what the page says and asks for.

  Attributes:
    said: console messages, exceptions and log entries (a violated CSP is one).
    asked: addresses that the page requested.
  """

  def __init__(self, write: Any, read: Any):
    self._write, self._read, self._buffer = write, read, b""
    self._numbers, self._session = itertools.count(1), None
    self.said: list[str] = []
    self.asked: list[str] = []
    self._events: list[str] = []
    target = self.call("Target.createTarget", url="about:blank")["targetId"]
    attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
    self._session = attached["sessionId"]
    for domain in ("Page", "Runtime", "Log", "Network"):
      self.call(f"{domain}.enable")

  def call(self, method: str, **params: Any) -> dict[str, Any]:
    """Sends a command and waits for its result."""
    number = next(self._numbers)
    message = {"id": number, "method": method, "params": params}
    message |= {"sessionId": self._session} if self._session else {}
    os.write(self._write, json.dumps(message).encode() + b"\0")
    while True:
      answer = self._next()
      if answer.get("id") == number:
        assert "error" not in answer, answer
        return answer["result"]

  def open(self, path: pathlib.Path, width: int, dark: bool = False, height: int = 800) -> None:
    """Loads a file into a window of this width."""
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    self.call("Emulation.setDeviceMetricsOverride", **size)
    self.call("Emulation.setEmulatedMedia", features=[scheme])
    for kept in (self._events, self.said, self.asked):
      kept.clear()
    self.call("Page.navigate", url=path.resolve().as_uri())
    while "Page.loadEventFired" not in self._events:
      self._next()

  def ask(self, expression: str) -> Any:
    """The value of an expression in the page."""
    found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
    assert "exceptionDetails" not in found, found
    return found["result"].get("value")

  def press(self, key: str, code: int) -> None:
    for kind in ("keyDown", "keyUp"):
      self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

  def picture(self, path: pathlib.Path, whole: bool = True) -> None:
    """A PNG of the page, or of the window."""
    data = self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
    path.write_bytes(base64.b64decode(data))

  def paper(self) -> bytes:
    """The page as a PDF on A4."""
    size = {"paperWidth": 8.27, "paperHeight": 11.69, "preferCSSPageSize": True}
    return base64.b64decode(self.call("Page.printToPDF", printBackground=False, **size)["data"])

  def _next(self) -> dict[str, Any]:
    until = time.monotonic() + SECONDS
    while b"\0" not in self._buffer:
      assert time.monotonic() < until, "chromium does not answer"
      data = os.read(self._read, 1 << 20)
      assert data, "chromium has ended"
      self._buffer += data
    line, _, self._buffer = self._buffer.partition(b"\0")
    message = json.loads(line)
    self._note(message.get("method", ""), message.get("params", {}))
    return message

  def _note(self, method: str, params: dict[str, Any]) -> None:
    self._events.append(method)
    if method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
      self.said.append(json.dumps(params))
    if method == "Network.requestWillBeSent":
      self.asked.append(params["request"]["url"])


@contextlib.contextmanager
def started() -> Iterator[Browser]:
  """A browser with a profile of its own; gone afterwards."""
  to_read, write = os.pipe()
  read, to_write = os.pipe()
  with tempfile.TemporaryDirectory() as profile:
    # Chromium reads from 3 and writes to 4; bash can put any descriptor there
    line = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write} 2>/dev/null'
    command = ["bash", "-c", line, str(FOUND), *FLAGS.split(), f"--user-data-dir={profile}"]
    process = subprocess.Popen(command, pass_fds=(to_read, to_write), stdout=subprocess.DEVNULL)
    os.close(to_read)
    os.close(to_write)
    try:
      yield Browser(write, read)
    finally:
      os.close(write)  # its end: chromium leaves when nobody speaks
      os.close(read)
      try:
        process.wait(10)
      except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
      shutil.rmtree(profile, ignore_errors=True)
      os.makedirs(profile, exist_ok=True)  # so that there is something to remove
