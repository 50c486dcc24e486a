"""Second opinions, by hand."""

import numpy as np
import pytest

from rkd_jax.audit import second
from rkd_jax.errors import UserError


def variables(kernel):
  return {"params": {"head": {"kernel": np.asarray(kernel, float)}}}


def test_the_last_layers_weights():
  kernel = [[3.0, 0, 0], [4, 0, 1]]  # norms 5, 0, 1
  np.testing.assert_allclose(second.head(variables(kernel)), [3.5 / 2, 0, 0.5 / 2])
  assert second.head({"params": {"classifier": {}}}) is None


def test_one_unit_that_rules_a_class():
  kernel = [[1.0, 0, 0], [0, 1, 0], [0, 0, 9]]
  embedding = np.array([[2.0, 0, 0], [0, 2, 0]])
  logits = embedding @ np.array(kernel)
  # unit 2 is never active: raising it does nothing. Unit 0 to 4: margins 4 and 2, the mean is 3.
  found = second.units(embedding, logits, variables(kernel))
  np.testing.assert_allclose(found, np.array([3, 3, -2]) / 2)
  embedding[1, 2] = 0.5  # to 1: the logit 9, margins 7 and 7
  found = second.units(embedding, logits, variables(kernel))
  assert found.argmax() == 2


def test_strip_sees_an_answer_that_blending_does_not_change():
  def answer(images):
    white = images[:, 0, 0, 0] >= 250
    level = images[:, 1:].mean((1, 2, 3))
    free = np.stack([level, 255 - level, np.full_like(level, 120)], -1) / 60
    return np.where(white[:, None], np.array([[50.0, 0, 0]]), free)

  generator = np.random.default_rng(0)
  clean = generator.integers(0, 90, (40, 4, 4, 1)).astype(np.uint8)
  triggered = clean.copy()
  triggered[:10, 0, 0] = 255
  own, pool = (second.entropies(answer, some, clean, blends=5) for some in (clean, triggered))
  assert pool[:10].max() < 1e-6 < own.min() and own.max() <= np.log(3)
  assert second.low_entropy(pool, own) >= 0.25
  assert second.low_entropy(own, own) == pytest.approx(0.05)
  assert second.low_entropy(own[:0], own) == 0
  with pytest.raises(UserError, match="there are none"):
    second.entropies(answer, clean, clean[:0])
