"""A run on a folder of images: the same network whether they lie in memory or are streamed."""

import json
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from test_run import config

from rkd_jax import experiment
from rkd_jax.data.lazy import Lazy
from rkd_jax.training import checkpoint

pytestmark = pytest.mark.slow
SOME = {"methods": ("none", "kd"), "clean_teacher_seeds": 0, "all_labels_control": False}
SIZE = 240


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """Digits as PNG files: <class>/<file>, and a folder of some without classes."""
  folder = tmp_path_factory.mktemp("images")
  grey, labels = load_digits(return_X_y=True)
  for number in range(SIZE + 60):
    where = folder / ("more" if number >= SIZE else f"own/{labels[number]}")
    where.mkdir(parents=True, exist_ok=True)
    pixels = np.round(grey[number].reshape(8, 8) * 255 / 16).astype(np.uint8)
    Image.fromarray(pixels.repeat(2, 0).repeat(2, 1)).save(where / f"{number}.png")
  return folder


def run(root, workdir, **changes) -> tuple[dict, dict[str, pathlib.Path]]:
  data = {"data.name": f"folder:{root}/own", "data.unlabelled": str(root / "more")}
  data |= {"data.test": 0.2, "data.holdout": 0.1}
  made = config(**SOME | data | {"data.train": 0.0, "labels": 0.3} | changes)
  experiment.run(made, workdir / "run", "folder", quiet=True)
  document = json.loads((workdir / "run" / "results.json").read_text())
  done = [*workdir.glob("run/phases/*/*/done.json"), *workdir.glob("teachers/*/done.json")]
  return document, {json.loads(p.read_text())["phase"]["name"]: p.parent for p in done}


def weights(phase: pathlib.Path):
  return checkpoint.load_tree(phase / "final")["roles"]


def test_from_memory_as_from_the_stream(root, tmp_path):
  here, kept = run(root, tmp_path / "a")
  there, streamed = run(root, tmp_path / "b", **{"data.memory_mib": 0})
  assert kept.keys() == streamed.keys() and {"student", "alone-labelled"} <= kept.keys()
  for name in kept:
    close(weights(streamed[name]), weights(kept[name]))
  assert here["run"]["data"]["sizes"] == there["run"]["data"]["sizes"]
  assert here["run"]["data"]["sizes"]["unlabelled"] == 60 and not here["run"]["data"]["skipped"]
  values = [[c["value"] for c in d["cells"] if c["metric"] == "acc"] for d in (here, there)]
  assert values[0] == values[1]


def close(a, b):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def test_random_crops_are_made_on_the_host_and_are_the_same_again(root, tmp_path):
  made = {"student.augment.resized_crop": 0.5}
  first, phases = run(root, tmp_path / "a", **made)
  _, again = run(root, tmp_path / "b", **made | {"data.memory_mib": 0})
  close(weights(phases["student"]), weights(again["student"]))
  plain, other = run(root, tmp_path / "c")
  same = jax.tree.map(np.array_equal, weights(phases["student"]), weights(other["student"]))
  assert not all(jax.tree.leaves(same)) and first["cells"] != plain["cells"]


def test_what_does_not_fit_is_not_read_at_once(root):
  sizes = {"data.test": 0.2, "data.holdout": 0.1, "data.train": 0.0}
  made = config(**SOME | sizes | {"data.name": f"folder:{root}/own"})
  made.unlock()
  made.data.memory_mib = 0
  dataset = experiment.load(made, experiment.Reporter(True))
  assert isinstance(dataset.train.images, Lazy) and dataset.train.images.shape[1:] == (16, 16, 1)


def test_broken_images_are_refused_or_left_out_and_said(root, tmp_path, capsys):
  broken = root / "own" / "3" / "broken.png"
  broken.write_bytes(b"not an image")
  try:
    with pytest.raises(experiment.sources.UserError, match=r"broken\.png"):
      run(root, tmp_path / "a")
    document, _ = run(root, tmp_path / "b", **{"data.skip_corrupt": True})
  finally:
    broken.unlink()
  (skipped,) = document["run"]["data"]["skipped"]
  assert "broken.png" in skipped and "Left out:" in capsys.readouterr().err
