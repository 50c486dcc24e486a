"""One export: make the file, hold it against JAX, measure it, write it down."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from rkd_jax.errors import UserError
from rkd_jax.export import check, formats, int8, latency, ledger
from rkd_jax.export.check import Compared
from rkd_jax.export.formats import Made
from rkd_jax.export.subject import Subject
from rkd_jax.finished import Run
from rkd_jax.models import size
from rkd_jax.reporting.files import atomic_write, remove_unfinished, to_json
from rkd_jax.reporting.formats import percent
from rkd_jax.story import save_arrays

FORMATS = ("stablehlo", "onnx", "safetensors", "torch")
BATCHES = (1, 32)  # whose latency is measured
NOISE = 64  # random images that a network is checked on where there is no run
REPORTED = 0.98  # of test images: what a run said of its float32 network must be said again


@dataclasses.dataclass(frozen=True)
class Wanted:
  """What is asked for.

  Attributes:
    form: one of `FORMATS`.
    int8: also that; of "onnx".
    layout: of images, "nchw" or "nhwc"; "": the format's habit.
    names: whose, for weights; see `weights.state_dict`.
    calibration: one of `int8.METHODS`.
    tolerance: of the largest logit, how far float32 may be from JAX.
    least: the share of images on which int8 must agree with JAX.
  """

  form: str
  int8: bool = False
  layout: str = ""
  names: str = ""
  calibration: str = "minmax"
  tolerance: float = check.TOLERANCE
  least: float = check.LEAST

  def __post_init__(self):
    if self.form not in FORMATS:
      raise UserError(f"--format is {self.form!r}; choose one of {', '.join(FORMATS)}.")
    if self.int8 and self.form != "onnx":
      raise UserError("--int8 is of ONNX: say --format onnx as well.")
    if self.layout and self.form not in formats.LAYOUTS:
      raise UserError(f"--layout is of a model's images; {self.form} has weights alone.")
    if self.names and self.form in formats.LAYOUTS:
      raise UserError(f"--names is of PyTorch's weights; {self.form} needs none.")


class Job:
  """Exports one network."""

  def __init__(
    self, subject: Subject, run: Run | None, out: pathlib.Path, say: Callable[[str], None]
  ):
    """Args:
    subject: what is exported.
    run: whose it is; None: nothing is measured but that it answers as JAX does.
    out: the folder of the files.
    say: told a line for each.
    """
    self.subject, self.run, self.out, self.say = subject, run, out, say
    self.seed = subject.seed or 0
    self.here = formats.reference(subject)
    self.questions = run.questions(self.seed) if run else {}
    self.jax_latency: list[dict[str, Any]] = []

  def export(self, wanted: Wanted) -> list[pathlib.Path]:
    """The files that were written.

    Raises:
      UserError: it cannot be made, does not answer as JAX does, or cannot be written. A file that
        was there before is then as it was.
    """
    if wanted.int8 and self.run is None:
      raise UserError("--int8 is calibrated on a run's clean images: name the workdir of a run.")
    remove_unfinished(self.out)
    return [self._finish(made, wanted) for made in self._made(wanted)]

  def _made(self, wanted: Wanted) -> Iterator[Made]:
    layout = wanted.layout or formats.LAYOUTS.get(wanted.form, "")
    if wanted.form == "stablehlo":
      yield formats.hlo(self.subject, layout)
    elif wanted.form == "onnx":
      made = formats.onnx(self.subject, layout)
      yield made
      if wanted.int8 and self.run:
        yield formats.rounded(
          made, self.run.calibration(self.seed, int8.IMAGES), wanted.calibration
        )
    else:
      yield formats.state(self.subject, wanted.form, wanted.names)

  def _finish(self, made: Made, wanted: Wanted) -> pathlib.Path:
    """Checks and measures a file, then writes it."""
    path = self.out / f"{self.subject.name}{made.suffix}"
    compared = self._compared(made)
    exact = made.precision == "f32"
    check.require(f"{path.name}", compared.values(), wanted.tolerance if exact else None, None)
    if not exact:
      check.require(f"{path.name}", [compared["clean"]], None, wanted.least)
    record = self._record(made, path, compared, wanted)
    atomic_write(path, made.data)
    atomic_write(path.with_name(f"{path.name}.json"), to_json(made.about))
    if self.run:
      self._keep(self.run, record, compared)
    self.say(described(record, path))
    return path

  def _compared(self, made: Made) -> dict[str, Compared]:
    """Against JAX, on the run's whole test set with and without the trigger, or on noise."""
    if not self.run:
      images = self._noise()
      return {"clean": check.compare(self.here, made.answer, [images], len(images))}
    count = len(self.run.dataset.test)
    found = {
      how: check.compare(self.here, made.answer, map(np.asarray, asked.batches()), count)
      for how, asked in self.questions.items()
    }
    self._as_reported(found["clean"].here)
    return found

  def _noise(self) -> np.ndarray:
    """Smooth random images: as little like photographs as can be, but no network's blind spot."""
    height, width, channels = self.subject.network.image_shape
    draw = np.random.default_rng(0)
    coarse = draw.random((NOISE, -(-height // 4), -(-width // 4), channels), dtype=np.float32)
    large = coarse.repeat(4, 1).repeat(4, 2)[:, :height, :width]
    return (large + draw.random((NOISE, height, width, channels), dtype=np.float32)) / 2

  def _as_reported(self, said: np.ndarray) -> None:
    """That the arrays are those whose numbers the run reported."""
    name, run = self.subject.answers, self.run
    before = run.reported(self.seed, name) if run and name else None
    if before is None or run is None or run.config.dtype != "float32":
      return
    share = float(np.mean(before.clean == said))
    if share < REPORTED:
      raise UserError(
        f"{self.subject.title} answers {share:.1%} of the test images as the run's predictions "
        "say: it is another network, or computes otherwise here. Nothing was exported."
      )

  def _record(
    self, made: Made, path: pathlib.Path, compared: dict[str, Compared], wanted: Wanted
  ) -> dict[str, Any]:
    subject, exact = self.subject, made.precision == "f32"
    held = {
      how: {
        "images": len(one.here),
        "same": int(np.count_nonzero(one.here == one.there)),
        "max_difference": one.difference,
        "largest_logit": one.largest,
      }
      for how, one in compared.items()
    }
    return {
      "name": path.name,
      "title": subject.title,
      "file": str(path),
      "format": made.about["format"],
      "precision": made.precision,
      "about": dict(made.about),
      "bytes": len(made.data),
      "params": size.params(subject.network),
      "macs": size.macs(subject.network),
      "check": {"on": "test images" if self.run else "noise", **held}
      | ({"tolerance": wanted.tolerance} if exact else {"least": wanted.least}),
      "latency": self._latency(made),
      "processor": latency.processor(),
    }

  def _latency(self, made: Made) -> list[dict[str, Any]]:
    """Of the file's runtime, then of JAX's own; weights alone have none."""
    if made.timed is None:
      return []
    batches = [self._images(count) for count in BATCHES]
    layout = str(made.about["layout"])
    found = [latency.measure(made.timed, formats.turned(images, layout)) for images in batches]
    if not self.jax_latency:
      self.jax_latency = [latency.measure(self.here, images) for images in batches]
    return [{"runtime": made.runtime, **one} for one in found] + [
      {"runtime": "jax", **one} for one in self.jax_latency
    ]

  def _images(self, count: int) -> np.ndarray:
    """float32[count, H, W, C], repeated where there are fewer."""
    if not self.run:
      return np.resize(self._noise(), (count, *self.subject.network.image_shape))
    test = self.run.dataset.test.images
    rows = np.arange(count) % len(test)
    return np.asarray(test[rows], np.float32) / 255

  def _keep(self, run: Run, record: dict[str, Any], compared: dict[str, Compared]) -> None:
    """Predictions, and then the record in the workdir: it is written last."""
    path = pathlib.Path(record["file"])
    truth = run.truth(self.seed)
    arrays = {"labels": truth.labels, "goals": truth.goals}
    for how, one in compared.items():
      arrays |= {f"jax:{how}": one.here, f"export:{how}": one.there}
    saved = run.directory / ledger.FOLDER / f"{path.name}.predictions.npz"
    save_arrays(saved, arrays)
    ledger.add(run.directory, [ledger.filled(run.directory, record, saved, arrays, self._of(run))])

  def _of(self, run: Run) -> dict[str, Any]:
    subject = self.subject
    return {
      "dataset": run.dataset.name,
      "backdoor": run.config.backdoor,
      "network": "student" if subject.method else "teacher",
      "method": subject.method,
      "teacher": subject.teacher,
      "seed": subject.seed,
      "labels": run.config.labels if subject.method else None,
    }


def described(record: dict[str, Any], path: pathlib.Path) -> str:
  """A line for people: what was written there, and how it does beside JAX."""
  clean = record["check"]["clean"]
  parts = [f"{path}: {record['bytes']:,} bytes"]
  parts.append(
    f"agrees with JAX on {clean['same']} of {clean['images']} {record['check']['on']}, logits "
    f"differ by {clean['max_difference']:.2g} at most (the largest: {clean['largest_logit']:.3g})"
  )
  mine, jax = ({c["metric"]: c["value"] for c in record.get(k, ())} for k in ("cells", "jax"))
  parts += [
    f"{name.upper()} {percent(mine[name])} (JAX {percent(jax[name])})"
    for name in ("acc", "asr", "ra")
    if name in jax
  ]
  jax_takes = {x["batch"]: x["p50"] for x in record["latency"] if x["runtime"] == "jax"}
  parts += [
    f"{own['p50']:.3g} ms for {own['batch']} (JAX {jax_takes[own['batch']]:.3g} ms)"
    for own in record["latency"]
    if own["runtime"] != "jax"
  ]
  return ", ".join(parts)
