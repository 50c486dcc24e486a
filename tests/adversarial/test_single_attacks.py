"""Every attack: inside ball and box, exact on linear networks, the same whoever else is there."""

import jax
import jax.numpy as jnp
import linear
import numpy as np
import pytest

from rkd_jax.adversarial import ball, base, named, pgd
from rkd_jax.errors import UserError
from rkd_jax.training import sharding

EPS = {"linf": 0.03, "l2": 0.08}
NAMES = ("fgsm", "pgd-20", "pgd-5x3", "mim-10", "cw-20", "apgd-ce", "apgd-dlr", "apgd-t", "fab-t")
TWO = linear.network(2)  # of two classes there is one way to go wrong, so one step is enough


@pytest.mark.parametrize("norm", ball.NORMS)
@pytest.mark.parametrize("name", NAMES)
def test_the_result_lies_in_ball_and_box(name, norm):
  apply = linear.network()
  images, labels, keys = linear.examples(apply)
  images = images.at[0].set(0.0).at[1].set(1.0)
  labels = apply(images).argmax(-1)
  changed = named.make(name, norm, EPS[norm])(apply, images, labels, keys)
  assert linear.sizes(changed, images, norm).max() <= EPS[norm] + 1e-6
  assert changed.min() >= 0 and changed.max() <= 1 and np.isfinite(changed).all()
  assert (linear.sizes(changed, images, norm) > 0).any()


@pytest.mark.parametrize("norm", ball.NORMS)
@pytest.mark.parametrize("name", ["fgsm", "pgd-20", "cw-20", "apgd-ce", "fab-t"])
def test_two_classes_fall_exactly_where_their_margin_ends(name, norm):
  images, labels, keys = linear.examples(TWO)
  far = linear.distances(TWO, images, labels, norm)
  eps = float(np.median(far) * 1.02)
  attack = named.make(name, norm, eps)
  right = TWO(attack(TWO, images, labels, keys)).argmax(-1) == labels
  np.testing.assert_array_equal(right, far > eps)


@pytest.mark.parametrize("norm", ball.NORMS)
def test_the_worst_loss_of_a_linear_network_is_reached(norm):
  images, labels, keys = linear.examples(TWO)
  changed = pgd.PGD(eps=EPS[norm], norm=norm, steps=20)(TWO, images, labels, keys)
  weights = TWO.args[0]
  way = np.where(np.asarray(labels)[:, None] == 0, 1, -1) * np.asarray(
    weights[:, 1] - weights[:, 0]
  )
  reach = EPS[norm] * (np.abs(way).sum(1) if norm == "linf" else np.linalg.norm(way, axis=1))
  logits = np.asarray(TWO(images))
  gap = logits[np.arange(24), labels] - logits[np.arange(24), 1 - np.asarray(labels)]
  worst = np.logaddexp(0, -(gap - reach))
  np.testing.assert_allclose(base.cross_entropy(TWO(changed), labels), worst, rtol=0.02)


@pytest.mark.parametrize("name", ["pgd-5", "apgd-ce", "square"])
def test_what_is_found_does_not_depend_on_who_else_is_there(name):
  apply = linear.network()
  images, labels, keys = linear.examples(apply, 12)
  attack = named.make(name, "linf", 0.02)
  whole = attack(apply, images, labels, keys)
  few = attack(apply, images[3:5], labels[3:5], keys[3:5])
  np.testing.assert_allclose(whole[3:5], few, atol=1e-6)


def test_eight_devices_are_one():
  apply = linear.network()
  images, labels, keys = linear.examples(apply)
  attack = named.make("pgd-5", "linf", 0.05)
  one = attack(apply, images, labels, keys)
  mesh = sharding.make_mesh(8)
  spread = jax.device_put(
    (images, labels, keys), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  )
  eight = attack(sharding.replicate(mesh, apply), *spread)
  assert len(eight.sharding.device_set) == 8
  np.testing.assert_allclose(one, eight, atol=1e-6)


def test_of_several_starts_the_one_that_fools_is_kept():
  """A loss with a hill on either side of an image, of which one is across the boundary."""

  def bent(shift, images):
    x = images.mean((1, 2, 3))
    return jnp.stack([jnp.zeros_like(x), shift + 2 * (x - 0.5) + 60 * (x - 0.5) ** 2], -1)

  apply = jax.tree_util.Partial(bent, jnp.float32(-0.9))
  images, labels = jnp.full((16, *linear.SHAPE), 0.5), jnp.zeros(16, int)
  keys = jax.random.split(jax.random.key(0), 16)
  fooled = [
    (
      apply(pgd.PGD(eps=0.12, steps=10, restarts=n)(apply, images, labels, keys)).argmax(-1) == 1
    ).sum()
    for n in (1, 8)
  ]
  assert fooled[0] < 16 and fooled[1] == 16


def test_momentum_by_hand():
  """Two steps of MIM in l_2: g1/|g1|_1, then that plus g2/|g2|_1, each as a direction."""
  apply = linear.network(3)
  images, labels, keys = linear.examples(apply, 4)
  attack = pgd.PGD(eps=0.2, norm="l2", steps=2, momentum=1.0, random_start=False, step_size=0.05)
  x, velocity = images, jnp.zeros_like(images)
  for _ in range(2):
    gradient = jax.grad(lambda x: base.cross_entropy(apply(x), labels).sum())(x)
    velocity = velocity + gradient / jnp.abs(gradient).sum((1, 2, 3), keepdims=True)
    x = x + 0.05 * velocity / jnp.sqrt((velocity**2).sum((1, 2, 3), keepdims=True))
  np.testing.assert_allclose(attack(apply, images, labels, keys), x, atol=1e-5)


def test_passes_are_counted():
  several, one = named.make("pgd-20x5", "linf", 0.1), named.make("fgsm", "linf", 0.1)
  assert (several.forward, several.backward) == (1 + 5 * 21, 5 * 20) and one.backward == 1
  assert named.make("apgd-ce", "linf", 0.1).backward == 101
  assert named.make("square", "linf", 0.1).backward == 0


@pytest.mark.parametrize(
  ("change", "told"),
  [
    ({"images": lambda x: x + 0.9}, "in \\[0, 1\\]"),
    ({"images": lambda x: x.at[0].set(jnp.nan)}, "finite"),
    ({"labels": lambda y: y.at[0].set(5)}, "Labels must lie in \\[0, 5\\)"),
    ({"labels": lambda y: y.at[0].set(-1)}, "Attack labelled images only"),
    ({"apply": lambda f: jax.tree_util.Partial(linear.score, f.args[0] * jnp.inf)}, "not finite"),
  ],
)
def test_what_cannot_be_attacked_is_refused(change, told):
  apply = linear.network()
  images, labels, keys = linear.examples(apply, 4)
  given = {"apply": apply, "images": images, "labels": labels}
  for name, how in change.items():
    given[name] = how(given[name])
  with pytest.raises(UserError, match=told):
    pgd.PGD(eps=0.1)(given["apply"], given["images"], given["labels"], keys)


@pytest.mark.parametrize(
  "wrong", [{"eps": -1.0}, {"eps": float("nan")}, {"norm": "l1"}, {"steps": 0}, {"loss": "dlr"}]
)
def test_wrong_hyper_parameters_are_refused(wrong):
  with pytest.raises(UserError):
    pgd.PGD(**{"eps": 0.1, **wrong})


def test_a_wrong_name_is_answered_by_what_there_is():
  with pytest.raises(UserError, match="pgd-<steps>"):
    named.make("pdg-20", "linf", 0.1)
  assert named.make("pgd-20x5", "l2", 0.1) == pgd.PGD(eps=0.1, norm="l2", steps=20, restarts=5)


def test_projections_by_hand():
  origin = jnp.array([0.05, 0.5, 0.5, 0.5]).reshape(1, 2, 2, 1)
  far = origin + jnp.array([-0.4, 0.3, 0.0, 0.0]).reshape(1, 2, 2, 1)
  found = ball.project(far, origin, 0.1, "linf")
  np.testing.assert_allclose(found.ravel(), [0, 0.6, 0.5, 0.5], atol=1e-6)
  found = ball.project(far, origin, 0.25, "l2")  # .5 long, so halved, then into the box
  np.testing.assert_allclose(found.ravel(), [0, 0.65, 0.5, 0.5], atol=1e-6)


@pytest.mark.parametrize("norm", ball.NORMS)
def test_a_random_start_fills_its_ball(norm):
  images = jnp.full((400, *linear.SHAPE), 0.5)
  keys = jax.random.split(jax.random.key(0), 400)
  away = linear.sizes(ball.random_start(keys, images, 0.2, norm), images, norm)
  assert away.max() <= 0.2 + 1e-6 and away.max() > 0.19
  assert (away.min() < 0.01) == (norm == "l2")


@pytest.mark.slow
def test_on_accelerators_a_second_call_compiles_nothing(monkeypatch):
  """There the steps are a loop, as here after a change of the back end's name."""
  apply = linear.network()
  images, labels, keys = linear.examples(apply, 8)
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  found: list[str] = []

  def listen(event, *_, **__):
    if event == "/jax/core/compile/backend_compile_duration":
      found.append(event)

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    for name in ("pgd-5", "apgd-ce", "fab-t", "square"):
      attack = named.make(name, "linf", 0.02)
      first = attack(apply, images, labels, keys)
      before = len(found)
      np.testing.assert_array_equal(attack(apply, images, labels, keys), first)
      assert len(found) == before > 0, name
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("name", ["fgsm", "pgd-5x2", "apgd-ce", "fab-t", "autoattack"])
def test_gradients_that_are_not_finite_are_no_defence(name):
  """Finite logits, and the slope of a root at 0 in them."""

  def rooted(weights, images):
    return linear.score(weights, images) + jnp.sqrt(0 * images.sum((1, 2, 3)))[:, None]

  apply = jax.tree_util.Partial(rooted, linear.network().args[0])
  images, labels, keys = linear.examples(linear.network(), 8)
  assert np.isfinite(apply(images)).all()
  with pytest.raises(UserError, match="not finite near these images"):
    named.make(name, "linf", 0.02)(apply, images, labels, keys)
