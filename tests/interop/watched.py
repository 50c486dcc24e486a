"""Reads a folder's files while an audit hook watches; prints which were not refused, and costs."""

import contextlib
import json
import pathlib
import re
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from rkd_jax.interop import RefusedError, read

FORBIDDEN = ("exec", "compile", "import", "pickle.find_class", "marshal.loads", "ctypes.dlopen")
FORBIDDEN += ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect")


def watch(event: str, args: tuple) -> None:
  writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wxa+")
  if event in FORBIDDEN or writes:
    print(f"{event} {args}", file=sys.stderr, flush=True)
    raise SystemExit(3)


def peak() -> float:
  """MiB at most in memory so far; the system's own maximum (ru_maxrss) is inherited."""
  status = pathlib.Path("/proc/self/status").read_text()
  return int(re.findall(r"VmHWM:\s*(\d+)", status)[0]) / 1024


def main(folder: pathlib.Path) -> None:
  with contextlib.suppress(RefusedError):
    read(__file__)  # everything that is imported late is imported now
  unrefused, seconds, before = [], {}, peak()
  paths = sorted(folder.glob("*.pth"))
  sys.addaudithook(watch)
  for path in paths:
    start = time.perf_counter()
    try:
      read(path)
      unrefused.append(path.stem)
    except RefusedError:
      pass
    seconds[path.stem] = time.perf_counter() - start
  print(json.dumps({"unrefused": unrefused, "seconds": seconds, "mib": peak() - before}))


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]))
