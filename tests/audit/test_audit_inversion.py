"""The search for triggers: what it finds, and that neither chunks nor devices change it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rkd_jax.audit import inversion, mmbd
from rkd_jax.audit.inversion import Settings
from rkd_jax.errors import UserError
from rkd_jax.training import sharding

SIDE, K = 6, 5


@dataclasses.dataclass(frozen=True)
class Bright:
  """Five classes by brightness; a white corner sends whatever has one to class `target`."""

  target: int | None = None
  classes: int = K

  def __call__(self, variables, images):
    level = images[:, 2:, 2:].mean((1, 2, 3))
    centres = jnp.linspace(0.1, 0.9, self.classes)
    logits = -((level[:, None] - centres[None]) ** 2) * variables["sharp"]
    if self.target is None:
      return logits
    corner = 60 * images[:, 0, 0, 0] ** 4
    return logits + corner[:, None] * jax.nn.one_hot(self.target, self.classes)[None]


VARIABLES = {"sharp": jnp.float32(60.0)}


def data(count=60, channels=1):
  generator = np.random.default_rng(0)
  labels = np.arange(count) % K
  images = 255 * np.linspace(0.1, 0.9, K)[labels].reshape(-1, 1, 1, 1)
  images = images + generator.normal(size=(count, SIDE, SIDE, channels)) * 8
  images[:, :2] = images[:, :2] * 0.5  # nothing white where the trigger is
  return np.clip(images, 0, 255).astype(np.uint8), labels


def search(apply, kind="patch", devices=1, **changes):
  settings = Settings(**({"steps": 40, "batch": 10} | changes))
  mesh = sharding.make_mesh(devices)
  return inversion.invert(apply, VARIABLES, *data(), 0, settings, kind, mesh)


@pytest.mark.parametrize("kind", inversion.KINDS)
def test_a_planted_backdoor_is_the_smallest_and_works(kind):
  found, clean = search(Bright(3), kind), search(Bright(), kind)
  assert found.sizes.shape == (K,) and found.mask.shape == (K, SIDE, SIDE, 1)
  assert found.sizes.argmin() == 3 and found.rates[3] > 0.7
  assert found.sizes[3] < 0.9 * clean.sizes[3]
  assert (found.sizes > 0).all() and (found.rates >= 0).all() and (found.rates <= 1).all()
  if kind == "patch":
    assert found.mask[3].argmax() == 0  # the corner
    assert found.mask.min() >= 0 and found.pattern.max() <= 1


def test_the_norm_is_that_of_the_shortest_way():
  """Two classes by x_0 + x_1 > 1: nine in ten images below lie within .2 of it, so d = .1, .1."""

  images = np.full((40, 2, 2, 1), 115, np.uint8)
  images[:, 0, :, 0] = np.linspace(102, 127, 40)[:, None].astype(np.uint8)
  labels = np.zeros(40, int)
  labels[:4] = 1  # labels only say whose images are left out
  settings = Settings(steps=60, batch=40)
  for kind, unit in (("linf", 1.0), ("l2", np.sqrt(2))):
    found = inversion.invert(line, VARIABLES, images, labels, 0, settings, kind)
    needed = np.quantile((1 - images[4:, 0].sum((1, 2)) / 255.0) / 2, 0.9) * unit
    assert found.sizes[1] == pytest.approx(needed, rel=0.25)


def line(variables, images):
  z = (images[:, 0, 0, 0] + images[:, 0, 1, 0] - 1) * variables["sharp"]
  return jnp.stack([-z, z], -1)


@pytest.mark.parametrize(
  ("kind", "devices", "at_once"), [("patch", 1, 10), ("patch", 8, 10**4), ("l2", 2, 20)]
)
def test_neither_chunks_nor_devices_change_it(kind, devices, at_once):
  """One class at a time; classes filled up to eight; two of two."""
  whole = search(Bright(3), kind, steps=6)
  other = search(Bright(3), kind, devices, steps=6, at_once=at_once)
  for a, b in zip(whole, other, strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)


def test_the_same_seed_finds_the_same_and_labels_matter():
  images, labels = data()
  settings = Settings(steps=6, batch=10)
  one, same = (inversion.invert(Bright(), VARIABLES, images, labels, 4, settings) for _ in "ab")
  np.testing.assert_array_equal(one.sizes, same.sizes)
  other = inversion.invert(Bright(), VARIABLES, images, labels, 5, settings)
  assert (one.sizes != other.sizes).any()


def test_on_accelerators_a_second_network_compiles_nothing(monkeypatch):
  """There the steps are a loop, as here after a change of the back end's name."""

  def both(sharp):
    variables = {"sharp": jnp.float32(sharp)}
    found = inversion.invert(Bright(3), variables, *data(), 0, Settings(steps=6, batch=10))
    return *found, mmbd.margins(Bright(3), variables, (SIDE, SIDE, 1), K)

  host = both(60.0)
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  compiled: list[str] = []

  def listen(event, *_, **__):
    if event == "/jax/core/compile/backend_compile_duration":
      compiled.append(event)

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    for a, b in zip(host, both(60.0), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)
    before = len(compiled)
    both(50.0)
    assert len(compiled) == before > 0
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)


def test_missing_classes_and_more_classes_than_images():
  images, labels = data(8)
  few = labels < 2
  found = inversion.invert(Bright(), VARIABLES, images[few], labels[few], 0, Settings(3, 4))
  assert found.sizes.shape == (K,) and np.isfinite(found.rates).all()
  with pytest.raises(UserError, match="two classes or more"):
    inversion.invert(Bright(), VARIABLES, images[:1], labels[:1])
  with pytest.raises(UserError, match="two classes or more"):
    inversion.invert(Bright(), VARIABLES, images[:0], labels[:0])
  with pytest.raises(UserError, match="There are: patch, linf, l2"):
    inversion.invert(Bright(), VARIABLES, images, labels, kind="l3")


def test_every_image_is_seen_once_a_pass():
  key = jax.random.key_data(jax.random.key(0))
  rows = np.concatenate([inversion._rows(jnp.int32(i), key, 10, 4) for i in range(5)])
  assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))


def test_settings_out_of_range():
  for wrong in ({"steps": 2}, {"batch": 0}, {"rate": 1.0}):
    with pytest.raises(UserError, match="the audit's"):
      Settings(**wrong)


# Margins.


def test_the_largest_margin_by_hand():
  """z = (x_0, -x_0, 0): the largest margins on [0, 1] are 1 (x_0 = 1), 0 (x_0 = 0) and 0."""
  found = mmbd.margins(corner, VARIABLES, (2, 2, 1), 3, settings=mmbd.Settings(steps=80))
  np.testing.assert_allclose(found, [1, 0, 0], atol=0.02)
  eight = mmbd.margins(corner, VARIABLES, (2, 2, 1), 3, 0, mmbd.Settings(80), sharding.make_mesh(8))
  one = mmbd.margins(corner, VARIABLES, (2, 2, 1), 3, 0, mmbd.Settings(80), sharding.make_mesh(1))
  np.testing.assert_allclose(eight, one, atol=1e-6)


def corner(variables, images):
  x = images[:, 0, 0, 0]
  return jnp.stack([x, -x, jnp.zeros_like(x)], -1)


def test_a_backdoor_raises_its_margin():
  found = mmbd.margins(Bright(3), VARIABLES, (SIDE, SIDE, 1), K)
  assert found.argmax() == 3


def test_the_papers_p_value():
  margins = np.array([4.0, 5, 6, 5, 4.5, 5.5, 5.2, 4.8, 5.1])
  usual, odd = (mmbd.nominal(np.append(margins, last)) for last in (5.6, 30.0))
  assert usual is not None and odd is not None and odd < 1e-6 < 0.05 < usual <= 1
  assert mmbd.nominal(np.array([1.0, 2, 3])) is None
  assert mmbd.nominal(np.array([-1.0, 2, 3, 4])) is None
  assert mmbd.nominal(np.ones(6)) is None
