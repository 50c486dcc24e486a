"""What networks make of images inside: variances by hand, maps of points that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import small

from rkd_jax.backdoors import badnets
from rkd_jax.evaluation import analysis
from rkd_jax.evaluation.predictions import Questions
from rkd_jax.methods import detox, inversion, kd, supervised

TRIGGER = badnets.Backdoor(target=0, size=2)


def test_variance_is_within_an_image_over_height_width_and_channels():
  images = np.zeros((2, 1, 2, 2), np.float32)
  images[0, 0] = [[1, 3], [5, 7]]  # mean 4, squares of 3, 1, 1, 3: 20 / 4
  images[1] = 100.0  # the images' own levels do not count
  np.testing.assert_allclose(analysis.within(jnp.asarray(images)), [5.0, 0.0])


def test_the_first_images_of_each_class_equally_many():
  labels = np.array([2, 1, 1, 2, 1, 0, 0, 0] * 60)
  goals = np.zeros_like(labels)
  found = analysis.rows(labels, goals)
  assert len(found) == 198 and (np.diff(found) > 0).all()
  assert np.bincount(labels[found]).tolist() == [66, 66, 66]
  assert set(found) >= {0, 1, 2, 3, 4, 5, 6, 7}


def test_of_many_classes_ten_with_the_target():
  labels = np.arange(1000) % 50
  found = analysis.rows(labels, np.full(1000, 37))
  assert np.unique(labels[found]).tolist() == [*range(9), 37]
  assert len(found) == 200  # there are but 20 of each


def test_without_a_trigger_the_first_classes_stand_for_all():
  labels = np.arange(100) % 20
  assert np.unique(labels[analysis.rows(labels, labels)]).tolist() == [*range(10)]


def looked_at(program, trees, who, images, batch=None):
  mesh, index = program.mesh, np.array([0, 2, 3, 5, 9, 11, 12])
  clean, triggered = (Questions(mesh, images, 8, b) for b in (None, TRIGGER))
  if batch:
    analysis.BATCH, old = batch, analysis.BATCH
  found = analysis.network(program, trees, who, clean, triggered, index)
  if batch:
    analysis.BATCH = old
  return found, index


def expected(call, images, index, trigger):
  """(variances [n, S], embeddings) of a network, in numpy."""
  pixels = np.float32(images[index]) / 255
  if trigger:
    pixels[:, -2:, -2:] = 1.0
  outputs, _ = call(jnp.asarray(pixels), train=False)
  spread = [np.asarray(f).reshape(len(f), -1).var(1) for f in outputs.features.values()]
  return np.stack(spread, 1), np.asarray(outputs.embedding)


def test_a_students_variances_and_embeddings():
  toy = small.Small(kd.Method(), small.rows(16))
  state, frozen = toy.begin()
  trees, images = {**frozen, **state.roles}, small.rows(16).image
  assert analysis.role(toy.program) == "student"
  found, index = looked_at(toy.program, trees, "student", images, batch=3)  # a filled last batch
  assert found["stages"].tolist() == ["stage1", "stage2"]
  call, embedded = toy.program.bind(trees)["student"], {}
  for kind in ("clean", "triggered"):
    spread, embedded[kind] = expected(call, images, index, kind == "triggered")
    np.testing.assert_allclose(found[f"{kind}:variance"], spread, rtol=1e-4, atol=1e-6)
  # an isometry as far as two axes go: the map is the best plane, so distances only shrink
  both = np.concatenate([embedded["clean"], embedded["triggered"]])
  flat = np.concatenate([found["clean:map"], found["triggered:map"]])
  gaps = lambda x: np.linalg.norm(x[:, None] - x[None], axis=-1)  # noqa: E731
  assert (gaps(flat) <= gaps(both) + 1e-4).all()
  share = flat.var(0).sum() / both.var(0).sum()
  np.testing.assert_allclose(found["explained"], share, rtol=1e-3)


def test_a_detoxified_teacher_is_the_teacher_with_changed_features():
  toy = small.Small(detox.Method(), small.rows(16))
  state, frozen = toy.play(3)
  trees, images = {**frozen, **state.roles}, small.rows(16).image
  assert analysis.role(toy.program) == "detoxified"
  found, index = looked_at(toy.program, trees, "detoxified", images)
  variables = toy.program.bind(trees)
  spread, _ = expected(toy.method.detoxified(variables), images, index, False)
  np.testing.assert_allclose(found["clean:variance"], spread, rtol=1e-4, atol=1e-6)
  plain, _ = expected(variables["teacher"], images, index, False)
  assert (abs(plain - spread) > 1e-4).any()


def test_whose_inside_a_phase_is_about():
  assert analysis.role(small.Small(supervised.Method(), small.rows(16)).program) == "student"
  assert analysis.role(small.Small(inversion.Method(), small.rows(16)).program) is None


def test_points_of_a_plane_keep_their_distances():
  rng = np.random.default_rng(0)
  flat = rng.normal(size=(12, 2)) * [5, 1]
  axes = np.linalg.qr(rng.normal(size=(6, 2)))[0]
  clean, triggered = np.split(flat @ axes.T + 3.0, 2)
  found = analysis.plane(clean, triggered)
  map_ = np.concatenate([found["clean:map"], found["triggered:map"]])
  np.testing.assert_allclose(
    np.linalg.norm(map_[0] - map_[7]), np.linalg.norm(flat[0] - flat[7]), rtol=1e-4
  )
  np.testing.assert_allclose(found["explained"], 1.0, rtol=1e-5)
  assert map_.dtype == np.float32 and map_[:, 0].std() > map_[:, 1].std()


def test_maps_of_odd_embeddings():
  assert analysis.plane(np.full((3, 4), np.nan), np.zeros((3, 4))) == {}
  still = analysis.plane(np.ones((3, 4)), np.ones((3, 4)))
  assert still["explained"] == 0 and not still["clean:map"].any()
  narrow = analysis.plane(np.array([[0.0], [2.0]]), np.array([[4.0], [6.0]]))
  np.testing.assert_allclose(narrow["clean:map"][:, 0], [-3, -1])
  assert not narrow["clean:map"][:, 1].any()


def test_the_same_arrays_again():
  toy = small.Small(kd.Method(), small.rows(16))
  state, frozen = toy.begin()
  trees = jax.device_get({**frozen, **state.roles})
  one, two = (looked_at(toy.program, trees, "student", small.rows(16).image)[0] for _ in "ab")
  for name in one:
    np.testing.assert_array_equal(one[name], two[name])
