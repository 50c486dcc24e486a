"""APGD beside its description, written again in numpy; its losses by hand."""

import jax
import jax.numpy as jnp
import linear
import numpy as np
import pytest

from rkd_jax.adversarial import apgd, base, pgd
from rkd_jax.errors import UserError


def network(seed=0):
  """A small network with bends."""

  def apply(weights, images):
    a, b = weights
    return jnp.tanh((images.reshape(len(images), -1) - 0.5) @ a) @ b

  keys = jax.random.split(jax.random.key(seed))
  a, b = 3 * jax.random.normal(keys[0], (9, 8)), jax.random.normal(keys[1], (8, 5))
  return jax.tree_util.Partial(apply, (a, b))


def test_ratios_by_hand():
  logits = jnp.array([[5.0, 3.0, 1.0, -1.0, -3.0]])
  one, two = jnp.array([0]), jnp.array([1])
  np.testing.assert_allclose(apgd.difference_of_logits_ratio(logits, one), [-0.5])  # -(5-3)/(5-1)
  np.testing.assert_allclose(apgd.difference_of_logits_ratio(logits, two), [0.5])  # -(3-5)/(5-1)
  np.testing.assert_allclose(apgd.targeted_ratio(logits, one, two), [-2 / 5])  # -(5-3)/(5-0)
  again = apgd.difference_of_logits_ratio(3 * logits + 7, one)
  np.testing.assert_allclose(again, [-0.5], rtol=1e-6)


def test_when_steps_may_be_halved():
  """100 iterations: after 22, then 19, 16, 13, 10, 7 and always 6."""
  at = np.flatnonzero(apgd.plan(100))
  assert at.tolist() == [21, 40, 56, 69, 79, 86, 92, 98]
  assert apgd.plan(100)[at].tolist() == [22, 19, 16, 13, 10, 7, 6, 6]
  assert apgd.plan(3).tolist() == [1, 1, 1]


def described(apply, images, labels, start, eps, steps):
  """Algorithm 1 for one example after another, as the paper says it."""
  slope = jax.jit(jax.value_and_grad(lambda x, y: base.cross_entropy(apply(x[None]), y[None])[0]))

  def seen(x, y):
    value, gradient = slope(jnp.asarray(x), y)
    return float(value), np.asarray(gradient), int(apply(jnp.asarray(x)[None]).argmax()) != int(y)

  answers = []
  for image, y, x in zip(np.asarray(images), labels, np.asarray(start), strict=True):

    def inside(p, image=image):
      return np.clip(np.clip(p, image - eps, image + eps), 0, 1)

    value, gradient, fooled = seen(x, y)
    adversarial, hit = x, fooled
    best, best_gradient, top, old, size = x, gradient, value, x, 2 * eps
    losses, tops, halved, window, since = [], top, True, max(int(0.22 * steps), 1), 0
    for i in range(steps):
      z = inside(x + size * np.sign(gradient))
      share = 0.75 if i else 1.0
      new = inside(x + share * (z - x) + (1 - share) * (x - old))
      old, x = x, new
      value, gradient, fooled = seen(x, y)
      losses.append(value)
      adversarial, hit = (x, True) if fooled else (adversarial, hit)
      if value > top:
        best, best_gradient, top = x, gradient, value
      since += 1
      if since == window:
        before = [0.0, *losses][-window - 1 : -1]
        rises = sum(a > b for a, b in zip(losses[-window:], before, strict=True))
        halve = rises <= 0.75 * window or (not halved and tops >= top)
        if halve:
          size, x, gradient = size / 2, best, best_gradient
        halved, tops, since = halve, top, 0
        window = max(window - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
    answers.append(adversarial if hit else best)
  return np.stack(answers)


def test_it_is_what_the_paper_describes():
  apply, steps, eps = network(), 40, 0.05
  images = linear.examples(apply, 10)[0]
  labels, keys = apply(images).argmax(-1), jax.random.split(jax.random.key(5), 10)
  attack = apgd.APGD(eps=eps, steps=steps)
  own = jax.vmap(jax.random.fold_in, (0, None))(keys, 0)
  start = apgd._begin(attack, (apply, images, labels, labels, own, jnp.float32(eps)))["x"]
  found = attack(apply, images, labels, keys)
  told = described(apply, images, labels, start, eps, steps)
  assert np.mean(np.abs(found - told) < 1e-5) > 0.95  # a sign of a gradient near 0 may turn
  np.testing.assert_allclose(found, told, atol=5e-3)


def test_its_loss_is_at_least_that_of_pgd():
  for seed in range(2):
    apply = network(seed)
    images, labels, keys = linear.examples(apply, 24, seed)
    reached = [
      float(base.cross_entropy(apply(attack(apply, images, labels, keys)), labels).mean())
      for attack in (apgd.APGD(eps=0.1, steps=40), pgd.PGD(eps=0.1, steps=40))
    ]
    # points that fool come before points of a higher loss, so no more than nearly
    assert reached[0] >= 0.97 * reached[1]


def test_losses_need_their_classes():
  apply = linear.network(3)
  images, labels, keys = linear.examples(apply, 4)
  with pytest.raises(UserError, match="needs 4 classes"):
    apgd.APGD(eps=0.1, loss="dlr-t")(apply, images, labels, keys)
  with pytest.raises(UserError, match="choose one of ce, dlr, dlr-t"):
    apgd.APGD(eps=0.1, loss="hinge")
