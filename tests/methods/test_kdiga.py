"""KDIGA: double backward against finite differences and PyTorch, and what each option does."""

import dataclasses
import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import NETWORKS, Small, close, rows
from toys import tiny

from rkd_jax import losses
from rkd_jax.errors import UserError
from rkd_jax.methods import base, kd, kdiga

KEY = jax.random.key(0)
STUDENT, TEACHER = (
  base.Bound(tiny.network(), tiny.network().init(jax.random.key(k))) for k in (1, 2)
)
BATCH = {
  "image": jax.random.uniform(jax.random.key(3), (6, 8, 8, 1)),
  "label": jnp.array([0, 1, 2, -1, 1, -1]),
  "index": jnp.arange(6),
}


@functools.partial(jax.jit, static_argnames=("method", "step"))
def terms(method, batch=BATCH, student=STUDENT, teacher=TEACHER, step=0):
  """(the loss terms, Aux, targets) of one round."""
  variables = {"student": student, "teacher": teacher}
  batch, _ = method.batch(KEY, variables, (), batch, jnp.int32(step))
  targets = method.targets({"teacher": teacher}, batch, KEY)
  found, aux = method.loss("student", variables, (), batch, targets, KEY, jnp.int32(step))
  return found, aux, targets


def total(method, **how):
  found = terms(method, **how)[0]
  return sum((v * w).sum() / jnp.maximum(w.sum(), 1) for v, w in found.values())


@jax.jit
def own_slope(network, image, label):
  """d CE / d image of one example alone, on running statistics."""

  def loss(x):
    return losses.cross_entropy(network(x[None], train=False)[0].logits, jnp.array([label]))[0]

  return jax.grad(loss)(image)


def test_the_teachers_gradient_is_each_examples_own():
  slope = terms(kdiga.Method())[2]["slope"]
  answer = TEACHER(BATCH["image"], train=False)[0].logits
  labels = jnp.where(BATCH["label"] < 0, answer.argmax(-1), BATCH["label"])
  for i, label in enumerate(labels):
    close(slope[i], own_slope(TEACHER, BATCH["image"][i], label), atol=1e-7)


def test_exactly_its_own_gradient_on_running_statistics():
  """What the others in the batch are changes nothing, nor how many they are."""
  method = kdiga.Method(align_bn="eval")
  whole, _, targets = terms(method)
  few, _, _ = terms(method, batch=jax.tree.map(lambda x: x[:2], BATCH))
  close(whole["align"][0][:2], few["align"][0])
  answer = targets["answer"].argmax(-1)
  labels = jnp.where(BATCH["label"] < 0, answer, BATCH["label"])
  gaps = [
    jnp.linalg.norm((own_slope(STUDENT, x, y) - own_slope(TEACHER, x, y)).ravel())
    for x, y in zip(BATCH["image"], labels, strict=True)
  ]
  np.testing.assert_allclose(whole["align"][0], jnp.stack(gaps), rtol=1e-4)


def test_normalised_by_the_batch_an_example_moves_its_neighbours():
  whole = terms(kdiga.Method())[0]["align"][0][:2]
  few = terms(kdiga.Method(), batch=jax.tree.map(lambda x: x[:2], BATCH))[0]["align"][0]
  assert not np.allclose(whole, few, rtol=1e-3)


@pytest.mark.parametrize("norm", kdiga.NORMS)
def test_gaps_by_hand_and_gradients_that_stay_finite(norm):
  a = jnp.array([3.0, 0, 0, 4]).reshape(1, 2, 2, 1)
  b = jnp.array([0.0, 0, 0, 4]).reshape(1, 2, 2, 1)
  wanted = {"l2": 3, "squared": 9, "l1": 3, "cosine": 1 - 0.8}[norm]
  np.testing.assert_allclose(kdiga.gap(a, b, norm), [wanted], rtol=1e-5)
  for x, y in ((a, a), (a, 0 * a), (0 * a, 0 * a)):
    found = jax.grad(lambda x, y=y: kdiga.gap(x, y, norm).sum())(x)
    assert np.isfinite(found).all()
  np.testing.assert_allclose(kdiga.gap(a, a, norm), 0, atol=2e-6)


def test_equal_networks_have_nothing_to_align():
  found, _, _ = terms(kdiga.Method(align_bn="eval"), student=TEACHER)
  np.testing.assert_allclose(found["align"][0], 0, atol=2e-5)
  grads = jax.grad(lambda p: total(kdiga.Method(align_bn="eval"), student=TEACHER.with_params(p)))(
    TEACHER.params
  )
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_without_weight_it_is_distillation_and_computes_no_gradient():
  found, _, targets = terms(kdiga.Method(weight=0.0, ce=0.1, kl=0.9))
  plain = kd.Method(alpha=0.9)
  other, _ = plain.loss(
    "student", {"student": STUDENT}, (), BATCH,
    plain.targets({"teacher": TEACHER}, BATCH, KEY), KEY, jnp.int32(0),
  )  # fmt: skip
  assert set(found) == {"ce", "kl"} and set(targets) == {"answer"}
  for name in found:
    close(found[name][0], other[name][0], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found[name][1], other[name][1])


def flops(method):
  def step(params, batch):
    return jax.grad(lambda p: total(method, batch=batch, student=STUDENT.with_params(p)))(params)

  cost = jax.jit(step).lower(STUDENT.params, BATCH).compile().cost_analysis()
  return cost["flops"]


def test_it_costs_at_most_about_twice_as_much_as_distillation():
  """6F + 2T over 3F + T, and the gradient in the first layer's input, which else nobody needs."""
  ratio = flops(kdiga.Method()) / flops(kdiga.Method(weight=0.0))
  assert 1.5 < ratio < 2.6


def test_a_skipped_round_aligns_nothing_and_the_next_does():
  method = kdiga.Method(every=2)
  on, off = terms(method, step=2)[0], terms(method, step=3)[0]
  assert on["align"][1].all() and not off["align"][1].any()
  close(on["align"][0], terms(kdiga.Method())[0]["align"][0], rtol=1e-5)
  close(off["kl"][0], terms(kdiga.Method())[0]["kl"][0], rtol=1e-5)


def test_on_accelerators_a_skipped_round_takes_no_gradient(monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  for method in (kdiga.Method(every=2), kdiga.Method(every=2, align_at="adv", steps=1)):
    given = {"student": STUDENT, "teacher": TEACHER}
    batch, _ = method.batch(KEY, given, (), BATCH, jnp.int32(3))
    assert not method.targets({"teacher": TEACHER}, batch, KEY)["slope"].any()
    if "adversarial" in batch:
      close(batch["adversarial"], BATCH["image"])
    batch, _ = method.batch(KEY, given, (), BATCH, jnp.int32(4))
    assert method.targets({"teacher": TEACHER}, batch, KEY)["slope"].any()


def test_under_mixup_the_gradient_is_of_the_mixed_loss():
  mixed = {"mix_label": jnp.array([1, 1, 0, 0, 2, 1]), "mix_weight": jnp.full(6, 0.7)}
  labels = {"label": jnp.array([0, 1, 2, 0, 1, 2])}
  slope = terms(kdiga.Method(), batch={**BATCH, **labels, **mixed})[2]["slope"]
  one, two = (own_slope(TEACHER, BATCH["image"][0], y) for y in (0, 1))
  close(slope[0], 0.7 * one + 0.3 * two, rtol=1e-4, atol=1e-7)


def test_some_of_the_batch_only():
  method = kdiga.Method(align_batch=2, align_bn="eval")
  value, weight = terms(method)[0]["align"]
  assert weight.tolist() == [1, 1, 0, 0, 0, 0] and not value[2:].any()
  close(value[:2], terms(kdiga.Method(align_bn="eval"))[0]["align"][0][:2], rtol=1e-5)


def test_without_labels_the_teachers_class_stands_everywhere():
  found, _, targets = terms(kdiga.Method(label_free=True))
  answered = {**BATCH, "label": targets["answer"].argmax(-1)}
  other, _, _ = terms(kdiga.Method(), batch=answered)
  for name in found:
    close(found[name][0], other[name][0], rtol=1e-4, atol=1e-5)


def test_an_adversary_is_looked_for_only_where_it_is_used():
  variables = {"student": STUDENT, "teacher": TEACHER}
  for method in (kdiga.Method(), kdiga.Method(kl_at="adv", kl=0.0)):
    assert set(method.batch(KEY, variables, (), BATCH, jnp.int32(0))[0]) == set(BATCH)
  method = kdiga.Method(kl_at="adv", eps=0.1, steps=3)
  batch, _ = method.batch(KEY, variables, (), BATCH, jnp.int32(0))
  moved = batch["adversarial"] - BATCH["image"]
  assert 0.05 < jnp.abs(moved).max() <= 0.1 + 1e-6
  answer = TEACHER(BATCH["image"], train=False)[0].logits

  def apart(images):
    return losses.kl_divergence(answer, STUDENT(images, train=False)[0].logits).sum()

  assert apart(batch["adversarial"]) > apart(BATCH["image"])


def test_both_gradients_are_taken_at_the_adversary():
  method = kdiga.Method(align_at="adv", align_bn="eval", eps=0.1, steps=2)
  variables = {"student": STUDENT, "teacher": TEACHER}
  batch, _ = method.batch(KEY, variables, (), BATCH, jnp.int32(0))
  targets = method.targets({"teacher": TEACHER}, batch, KEY)
  answer = targets["answer"]
  close(answer, TEACHER(BATCH["image"], train=False)[0].logits, rtol=1e-5)
  labels = jnp.where(BATCH["label"] < 0, answer.argmax(-1), BATCH["label"])
  close(targets["slope"][0], own_slope(TEACHER, batch["adversarial"][0], labels[0]), atol=1e-6)
  found, _ = method.loss("student", variables, (), batch, targets, KEY, jnp.int32(0))
  a = own_slope(STUDENT, batch["adversarial"][1], labels[1])
  gap = jnp.linalg.norm((a - targets["slope"][1]).ravel())
  np.testing.assert_allclose(found["align"][0][1], gap, rtol=1e-3)


@pytest.mark.parametrize(
  "wrong",
  [
    {"gradient_norm": "l3"}, {"kl_at": "there"}, {"align_bn": "both"}, {"weight": -1.0},
    {"every": 0}, {"ce": 0.0, "kl": 0.0, "weight": 0.0}, {"eps": 2.0}, {"norm": "l7"},
  ],
)  # fmt: skip
def test_wrong_fields_are_refused(wrong):
  with pytest.raises(UserError):
    kdiga.Method(**wrong)


def test_targets_may_be_cached_where_nothing_moves():
  assert kdiga.Method().cacheable and not kdiga.Method(kl_at="adv").cacheable
  assert not kdiga.Method(every=2).cacheable
  one = Small(kdiga.Method(weight=1.0), rows(16, unlabelled=4)).play(3)[0]
  small = Small(kdiga.Method(weight=1.0), rows(16, unlabelled=4), cached=True)
  assert small.begin() and "targets" in small.stream.source(0)
  close(one.roles, small.play(3)[0].roles, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"align_at": "adv", "kl_at": "adv", "steps": 2}])
def test_eight_devices_are_one(options):
  method = kdiga.Method(weight=1.0, **options)
  one, eight = (Small(method, rows(16), devices=n).play(2)[0].roles for n in (1, 8))
  close(one, eight, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_every_architecture_has_second_derivatives():
  from rkd_jax.models import resnet, vit
  from rkd_jax.models.network import Network

  small = (
    resnet.Model(depth=8, classes=3),
    vit.Model(width=16, depth=2, patch=4, heads=2, classes=3),
  )
  for module in small:
    network = Network(module, (8, 8, 1), (0.5,), (0.25,))
    student = base.Bound(network, network.init(KEY))
    value = terms(kdiga.Method(), student=student)[0]["align"][0]
    assert np.isfinite(value).all() and (value > 0).all()


def test_the_double_backward_is_that_of_finite_differences():
  """In float64, on a smooth network, in a process of its own."""
  code = """
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_enable_x64", True)
from rkd_jax import losses
from rkd_jax.methods import kdiga
key = jax.random.key(0)
w1, w2 = jax.random.normal(key, (12, 5), jnp.float64), jax.random.normal(key, (5, 3), jnp.float64)
x = jax.random.uniform(jax.random.key(1), (4, 2, 2, 3), jnp.float64)
y, wanted = jnp.array([0, 1, 2, 0]), jax.random.normal(jax.random.key(2), x.shape, jnp.float64)
def align(w1):
  apply = lambda x: jnp.tanh(x.reshape(len(x), -1) @ w1) @ w2
  own = kdiga.slopes(apply, x, lambda z: losses.cross_entropy(z, y))[0]
  return jnp.sqrt(jnp.square(own - wanted).sum((1, 2, 3)) + 1e-12).sum()
way = jax.random.normal(jax.random.key(3), w1.shape, jnp.float64)
found, h = (jax.grad(align)(w1) * way).sum(), 1e-5
difference = (align(w1 + h * way) - align(w1 - h * way)) / (2 * h)
np.testing.assert_allclose(found, difference, rtol=1e-7)
"""
  subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_double_backward_is_that_of_pytorch():
  torch = pytest.importorskip("torch")
  functional = torch.nn.functional
  draw = np.random.default_rng(0)
  kernel = draw.normal(size=(3, 3, 1, 4)).astype(np.float32)
  scale, shift = (
    draw.uniform(0.5, 1.5, 4).astype(np.float32),
    draw.normal(size=4).astype(np.float32),
  )
  head = draw.normal(size=(4, 3)).astype(np.float32)
  images = draw.random((5, 6, 6, 1), np.float32)
  labels, wanted = np.array([0, 1, 2, 0, 1]), draw.normal(size=(5, 6, 6, 1)).astype(np.float32)

  def ours(kernel, scale, shift, head):
    def apply(x):
      way = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
      )
      mean, var = way.mean((0, 1, 2)), way.var((0, 1, 2))
      own = (way - mean[None, None, None]) * jax.lax.rsqrt(var + 1e-5)[None, None, None]
      x = jax.nn.relu(own * scale[None, None, None] + shift[None, None, None])
      return x.mean((1, 2)) @ head

    wrong = lambda z: losses.cross_entropy(z, jnp.asarray(labels))  # noqa: E731
    slope = kdiga.slopes(apply, jnp.asarray(images), wrong)[0]
    return kdiga.gap(slope, jnp.asarray(wanted), "l2").mean()

  value, grads = jax.value_and_grad(ours, argnums=(0, 1, 2, 3))(kernel, scale, shift, head)

  leaves = [torch.tensor(a, requires_grad=True) for a in (kernel, scale, shift, head)]
  x = torch.tensor(images.transpose(0, 3, 1, 2), requires_grad=True)
  way = functional.conv2d(x, leaves[0].permute(3, 2, 0, 1), padding=1)
  way = functional.batch_norm(way, None, None, leaves[1], leaves[2], training=True, eps=1e-5)
  logits = functional.relu(way).mean((2, 3)) @ leaves[3]
  loss = functional.cross_entropy(logits, torch.tensor(labels), reduction="sum")
  (slope,) = torch.autograd.grad(loss, x, create_graph=True)
  distance = slope.permute(0, 2, 3, 1) - torch.tensor(wanted)
  theirs = (distance.square().sum((1, 2, 3)) + 1e-12).sqrt().mean()
  theirs.backward()
  np.testing.assert_allclose(value, theirs.item(), rtol=1e-5)
  for a, b in zip(grads, leaves, strict=True):
    np.testing.assert_allclose(a, b.grad.numpy(), rtol=2e-3, atol=1e-5)


def test_a_student_keeps_its_statistics_of_the_clean_pass():
  _, aux, _ = terms(kdiga.Method(kl_at="adv", align_at="adv", eps=0.3, steps=1))
  clean = STUDENT(BATCH["image"], train=True)[1]
  close(aux.batch_stats["student"], clean, rtol=1e-5)
  assert dataclasses.is_dataclass(kdiga.Method) and NETWORKS
