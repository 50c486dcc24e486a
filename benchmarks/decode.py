"""Which library decodes JPEGs: Pillow, as `data/decode.py` calls it, against OpenCV.

  python ../shared/data/prepare.py --data_dir DIR imagenet_samples
  python benchmarks/decode.py --images DIR/imagenet_samples

Times whole images, and the middle resized to 224 x 224, in one thread and in two; the images are in
memory as bytes. "opencv" decodes with OpenCV and resizes with Pillow, so that the pixels are the
same; "opencv area" resizes with OpenCV's one filter that does not alias, to other pixels.
Contestants take turns within each round; rates are medians over the rounds in which other processes
took no more than a tenth of the processors (over all if there was none), and ratios are of the same
round. The processor's time for each image hardly depends on neighbours. Compares the pixels, and
counts how many truncated images each library takes for whole ones. Asserts nothing about time.
Writes `<out>/<device>/decode.json`. Needs opencv-python-headless beside rkd_jax.
"""

import argparse
import concurrent.futures
import contextlib
import functools
import pathlib
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import cv2  # pyright: ignore[reportMissingImports]
import measure
import numpy as np
from PIL import Image, features
from rich.console import Console
from rich.table import Table

from rkd_jax.data import decode
from rkd_jax.errors import UserError
from rkd_jax.reporting.files import write_json

SIZE = 224
THREADS = (1, 2)
Decode = Callable[[bytes], np.ndarray]


def pillow(data: bytes, size: int) -> np.ndarray:
  return decode.decode(data, "an image", size)


def opencv(data: bytes, size: int) -> np.ndarray:
  """The same pixels: RGB, turned by EXIF."""
  pixels = read(data)
  if not size:
    return pixels
  side, (height, width) = min(pixels.shape[:2]), pixels.shape[:2]
  left, top = (width - side) / 2, (height - side) / 2
  image = Image.fromarray(pixels)
  box = (left, top, left + side, top + side)
  return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))


def opencv_area(data: bytes, size: int) -> np.ndarray:
  pixels = read(data)
  side = min(pixels.shape[:2])
  top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
  middle = pixels[top : top + side, left : left + side]
  return cv2.resize(middle, (size, size), interpolation=cv2.INTER_AREA)


def read(data: bytes) -> np.ndarray:
  pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
  if pixels is None:
    raise ValueError("OpenCV cannot decode it.")
  return pixels


def arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--images", type=pathlib.Path, required=True, help="folder of JPEGs")
  parser.add_argument("--rounds", type=int, default=15)
  parser.add_argument("--patience", type=float, default=2.0, help="seconds spent on finding quiet")
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results/bench"))
  return parser.parse_args()


def main() -> None:
  options = arguments()
  files = [f for f in sorted(options.images.rglob("*")) if f.suffix.lower() in (".jpg", ".jpeg")]
  images = [file.read_bytes() for file in files]
  cv2.setNumThreads(1)  # threads are counted here
  report: dict[str, Any] = {"schema": 1, **measure.context(), "libraries": libraries()}
  report["settings"] = {"rounds": options.rounds, "patience": options.patience, "size": SIZE}
  report["images"] = {"count": len(images), "bytes": sum(map(len, images))}
  report["cells"] = [cell(images, size, options) for size in (0, SIZE)]
  report["truncated_taken_for_whole"] = {f.__name__: taken(images, f) for f in (pillow, opencv)}
  path = options.out / measure.slug() / "decode.json"
  write_json(path, report | {"load_after": measure.load()})
  show(report)
  Console().print(f"Written to {path}", highlight=False)


def libraries() -> dict[str, Any]:
  found = [
    line.split(":", 1)[1] for line in cv2.getBuildInformation().split("\n") if " JPEG:" in line
  ]
  return {
    "pillow": metadata.version("pillow"),
    "pillow_jpeg": f"libjpeg-turbo {features.version('libjpeg_turbo')}",
    "opencv": cv2.__version__,
    "opencv_jpeg": found[0].strip() if found else None,
  }


def cell(images: list[bytes], size: int, options: argparse.Namespace) -> dict[str, Any]:
  """What both do with a size (0: none): rates, their ratios, and how far their pixels differ."""
  all_of_them = (pillow, opencv, opencv_area) if size else (pillow, opencv)
  known: dict[str, Decode] = {
    f.__name__.replace("_", " "): functools.partial(f, size=size) for f in all_of_them
  }
  spent: dict[str, list[float]] = {}
  runs = {
    f"{name} {threads}": functools.partial(
      run, one, images, threads, spent.setdefault(f"{name} {threads}", [])
    )
    for name, one in known.items()
    for threads in THREADS
  }
  for warm_up in runs.values():
    warm_up(1)
  steps = dict.fromkeys(runs, 1)
  timed = measure.interleave(runs, steps, options.rounds, len(images), options.patience)
  ratios = {
    f"opencv_over_pillow_{n}": measure.ratio(timed, f"opencv {n}", f"pillow {n}") for n in THREADS
  }
  cpu = {name: statistics.median(times) for name, times in spent.items()}
  apart = {name: difference(images, known["pillow"], one) for name, one in known.items()}
  del apart["pillow"]
  return {
    "size": size,
    "timed": timed,
    "ratios": ratios,
    "cpu_ms_per_image": cpu,
    "difference_to_pillow": apart,
  }


def run(one: Decode, images: list[bytes], threads: int, spent: list[float], passes: int) -> float:
  """Seconds for so many passes over the images; notes the processor's milliseconds for each."""
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    began, used = time.perf_counter(), time.process_time()
    for _ in range(passes):
      for _ in pool.map(one, images):
        pass
    spent.append(1000 * (time.process_time() - used) / (passes * len(images)))
    return time.perf_counter() - began


def taken(images: list[bytes], one: Callable[[bytes, int], np.ndarray]) -> int:
  """How many images of which the last third is missing are decoded without a word."""
  found = 0
  for data in images:
    with contextlib.suppress(UserError, ValueError):
      one(data[: len(data) * 2 // 3], 0)
      found += 1
  return found


def difference(images: list[bytes], one: Decode, other: Decode) -> dict[str, float]:
  """Grey levels between the two: the largest, and the mean over all pixels."""
  largest, total, count = 0, 0, 0
  for data in images:
    apart = np.abs(one(data).astype(np.int16) - other(data))
    largest, total, count = (
      max(largest, int(apart.max())),
      total + int(apart.sum()),
      count + apart.size,
    )
  return {"max": largest, "mean": total / count}


def show(report: dict[str, Any]) -> None:
  about = report["device"]
  table = Table(title=f"{about['kind']}, {about['cores']} cores", title_justify="left")
  for name in ("what", "library and threads"):
    table.add_column(name)
  for name in ("images/s", "slowest", "fastest", "quiet rounds", "cpu ms"):
    table.add_column(name, justify="right")
  for found in report["cells"]:
    for name, timed in found["timed"].items():
      rates = [sample["images_per_second"] for sample in timed["rounds"]]
      table.add_row(
        f"to {found['size']}" if found["size"] else "whole", name,
        f"{timed['images_per_second']:,.0f}", f"{min(rates):,.0f}", f"{max(rates):,.0f}",
        f"{timed['quiet_rounds']}/{len(rates)}", f"{found['cpu_ms_per_image'][name]:.2f}",
      )  # fmt: skip
  Console(width=100).print(table)
  for found in report["cells"]:
    ratios = {name: round(ratio["median"], 3) for name, ratio in found["ratios"].items()}
    Console().print(found["size"], ratios, found["difference_to_pillow"], highlight=False)
  Console().print("truncated, taken for whole:", report["truncated_taken_for_whole"])


if __name__ == "__main__":
  main()
