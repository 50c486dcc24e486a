"""ZSKT: what it asks of generator and student, the images that a round's turns share."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from rkd_jax import losses
from rkd_jax.errors import UserError
from rkd_jax.methods import datafree, zskt
from rkd_jax.models.generator import Generator, fresh
from rkd_jax.models.network import Network
from rkd_jax.training import checkpoint

QUICK = zskt.Method(width=2, noise=3, students=2)


def bound(method=QUICK):
  """(a phase's variables as a method sees them, its state)."""
  phase = small.Small(method)
  state, frozen = phase.begin()
  return phase.program.bind({**frozen, **state.roles}), state.memory


@pytest.fixture(scope="module")
def parts():
  return bound()


def test_a_generators_pixels_are_in_the_box_and_begin_as_the_data_are():
  net = Generator((8, 12, 3), 4, (0.2, 0.5, 0.7), (0.1, 0.2, 0.1))
  variables = jax.jit(lambda key: fresh(net, 5)(key, {}, None))(jax.random.key(0))
  apply = jax.jit(net.apply)
  assert set(variables) == {"params"}  # no running statistics
  images = apply(variables, jax.random.normal(jax.random.key(1), (64, 5)))
  assert images.shape == (64, 8, 12, 3) and images.dtype == jnp.float32
  np.testing.assert_allclose(images.mean((0, 1, 2)), (0.2, 0.5, 0.7), atol=0.05)
  np.testing.assert_allclose(images.std((0, 1, 2)), (0.1, 0.2, 0.1), atol=0.05)
  wild = jax.tree.map(lambda leaf: 1e3 * leaf, variables)
  images = apply(wild, jax.random.normal(jax.random.key(1), (64, 5)))
  assert images.min() >= 0 and images.max() <= 1 and jnp.isfinite(images).all()


@pytest.mark.parametrize("shape", [(10, 8, 1), (8, 6, 3), (0, 4, 1)])
def test_a_generator_needs_sides_that_are_multiples_of_four(shape):
  with pytest.raises(UserError, match="must be multiples of 4"):
    Generator(shape)


def test_the_two_readings_of_the_divergence():
  torch = pytest.importorskip("torch")
  draw = np.random.default_rng(0)
  t, s = draw.normal(size=(2, 6, 5)).astype(np.float32)
  kl = torch.nn.functional.kl_div
  log = [torch.log_softmax(torch.tensor(x) / 2, 1) for x in (s, t)]
  whole = kl(*log, reduction="sum", log_target=True)
  for reduction, wanted in (("mean", whole / 30), ("batchmean", 4 * whole / 6)):
    method = zskt.Method(temperature=2.0, reduction=reduction)
    found = method.divergence(jnp.asarray(t), jnp.asarray(s)).mean()
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-5)


def test_a_students_turns_share_images_and_answers(parts):
  variables, memory = parts
  batch, _ = QUICK.batch(jax.random.key(1), variables, memory, {}, 0)
  seen = QUICK.shared("student", variables, memory, batch, (), jax.random.key(2), 0)
  images = variables["generator"](batch["noise"])
  np.testing.assert_array_equal(seen["image"], images)
  answer = variables["teacher"](images, train=False)[0].logits
  np.testing.assert_allclose(seen["answer"], answer, rtol=1e-6)
  assert QUICK.shared("generator", variables, memory, batch, (), jax.random.key(2), 0) is batch


def test_a_generator_seeks_where_student_and_teacher_differ(parts):
  variables, memory = parts
  batch, _ = QUICK.batch(jax.random.key(1), variables, memory, {}, 0)
  terms, aux = QUICK.loss("generator", variables, memory, batch, (), jax.random.key(2), 0)
  images = variables["generator"](batch["noise"])
  answer = variables["teacher"](images, train=False)[0].logits
  said = variables["student"](images, train=True)[0].logits
  assert set(terms) == {"adversarial"} and not aux.batch_stats
  apart = np.asarray(losses.kl_divergence(answer, said)) / 3
  assert (apart > 1e-6).all()
  np.testing.assert_allclose(terms["adversarial"][0], -apart, rtol=1e-4, atol=1e-7)


def test_a_student_that_is_the_teacher_has_nothing_to_learn(parts):
  variables, memory = parts
  variables = variables | {"student": variables["teacher"]}
  batch, _ = QUICK.batch(jax.random.key(1), variables, memory, {}, 0)
  batch = QUICK.shared("student", variables, memory, batch, (), jax.random.key(2), 0)
  # in evaluation mode, as the teacher answers; training would normalise by the batch
  still = Still(variables["teacher"])
  terms, aux = QUICK.loss(
    "student", variables | {"student": still}, memory, batch, (), jax.random.key(3), 0
  )
  for name in ("kl", "attention"):
    np.testing.assert_allclose(terms[name][0], 0, atol=1e-5)
  assert aux.metrics["agreement"].min() == 1


def test_the_attention_term_by_hand(parts):
  """250 times, over the stages, the mean squared gap of the maps: channels' mean square, flattened,
  of length 1."""
  variables, memory = parts
  batch, _ = QUICK.batch(jax.random.key(1), variables, memory, {}, 0)
  batch = QUICK.shared("student", variables, memory, batch, (), jax.random.key(2), 0)
  terms, _ = QUICK.loss("student", variables, memory, batch, (), jax.random.key(3), 0)
  taught = variables["teacher"](batch["image"], train=False)[0].features
  own = variables["student"](batch["image"], train=True)[0].features
  wanted = 0
  for stage in taught:
    maps = [(np.asarray(f[stage]) ** 2).mean(-1).reshape(len(f[stage]), -1) for f in (own, taught)]
    ours, theirs = (m / np.linalg.norm(m, axis=1, keepdims=True) for m in maps)
    wanted += 250 * ((ours - theirs) ** 2).mean(1)
  assert len(taught) > 0 and (wanted > 1e-3).all()
  np.testing.assert_allclose(terms["attention"][0], wanted, rtol=1e-4)


class Still:
  """A network that is always asked in evaluation mode."""

  def __init__(self, network):
    self.network = network

  def __call__(self, images, train, **kwargs):
    return self.network(images, train=False, **kwargs)


def test_the_generators_terms_by_hand():
  logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]))
  mean = np.array([0.3, 0.525, 0.175])
  np.testing.assert_allclose(datafree.imbalance(logits), (mean * np.log(mean)).sum(), rtol=1e-5)


def test_the_gap_of_statistics_is_zero_where_they_are_the_batchs(parts):
  teacher = parts[0]["teacher"]
  images = jax.random.uniform(jax.random.key(0), (4, 8, 8, 1))
  outputs = teacher(images, train=False, capture=True)[0]
  found = {p: (x.mean((0, 1, 2)), x.var((0, 1, 2))) for p, x in outputs.bn.items()}
  # the second norm's input depends on the first's statistics: only the gap's own numbers are asked
  stats = {p: {"mean": m, "var": v} for p, (m, v) in found.items()}
  own = dataclasses.replace(teacher, variables={**teacher.variables, "batch_stats": stats})
  np.testing.assert_allclose(datafree.statistics_gap(own, outputs), 2e-6, atol=1e-6)
  moved = jax.tree.map(lambda leaf: leaf + 3.0, stats)
  far = dataclasses.replace(teacher, variables={**teacher.variables, "batch_stats": moved})
  norms = [np.sqrt(9 * len(m)) for m, _ in found.values()]
  np.testing.assert_allclose(datafree.statistics_gap(far, outputs), 2 * np.mean(norms), rtol=1e-5)


def test_a_killed_phase_ends_with_the_same_bytes(tmp_path):
  small.killed(small.Small(QUICK), tmp_path / "cut", 4)
  whole, resumed = (small.Small(QUICK).train(tmp_path / d) for d in ("whole", "cut"))
  assert checkpoint.digest(resumed) == checkpoint.digest(whole)


@pytest.mark.parametrize(
  ("fields", "said"),
  [
    ({"temperature": 0.0}, "zskt.temperature"),
    ({"reduction": "sum"}, "choose mean or batchmean"),
    ({"students": 0}, "zskt.students"),
    ({"attention": -1.0}, "zskt.attention"),
  ],
)
def test_wrong_fields_are_refused(fields, said):
  with pytest.raises(UserError, match=said):
    zskt.Method(**fields)


def test_networks_that_it_cannot_use_are_refused():
  tiny = small.NETWORKS["teacher"]
  odd = Network(tiny.module, (10, 10, 1), tiny.mean, tiny.std)
  with pytest.raises(UserError, match="multiples of 4"):
    zskt.Method().roles({"teacher": odd, "student": odd})
  with pytest.raises(UserError, match="attention=0"):
    zskt.Method().roles({"teacher": tiny, "student": odd})
  alone = Network(dataclasses.replace(tiny.module, classes=1), (8, 8, 1), tiny.mean, tiny.std)
  with pytest.raises(UserError, match="there is only 1"):
    zskt.Method().roles({"teacher": alone, "student": alone})
