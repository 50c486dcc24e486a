"""Finished networks under attack: what is asked of whom, and that it can be counted again."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rkd_jax.adversarial import named
from rkd_jax.data import lazy
from rkd_jax.errors import UserError
from rkd_jax.evaluation import adversarial
from rkd_jax.training import sharding

IMAGES = np.random.default_rng(0).integers(60, 200, (7, 2, 2, 1)).astype(np.uint8)


def score(weights, images):
  """Logits [s, -s] of s = w . (x - 1/2), for images [B, 2, 2, 1]."""
  value = ((images - 0.5) * weights.reshape(1, 2, 2, 1)).sum((1, 2, 3))
  return jnp.stack([value, -value], -1)


def network(*weights):
  return jax.tree_util.Partial(score, jnp.array(weights, jnp.float32))


def labels(weights):
  said = np.asarray(score(jnp.array(weights, jnp.float32), jnp.asarray(IMAGES / 255, jnp.float32)))
  return said.argmax(-1).astype(np.int32)


WEIGHTS = (3.0, -2.0, 1.0, 4.0)


def settings(**changes):
  wanted = {"attacks": ("pgd-20",), "norm": "linf", "eps": (0.02, 0.1), "images": 0}
  return adversarial.Settings(**{**wanted, "analysis": False, **changes})


def trial(tmp_path, batch=4, devices=1, **changes):
  mesh = sharding.make_mesh(devices)
  own = settings(**changes)
  return adversarial.Trial(own, mesh, IMAGES, labels(WEIGHTS), 3, batch, tmp_path)


def margin():
  """How far each image is from being another class, in l_inf."""
  logits = score(jnp.array(WEIGHTS), jnp.asarray(IMAGES / 255, jnp.float32))
  return np.abs(np.asarray(logits[:, 0])) / np.abs(WEIGHTS).sum()


def test_a_linear_network_falls_exactly_where_its_margin_ends(tmp_path):
  found, measured = trial(tmp_path)("kd", network(*WEIGHTS), None)
  assert measured == {} and list(found) == ["pgd-20/linf/0.02", "pgd-20/linf/0.1"]
  for eps in (0.02, 0.1):
    right = found[f"pgd-20/linf/{eps:g}"] == labels(WEIGHTS)
    np.testing.assert_array_equal(right, margin() > eps)


def test_batches_and_devices_change_nothing(tmp_path):
  one = trial(tmp_path, batch=7)("kd", network(*WEIGHTS), None)[0]
  for made in (trial(tmp_path, batch=2), trial(tmp_path, batch=8, devices=8)):
    other = made("kd", network(*WEIGHTS), None)[0]
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_some_images_of_every_class(tmp_path):
  whole = trial(tmp_path)
  assert whole.rows.tolist() == list(range(7))
  said = whole("kd", network(*WEIGHTS), None)[0]["pgd-20/linf/0.02"]
  made = trial(tmp_path, images=4)
  found = made("kd", network(*WEIGHTS), None)[0]["pgd-20/linf/0.02"]
  assert np.bincount(labels(WEIGHTS)[made.rows]).tolist() == [2, 2]
  np.testing.assert_array_equal(found, said[made.rows])  # an image's draws are its own


@pytest.mark.parametrize("kept", [np.asarray, lambda images: lazy.Lazy(lazy.Joined([images]))])
def test_of_images_sorted_by_class_every_class_is_attacked(tmp_path, kept):
  """As a folder's are, in memory or on disk."""
  sorted_by_class, many = np.repeat(np.arange(10), 20), np.zeros((200, 2, 2, 1), np.uint8)
  many += np.arange(200, dtype=np.uint8).reshape(-1, 1, 1, 1)
  mesh = sharding.make_mesh(1)
  made = adversarial.Trial(settings(images=30), mesh, kept(many), sorted_by_class, 0, 16, tmp_path)
  assert np.bincount(made.labels).tolist() == [3] * 10
  pixels = np.concatenate([np.asarray(images) for images in made.questions.batches()])[:30, 0, 0, 0]
  np.testing.assert_array_equal(np.round(pixels * 255), made.rows)


def test_what_it_cost_is_kept(tmp_path):
  made = trial(tmp_path)
  made("kd", network(*WEIGHTS), None)
  first = made.records[0]
  assert (first["network"], first["attack"], first["eps"], first["seed"]) == (
    "kd",
    "pgd-20",
    0.02,
    3,
  )
  assert first["backward"] >= 20 * 7 and first["forward"] >= first["backward"]


def test_the_analysis(tmp_path):
  made = trial(tmp_path, analysis=True)
  teacher = made("teacher/poisoned", network(1.0, -2.0, 2.0, 3.0), None)
  found, measured = made("kd", network(*WEIGHTS), "teacher/poisoned")
  assert set(found) - {"pgd-20/linf/0.02", "pgd-20/linf/0.1"} == {
    "pgd-100/linf/0.1", "pgd-20/linf/0.5",
    "transfer-pgd-20/linf/0.02", "transfer-pgd-20/linf/0.1",
  }  # fmt: skip
  assert (found["pgd-20/linf/0.5"] != labels(WEIGHTS)).all()  # nothing withstands a huge ball
  own = (found["pgd-20/linf/0.1"] == labels(WEIGHTS)).sum()
  assert (found["transfer-pgd-20/linf/0.1"] == labels(WEIGHTS)).sum() >= own
  by = {name.split("/")[0]: values for name, values in measured.items()}
  assert set(by) == {
    "adv_loss", "certified_radius", "loss_bound", "alignment_residual", "local_linearity"
  }  # fmt: skip
  assert all(values.shape == (7,) and values.dtype == np.float32 for values in by.values())
  assert (by["adv_loss"] <= by["loss_bound"] * 1.01).all()
  assert "alignment_residual/gradient/linf/0.1" in measured  # at the middle radius, or above
  assert not any("residual" in name or "bound" in name for name in teacher[1])


@pytest.mark.parametrize(
  ("wrong", "told"),
  [
    ({"eps": (1.5,)}, "eps"),
    ({"eps": (0.02, 0.0, 0.1)}, "eps has 0, which changes nothing"),
    ({"attacks": ()}, "attacks no attack"),
    ({"norm": "l3"}, "norm"),
    ({"attacks": ("pdg-20",)}, "pgd"),
    ({"images": -1}, "images"),
  ],
)
def test_what_cannot_be_tried_is_refused_before_any_training(wrong, told):
  with pytest.raises(UserError, match=told):
    settings(**wrong)


def test_names_make_attacks():
  make = functools.partial(named.make, norm="linf", eps=0.1)
  assert make("pgd-20") == make("pgd-20") and hash(make("pgd-20")) == hash(make("pgd-20"))
  assert make("pgd-20") != make("pgd-10")
