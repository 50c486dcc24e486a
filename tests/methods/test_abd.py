"""ABD: shuffled teachers, suspicion and its check, and the hyper-gradient, against other ways."""

import dataclasses
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small
from flax import traverse_util

from rkd_jax import lookup, losses
from rkd_jax.errors import UserError
from rkd_jax.evaluation import synthetic
from rkd_jax.methods import (
  cmi,
  deep_inversion,
  inversion,
  kd,
  ood,
  retrospection,
  unlearning,
  vaccine,
  zskt,
)
from rkd_jax.methods.base import Bound
from rkd_jax.models.network import Network, Outputs
from rkd_jax.training import checkpoint, start, update

TINY = small.NETWORKS["teacher"]
BASE = zskt.Method(width=2, noise=3, students=2)
FIRST = vaccine.Method(base=BASE, layers=1, skip=0, window=2, trials=2)
SECOND = retrospection.Method(base=BASE, ascents=2, terms=2)
NO_TERMS = dataclasses.replace(SECOND, terms=0)
BY_CLASS = unlearning.Method(
  base=BASE, ascents=2, success=0.0, guard=0.0, shown=1.0, radius=0.0, weight=1.0,
  student_rate=5e-4,
)  # fmt: skip
GUARDED = dataclasses.replace(BY_CLASS, outlier=1.0, guard=2.0, shown=2.0, radius=1.5, share=0.5)
CONTRAST = cmi.Method(searches=1, students=1, pool=2, bank=20, negatives=6, noise=3, width=2)
POOLED = dataclasses.replace(GUARDED, base=CONTRAST)
STAGES = {"vaccine": FIRST, "retrospection": SECOND, "unlearning": GUARDED, "pooled": POOLED}
INVERSION = deep_inversion.Method(searches=1, students=1, pool=2)
OTHERS = {
  "vaccine of ood": vaccine.Method(base=ood.Method(), layers=1, trials=0),
  "retrospection of ood": retrospection.Method(base=ood.Method(), ascents=2, terms=1),
  "vaccine of inversion": vaccine.Method(base=INVERSION, layers=1, trials=0),
  "vaccine of cmi": vaccine.Method(base=CONTRAST, layers=1, trials=0),
  "retrospection of cmi": retrospection.Method(base=CONTRAST, ascents=2, terms=1),
  "unlearning of ood": dataclasses.replace(BY_CLASS, base=ood.Method()),
}
POOL = jnp.zeros((2, 8, 8, 8, 1)).at[0].set(jax.random.uniform(jax.random.key(9), (8, 8, 8, 1)))


def phase(method, **options):
  """A small phase of a stage; one that looks back is given a generator or a pool, as `abd` does."""
  given, roles = {"teacher": small.network(3)}, method.roles(small.NETWORKS)
  if "pool" in roles:
    given["pool"] = POOL
  if "generator" in roles and roles["generator"].init is None:
    generator = zskt.Method(width=2, noise=3).roles(small.NETWORKS)["generator"]
    given["generator"] = generator.init(jax.random.key(5), None, None)
  return small.Small(method, given=given, **options)


def teacher(seed=3):
  """A tiny network whose statistics and scales are not those it was born with."""
  variables = small.network(seed)
  draw = iter(jax.random.split(jax.random.key(seed), 99))
  other = lambda leaf: leaf + 0.3 * jax.random.uniform(next(draw), leaf.shape)  # noqa: E731
  return Bound(TINY, jax.tree.map(other, variables))


def orders(seed=0, copies=3):
  draw = np.random.default_rng(seed)
  return {"conv2/kernel": jnp.asarray([draw.permutation(4) for _ in range(copies)])}


# The vaccine.


def test_the_last_convolutions_are_those_of_the_last_stage():
  wide = lookup.load("models", "wideresnet")(depth=16, widen=2)
  net = Network(wide, (16, 16, 1), (0.5,), (0.25,))
  assert vaccine.kernels(net, 5) == tuple(
    (f"stage3_block{block}", conv, "kernel")
    for block, conv in ((0, "conv1"), (0, "conv2"), (0, "shortcut"), (1, "conv1"), (1, "conv2"))
  )


def test_shuffling_reorders_the_inputs_of_its_kernels_and_nothing_else():
  net, drawn = teacher(), orders()
  for copy, order in enumerate(drawn["conv2/kernel"]):
    before = traverse_util.flatten_dict(dict(net.variables), sep="/")
    after = traverse_util.flatten_dict(dict(vaccine.shuffled(net, drawn, copy).variables), sep="/")
    for name, leaf in before.items():
      kernel = np.asarray(leaf)
      wanted = kernel[:, :, order] if name == "params/conv2/kernel" else kernel
      np.testing.assert_array_equal(after[name], wanted)


def test_every_copy_and_kernel_has_a_permutation_of_its_own():
  wide = lookup.load("models", "wideresnet")(depth=10, widen=1)
  net = Network(wide, (8, 8, 1), (0.5,), (0.25,))
  drawn = vaccine.draw(jax.random.key(0), net, 3, 2)
  assert [len(v[0]) for v in drawn.values()] == [32, 64, 32]
  rows = [tuple(np.asarray(row).tolist()) for v in drawn.values() for row in v]
  assert len(set(rows)) == 6
  assert all(sorted(row) == list(range(len(row))) for row in rows)


def test_identity_permutations_suspect_every_image():
  net, images = teacher(), jax.random.uniform(jax.random.key(0), (5, 8, 8, 1))
  own, others = vaccine.answers(net, {"conv2/kernel": jnp.tile(jnp.arange(4), (2, 1))}, images)
  np.testing.assert_allclose(own, others, rtol=1e-6)
  assert vaccine.suspicious(own, others).all()
  np.testing.assert_allclose(vaccine.divergence(own, others, "forward", "mean"), 0, atol=1e-6)


def torch_answers(net, images, orders=None):
  """The tiny network in PyTorch, its second kernel's inputs in this order: logits."""
  torch = pytest.importorskip("torch")
  f, flat = torch.nn.functional, traverse_util.flatten_dict(dict(net.variables), sep="/")
  get = lambda name: torch.tensor(np.asarray(flat[name]))  # noqa: E731
  x = (images - 0.5) / 0.25
  for i in (1, 2):
    kernel = get(f"params/conv{i}/kernel").permute(3, 2, 0, 1)
    if i == 2 and orders is not None:
      kernel = kernel[:, torch.tensor(np.asarray(orders))]
    x = f.conv2d(f.pad(x, (0, 1, 0, 1)), kernel, stride=2)
    stats = [get(f"batch_stats/norm{i}/{name}") for name in ("mean", "var")]
    scale = [get(f"params/norm{i}/{name}") for name in ("scale", "bias")]
    x = f.relu(f.batch_norm(x, *stats, *scale, eps=1e-5))
  return x.mean((2, 3)) @ get("params/head/kernel") + get("params/head/bias")


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_suspicion_penalty_and_its_gradient_are_those_of_pytorch(direction):
  torch = pytest.importorskip("torch")
  net, drawn = teacher(), orders()
  images = np.random.default_rng(1).uniform(size=(16, 8, 8, 1)).astype(np.float32)

  @jax.jit
  def penalty(images):
    own, others = vaccine.answers(net, drawn, images)
    mask = vaccine.suspicious(own, others)
    value = vaccine.divergence(own, others, direction, "mean")
    return -0.1 * (mask * value).sum() / jnp.maximum(mask.sum(), 1), mask

  (value, mask), gradient = jax.value_and_grad(penalty, has_aux=True)(images)
  x = torch.tensor(images).permute(0, 3, 1, 2).requires_grad_()
  own = torch_answers(net, x)
  others = sum(torch_answers(net, x, order) for order in drawn["conv2/kernel"]) / 3
  suspected = own.argmax(1) == others.argmax(1)
  assert 0 < suspected.sum() < 16  # both kinds are there
  np.testing.assert_array_equal(mask, suspected.numpy())
  p, q = (torch.log_softmax(logits, 1) for logits in (own, others))
  p, q = (p, q) if direction == "forward" else (q, p)
  wanted = -0.1 * ((p.exp() * (p - q)).mean(1) * suspected).sum() / suspected.sum()
  wanted.backward()
  np.testing.assert_allclose(value, wanted.detach(), rtol=1e-4)
  expected = x.grad.permute(0, 2, 3, 1).numpy()
  np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-6)
  assert np.abs(expected).max() > 1e-4


def test_the_tail_ratio_by_hand():
  # 96 at 0 and 4 at -10: mean -.4, std sqrt(.04 * 9.6^2 + .96 * .4^2) = 1.96; -10 < -6.28
  assert float(vaccine.tail_ratio(jnp.array([0.0] * 96 + [-10.0] * 4))) == pytest.approx(0.04)
  assert float(vaccine.tail_ratio(jnp.linspace(-1, 1, 50))) == 0
  # three in ten are no tail: std 4.58, mean -3; nothing lies below -16.7
  assert float(vaccine.tail_ratio(jnp.array([0.0] * 7 + [-10.0] * 3))) == 0
  np.testing.assert_allclose(vaccine.log10(jnp.array([0.01, 0.0])), [-2, -12], rtol=1e-6)


TAIL = jnp.array([1.0] * 31 + [1e-9])  # 1 of 32 lies far below


def judged(method, batches):
  """The vaccine's states after these turns' divergences."""
  variables = {"teacher": teacher()}
  known = {
    "orders": method._draw(jax.random.key(0), variables, 0), "on": jnp.float32(not method.trials),
    "ratio": jnp.float32(0), "tried": jnp.int32(0), "turn": jnp.int32(-method.skip),
    "seen": jnp.zeros((method.window, 32)),
  }  # fmt: skip
  states = [known]
  for distances in batches:
    states.append(method.examined(jax.random.key(0), variables, states[-1], distances))
  return states


def test_a_vaccine_is_checked_redrawn_and_switched_on():
  method = dataclasses.replace(FIRST, skip=1, window=2, trials=3, tail=0.01)
  flat = jnp.ones(32)
  states = judged(method, [TAIL, flat, flat, flat, TAIL, flat])
  assert [float(s["on"]) for s in states] == [0, 0, 0, 0, 0, 1, 1]
  # the first turn is not looked at
  assert [int(s["tried"]) for s in states] == [0, 0, 0, 1, 1, 2, 2]
  assert float(states[3]["ratio"]) == 0 and float(states[5]["ratio"]) == pytest.approx(1 / 64)
  names = [np.asarray(s["orders"]["conv2/kernel"]).tolist() for s in states]
  assert names[0] == names[2] != names[3] == names[6]
  assert vaccine.outcome(method, states[-1]).startswith("Shuffling 2 passed: 1.6% of")


@pytest.mark.parametrize(("rejected", "on"), [("keep", 1), ("off", 0)])
def test_a_vaccine_that_never_passes_says_so(rejected, on):
  method = dataclasses.replace(FIRST, window=1, trials=2, rejected=rejected)
  states = judged(method, [jnp.ones(32)] * 4)
  assert [int(s["tried"]) for s in states] == [0, 1, 2, 2, 2]
  assert [float(s["on"]) for s in states] == [0, 0, on, on, on]
  assert float(states[-1]["ratio"]) == 0
  said = vaccine.outcome(method, states[-1])
  assert "None of 2" in said and {"keep": "kept", "off": "switched off"}[rejected] in said
  assert "before a shuffling had passed (1 tried)" in vaccine.outcome(method, states[1])


def test_without_trials_it_is_on_from_the_start():
  states = judged(dataclasses.replace(FIRST, trials=0), [TAIL] * 3)
  assert [float(s["on"]) for s in states] == [1] * 4
  assert "unchecked" in vaccine.outcome(dataclasses.replace(FIRST, trials=0), states[-1])
  assert int(states[-1]["tried"]) == 0


@pytest.mark.parametrize("on", [0.0, 1.0])
@pytest.mark.parametrize("base", [BASE, ood.Method()], ids=["zskt", "ood"])
def test_a_vaccine_that_is_not_on_changes_no_loss(base, on):
  """Until a check is passed the terms are the base's, and the generator's is free."""
  method = dataclasses.replace(FIRST, base=base, penalty=2.0)
  toy = phase(method)
  state, frozen = toy.begin()
  variables, player = toy.program.bind({**frozen, **state.roles}), method.watched
  memory = {**state.memory, "vaccine": {**state.memory["vaccine"], "on": jnp.float32(on)}}
  key = jax.random.key(1)
  batch, memory = method.batch(key, variables, memory, {}, jnp.int32(0))
  batch = method.shared(player, variables, memory, batch, None, key, jnp.int32(0))
  terms, aux = method.loss(player, variables, memory, batch, None, key, jnp.int32(0))
  plain, _ = base.loss(player, variables, memory["base"], batch, None, key, jnp.int32(0))
  assert float(aux.metrics["suspicious"].sum()) > 0
  mean = lambda term: float((term[0] * term[1]).sum() / term[1].sum())  # noqa: E731
  own, without = ({n: mean(t) for n, t in found.items() if n in plain} for found in (terms, plain))
  more = {name: mean(term) for name, term in terms.items() if name not in plain}
  assert any(abs(value) > 1e-6 for value in more.values()) == (on == 1)
  if not on:
    assert own == pytest.approx(without, abs=1e-6)


def test_without_a_generator_suspicious_images_are_turned_away_from():
  value, weight = jnp.array([1.0, 2.0, 4.0, 8.0]), jnp.ones(4)
  mask = jnp.array([0.0, 1.0, 0.0, 1.0])
  terms = vaccine.turned_away({"kl": (value, weight), "all": jnp.float32(7)}, mask, 0.1, 1.0)
  assert terms.pop("all") == 7
  means = {name: float((v * w).sum() / w.sum()) for name, (v, w) in terms.items()}
  assert means == pytest.approx({"kl": 2.5, "kl_suspicious": -0.5})
  off = vaccine.turned_away({"kl": (value, weight)}, mask, 0.0, 0.0)
  np.testing.assert_array_equal(off["kl"][1], weight)


# Self-retrospection.


class Smooth:
  """A network of two dense layers on images float[B, 1, 2, 1], in float64."""

  std = (0.5,)

  def apply(self, variables, images, train):
    params = variables["params"]
    hidden = jnp.tanh(images.reshape(len(images), -1) @ params["a"])
    return Outputs(hidden @ params["b"]), {}


@pytest.fixture
def double():
  with jax.enable_x64(True):
    draw = np.random.default_rng(0)
    params = {n: jnp.asarray(draw.normal(size=s)) for n, s in (("a", (2, 3)), ("b", (3, 3)))}
    images = jnp.asarray(draw.uniform(size=(6, 1, 2, 1)))
    delta = jnp.asarray(0.5 * draw.normal(size=(1, 1, 2, 1)))
    yield params, images, delta, jnp.asarray([1.0, 0, 0, 1, 0, 0])


def psis(net, images, delta, marked, detach=True):
  seen = retrospection.moved(net.module.std, images, delta * marked.reshape(-1, 1, 1, 1))
  return retrospection.outer(net, losses.kl_divergence, images, seen, detach)


def psi(params, *what):
  return psis(Bound(Smooth(), {"params": params}), *what).mean()


@pytest.mark.parametrize("terms", [0, 1, 5, 200])
def test_the_hyper_gradient_is_that_of_brute_force(double, terms):
  """grad psi + J_theta^T sum_{k<K} (J_delta^T)^k g by whole Jacobians; at last the exact solve."""
  params, images, delta, marked = double
  phi = retrospection.inner(losses.kl_divergence, Smooth.std, rate=0.1, decay=4.0)

  def loss(params):
    net = Bound(Smooth(), {"params": params})
    found = retrospection.optimum(phi, net, images, delta, terms)
    return psis(net, images, found, marked).mean()

  found = jax.grad(loss)(params)
  step = lambda p, d: phi(Bound(Smooth(), {"params": p}), images, d)  # noqa: E731
  direct, g = jax.grad(psi, argnums=(0, 2))(params, images, delta, marked)
  j_delta = jax.jacobian(step, 1)(params, delta).reshape(2, 2)
  j_theta = jax.jacobian(step, 0)(params, delta)
  v = jnp.zeros(2)
  for _ in range(terms):
    v = j_delta.T @ v + g.ravel()
  if terms == 200:
    np.testing.assert_allclose(v, np.linalg.solve(np.eye(2) - j_delta.T, g.ravel()), rtol=1e-9)
  for name in params:
    jacobian = j_theta[name].reshape(2, *params[name].shape)
    wanted = direct[name] + jnp.tensordot(v, jacobian, 1)
    np.testing.assert_allclose(found[name], wanted, rtol=1e-9, atol=1e-12)
  implicit = float(jnp.abs(jnp.tensordot(v, j_theta["a"].reshape(2, 2, 3), 1)).max())
  assert implicit > 1e-4 if terms else implicit == 0


def test_the_inner_problem_takes_the_plain_answer_for_a_constant(double):
  params, images, delta, _ = double
  phi = retrospection.inner(losses.kl_divergence, Smooth.std, rate=0.1, decay=4.0)
  logits = lambda p, x: Smooth().apply({"params": p}, x, True)[0].logits  # noqa: E731
  plain = jax.nn.log_softmax(logits(params, images))

  def objective(p, d):
    seen = jax.nn.log_softmax(logits(p, images + 0.5 * d))
    return 4.0 * jnp.square(d).sum() - (jnp.exp(plain) * (plain - seen)).sum(-1).mean()

  by_hand = lambda p, d: d - 0.1 * jax.grad(objective, 1)(p, d)  # noqa: E731
  ours = lambda p, d: phi(Bound(Smooth(), {"params": p}), images, d)  # noqa: E731
  for which in (0, 1):
    found, wanted = (jax.jacobian(f, which)(params, delta) for f in (ours, by_hand))
    small.close(found, wanted, rtol=1e-9, atol=1e-12)


def test_detaching_changes_the_gradient_and_not_the_value(double):
  params, images, delta, marked = double
  values = [psi(params, images, delta, marked, detach) for detach in (True, False)]
  slopes = [jax.grad(psi)(params, images, delta, marked, detach)["a"] for detach in (True, False)]
  assert values[0] == values[1] and float(jnp.abs(slopes[0] - slopes[1]).max()) > 1e-3


def test_only_marked_images_are_perturbed(double):
  params, images, delta, marked = double
  net = Bound(Smooth(), {"params": params})
  value = psis(net, images, delta, marked)
  assert np.asarray(value > 1e-6).tolist() == [True, False, False, True, False, False]
  moved = retrospection.moved((0.5,), images, delta)
  np.testing.assert_allclose(moved - images, jnp.broadcast_to(0.5 * delta, images.shape))


def test_the_search_raises_the_divergence(double):
  params, images, *_ = double
  net = Bound(Smooth(), {"params": params})
  search = lambda steps: retrospection.universal(  # noqa: E731
    net, Smooth.std, losses.kl_divergence, images, jax.random.key(0), steps, 0.1, 1e-3
  )
  gaps = [
    float(retrospection.gap(net, Smooth.std, losses.kl_divergence, images, search(n), train=False))
    for n in (0, 3, 10)
  ]
  assert gaps[0] < 0.1 * gaps[1] and gaps[1] < 0.9 * gaps[2]


# The search by class.


class Linear(Smooth):
  """Logits are weighted pixels."""

  def apply(self, variables, images, train, key=None, edit=None, capture=False):
    return Outputs(images.reshape(len(images), -1) @ variables["params"]["w"]), {}


def shortcut():
  """Every pixel of 16 tells a little of three classes; the last one takes to class 1 at once."""
  weights = 2 * np.random.default_rng(0).normal(size=(16, 3))
  weights[15] = [0, 40, 0]
  return Bound(Linear(), {"params": {"w": jnp.asarray(weights, jnp.float32)}})


def sought(net, images, price, steps=80):
  labels = net(images, train=False)[0].logits.argmax(-1)
  deltas = retrospection.beside(jax.random.key(0), (3, *images.shape[1:]))
  adam, known = optax.adam(0.1), inversion.untallied(3)

  @jax.jit
  def move(deltas, state, known):
    def objective(deltas):
      terms, weight, hit = unlearning.reach(net, images, labels, deltas, price)
      return update.reduce_terms(terms)[0], (weight, hit)

    gradient, tally = jax.grad(objective, has_aux=True)(deltas)
    steps, state = adam.update(gradient, state)
    return deltas + steps, state, inversion.tallied(known, *tally)

  state = adam.init(deltas)
  for _ in range(steps):
    deltas, state, known = move(deltas, state, known)
  return np.asarray(deltas), inversion.rates_of(known)


def test_the_smallest_perturbation_that_works_is_the_shortcut():
  images = 0.6 * jax.random.uniform(jax.random.key(1), (32, 4, 4, 1)).at[:, 3, 3].set(0.0)
  deltas, rates = sought(shortcut(), images, 0.03)
  sizes = unlearning.sizes(jnp.asarray(deltas))
  assert int(inversion.suspected(sizes, rates, 0.8)) == 1 and float(rates[1]) > 0.95
  own = np.abs(deltas[1]).ravel()
  assert own.argmax() == 15 and own[15] > 0.4 * own.sum() and deltas[1].ravel()[15] > 0
  assert sizes[1] < unlearning.Method(base=BASE).outlier * jnp.median(sizes), sizes


def test_a_higher_price_makes_it_smaller():
  images = 0.6 * jax.random.uniform(jax.random.key(1), (32, 4, 4, 1)).at[:, 3, 3].set(0.0)
  cheap, dear = (np.abs(sought(shortcut(), images, price)[0][1]).sum() for price in (0.01, 0.3))
  assert dear < 0.9 * cheap


NOISE = {"noise": jnp.zeros((6, 3))}
HITS = {"hits": jnp.array([1.0, 3.0, 2.0]), "count": jnp.full(3, 4.0)}
GREY = 0.5 + 0.2 * jax.random.uniform(jax.random.key(2), (6, 8, 8, 1))


def looking(method, small=0.1):
  """The networks and state of a second stage that knows perturbations, class 1's a small one."""
  deltas = 0.1 * jax.random.normal(jax.random.key(0), (3, 8, 8, 1)).at[1].multiply(small)
  made = {"generator": lambda noise: GREY, "source": lambda noise: GREY - 0.1}
  networks = {"teacher": teacher(), "student": teacher(4), "perturbation": deltas, **made}
  state = {"base": NOISE, **HITS, "student_delta": deltas[2:], "suspected": jnp.zeros(4)}
  return networks, state, deltas


def test_a_perturbation_is_as_small_in_few_pixels_as_spread_thin():
  """By hand: l_1 and l_2 norms are 4 and 4, 8 and 2, 8 and sqrt(8)."""
  one, thin, between = np.zeros((3, 4, 4, 1))
  one[0, 0], thin[:], between[:2] = 4.0, 0.5, 1.0
  found = unlearning.sizes(jnp.stack([one, thin, between]))
  assert np.allclose(found, [4.0, 4.0, 8 / 8**0.25])


@pytest.mark.parametrize("success", [0.0, 1.0])
def test_the_student_looks_back_once_a_perturbation_works(success):
  method = dataclasses.replace(BY_CLASS, success=success)
  variables, state, deltas = looking(method)
  batch = method.shared("student", variables, state, NOISE, None, None, 0)
  assert jnp.array_equal(batch["delta"][0], deltas[1])  # the smallest, or else the best
  assert batch["suspicious"] == (success == 0)
  terms, _ = method.loss("student", variables, state, batch, None, jax.random.key(3), 0)
  assert (np.asarray(terms["unlearning"][0]) > 0).any() == (success == 0)


@pytest.mark.parametrize("method", [SECOND, BY_CLASS, GUARDED])
def test_only_the_plain_images_move_the_running_statistics(method):
  variables, state, _ = looking(method)
  batch = method.shared("student", variables, state, NOISE, None, jax.random.key(2), 0)
  terms, aux = method.loss("student", variables, state, batch, None, jax.random.key(3), 0)
  assert (np.asarray(terms[method.name][0]) != 0).any()
  images = batch["image"]
  plain = variables["student"](images, train=True)[1]
  assert not jnp.array_equal(
    *(jax.tree.leaves(t)[0] for t in (plain, variables["student"].variables["batch_stats"]))
  )
  chex.assert_trees_all_equal(aux.batch_stats["student"], plain)


@pytest.mark.parametrize(
  ("outlier", "said"),
  [
    (0.5, "Class 1 is suspected: the perturbation into it works on 75.0% (from 0% on) and has 0.0"),
    (0.0, "No class is suspected; the nearest is class 1: the perturbation into it works on 75.0%"),
  ],
)
def test_what_a_search_by_class_decided(outlier, said):
  method = dataclasses.replace(BY_CLASS, outlier=outlier)
  variables, state, _ = looking(method)
  batch = method.shared("perturbation", variables, state, NOISE, None, None, 0)
  for _ in range(4):
    _, aux = method.loss("perturbation", variables, state, batch, None, jax.random.key(0), 0)
    state = {**state, "suspected": aux.state["suspected"]}
  share = 1.0 if outlier else 0.0
  assert float(state["suspected"].sum()) == 4 and state["suspected"][1] == 4 * share
  found = method.outcome(variables, state)
  often = "Class 1 was in 100% of the steps" if outlier else "No class was in any step"
  assert found.startswith(said) and often in found
  assert SECOND.outcome(variables, state) == ""


def test_a_step_towards_a_class_by_hand():
  net, std = shortcut(), Linear.std
  images = jnp.full((5, 4, 4, 1), 0.5)

  def toward(delta, radius):
    return unlearning.towards(net, std, images, jnp.int32(1), delta, radius)

  weights = net.params["w"]
  answer = jax.nn.softmax(net(images[:1], train=False)[0].logits)[0]
  uphill = (weights @ (jnp.array([0.0, 1, 0]) - answer)).reshape(1, 4, 4, 1)
  still = jnp.zeros((1, 4, 4, 1))
  step = toward(still, 0.2)
  np.testing.assert_allclose(step, 0.2 * uphill / jnp.linalg.norm(uphill), rtol=1e-4, atol=1e-6)
  again = toward(step, 0.2)  # two steps are longer than the radius: back to the ball
  assert float(jnp.linalg.norm(again)) == pytest.approx(0.2, rel=1e-5)
  np.testing.assert_allclose(toward(still, 0.0), 0, atol=1e-9)


def test_half_of_what_the_student_looks_back_on_is_its_own(monkeypatch):
  method = dataclasses.replace(GUARDED, share=1.0)
  variables, state, deltas = looking(method)
  shown, outer = [], retrospection.outer

  def looked(student, divergence, images, seen, detach):
    shown.append(np.asarray((seen - images) / variables["teacher"].module.std[0]))
    return outer(student, divergence, images, seen, detach)

  monkeypatch.setattr(retrospection, "outer", looked)
  batch = method.shared("student", variables, state, NOISE, None, jax.random.key(2), 0)
  _, aux = method.loss("student", variables, state, batch, None, jax.random.key(3), 0)
  own, found = aux.state["student_delta"][0], method.guard * deltas[1]
  size = method.radius * float(jnp.linalg.norm(deltas[1]))
  assert 0 < float(jnp.linalg.norm(own)) <= size * (1 + 1e-5)
  assert not jnp.array_equal(own, deltas[2])
  near = [[np.allclose(seen, delta, atol=1e-4) for delta in (own, found)] for seen in shown[0]]
  assert np.sum(near, 0).tolist() == [3, 3]


def test_each_step_of_the_search_looks_at_other_images(monkeypatch):
  method = dataclasses.replace(BY_CLASS, searched=2)
  variables, state, _ = looking(method)
  reach, shown = unlearning.reach, []

  def looked(network, images, *rest):
    shown.append(np.asarray(images))
    return reach(network, images, *rest)

  monkeypatch.setattr(unlearning, "reach", looked)
  batch = method.shared("perturbation", variables, state, NOISE, None, jax.random.key(2), 0)
  for turn in range(4):
    method.loss("perturbation", variables, state, batch, None, jax.random.key(turn), 0)
  seen = {image.tobytes() for images in shown for image in images}
  assert all(len(images) == 2 for images in shown) and len(seen) > 2
  assert seen <= {np.asarray(image).tobytes() for image in GREY}


def test_a_perturbation_like_the_others_is_not_suspicious():
  method = dataclasses.replace(BY_CLASS, outlier=0.5)
  variables, state, _ = looking(method, small=0.8)
  assert not method.shared("student", variables, state, NOISE, None, None, 0)["suspicious"]


@pytest.mark.parametrize("method", [NO_TERMS, BY_CLASS])
def test_a_student_of_another_normalisation_sees_the_same_pixels(method, monkeypatch):
  """A stranger's teacher keeps its own; a perturbation is one of pixels, whoever is shown it."""
  shown = []

  def outer(student, divergence, images, seen, detach):
    shown.append(np.asarray(seen - images))
    return jnp.ones(len(images))

  monkeypatch.setattr(retrospection, "outer", outer)
  method = dataclasses.replace(method, share=1.0)
  variables, _, _ = looking(method)
  delta = 0.1 * jax.random.normal(jax.random.key(7), (1, 8, 8, 1))
  batch = {"image": GREY, "delta": delta, "suspicious": 1.0, **NOISE}
  for std in (0.25, 0.5):
    module = dataclasses.replace(TINY, std=(std,))
    student = Bound(module, variables["student"].variables)
    method.looking_back({**variables, "student": student}, batch, GREY, jax.random.key(3))
  np.testing.assert_array_equal(*shown)
  np.testing.assert_allclose(shown[0][0], TINY.std[0] * delta[0], atol=1e-6)


@pytest.mark.parametrize("victim", ["teacher", "student"])
def test_the_perturbation_is_sought_on_the_victim(victim, monkeypatch):
  shown, outer = [], retrospection.outer

  def looked(student, divergence, images, seen, detach):
    shown.append(seen - images)
    return outer(student, divergence, images, seen, detach)

  monkeypatch.setattr(retrospection, "outer", looked)
  method = dataclasses.replace(NO_TERMS, victim=victim, share=1.0)
  variables, state, _ = looking(method)
  key = jax.random.key(3)
  batch = method.shared("student", variables, state, NOISE, None, key, 0)
  method.loss("student", variables, state, batch, None, key, 0)
  search = TINY.std, BASE.looks_back, GREY, method.own(key), method.ascents, method.rate
  found = {
    name: TINY.std[0] * retrospection.universal(variables[name], *search, method.search_decay)
    for name in ("teacher", "student")
  }
  assert not np.allclose(*found.values(), atol=0.01)
  np.testing.assert_allclose(shown[0][0], found[victim][0], atol=1e-5)


def test_the_students_gradient_passes_through_the_inner_problem():
  slopes = []
  for terms in (0, 1, 5):
    method = dataclasses.replace(SECOND, terms=terms, share=1.0, decay=4.0)
    variables, state, _ = looking(method)
    batch = method.shared("student", variables, state, NOISE, None, jax.random.key(2), 0)

    def value(params, method=method, batch=batch, variables=variables):
      student = variables["student"].with_params(params)
      key = jax.random.key(3)
      return method.looking_back({**variables, "student": student}, batch, GREY, key)[0].mean()

    slopes.append(jax.grad(value)(variables["student"].params)["head"]["kernel"])
  none, one, five = (np.asarray(slope) for slope in slopes)
  apart = [np.abs(a - b).max() / np.abs(none).max() for a, b in ((none, one), (one, five))]
  assert min(apart) > 1e-3


def test_the_vaccine_lowers_what_is_suspicious_and_has_a_say_in_the_best_batch():
  method = vaccine.Method(base=CONTRAST, layers=1, trials=0, penalty=2.0)
  toy = phase(method)
  state, frozen = toy.begin()
  variables, memory = toy.program.bind({**frozen, **state.roles}), state.memory
  batch, memory = method.batch(jax.random.key(0), variables, memory, {}, jnp.int32(0))

  def ask(method):
    return method.loss("generator", variables, memory, batch, None, jax.random.key(1), 0)

  terms, aux = ask(method)
  images = method.images("generator", variables, memory, batch, None)
  own, others = vaccine.answers(variables["teacher"], memory["vaccine"]["orders"], images)
  mask, distance = vaccine.suspicious(own, others), losses.kl_divergence(own, others) / 3
  assert mask.any()
  small.close(terms["vaccine"], (-2 * distance, mask), rtol=1e-5, atol=1e-7)
  _, free = ask(dataclasses.replace(method, penalty=0.0))
  best, before = (float(a.state["base"]["best"]) for a in (aux, free))
  assert best == pytest.approx(before - 2 * float((distance * mask).sum() / mask.sum()), abs=1e-5)


def test_the_guard_takes_the_perturbation_away():
  variables, state, deltas = looking(GUARDED)
  batch = GUARDED.shared("student", variables, state, NOISE, None, None, 0)
  std = variables["teacher"].module.std[0]
  np.testing.assert_allclose(batch["image"], GREY - 2 * std * deltas[1:2], atol=1e-6)
  sought = GUARDED.shared("perturbation", variables, state, NOISE, None, None, 0)
  np.testing.assert_array_equal(sought["image"], GREY - 0.1)  # of the first stage's generator
  none = dataclasses.replace(GUARDED, success=1.0)
  batch = none.shared("student", variables, state, NOISE, None, None, 0)
  np.testing.assert_array_equal(batch["image"], GREY)


def test_perturbations_are_sought_on_the_pool_as_it_was_given():
  toy = phase(POOLED)
  state, frozen = toy.begin()
  variables, memory = toy.program.bind({**frozen, **state.roles}), state.memory
  base = memory["base"]
  later = {**memory, "base": {**base, "images": jnp.ones_like(base["images"])}}
  batch = {"round": jnp.int32(1), "slot": jnp.arange(8), "suspicious": 1.0, "goal": jnp.int32(0)}
  batch["delta"] = variables["perturbation"][:1]
  given, own = POOLED._given(variables, memory)
  seen = POOLED.images("perturbation", given, own, batch, jax.random.key(1))
  assert (seen.max((1, 2, 3)) > 0).all()  # and not on what the pool has room for

  def asked(player, memory, name):
    terms, _ = POOLED.loss(player, variables, memory, batch, None, jax.random.key(1), 0)
    return np.asarray(terms[name][0])

  np.testing.assert_array_equal(*(asked("perturbation", m, "flip") for m in (memory, later)))
  known, new = (asked("student", m, "kl") for m in (memory, later))
  assert not np.allclose(known, new)


def test_images_that_lean_on_a_suspected_perturbation_teach_nothing():
  net, images = shortcut(), jnp.full((3, 4, 4, 1), 0.3)
  weights = net.params["w"][:15].at[:, 1].set(0.0).at[1, 1].set(9.0)  # class 1 without the shortcut
  net = net.with_params({"w": net.params["w"].at[:15].set(weights)})
  images = images.at[:, 0, 1].set(jnp.array([0.0, 0.0, 1.0])[:, None])
  images = images.at[:, 3, 3].set(jnp.array([1.0, 0.0, 0.0])[:, None])
  deltas = jnp.ones((3, 4, 4, 1)).at[1].set(0.0).at[1, 3, 3].set(1 / (2 * net.module.std[0]))
  variables = {"teacher": net, "perturbation": deltas}
  assert net(images, train=False)[0].logits.argmax(-1).tolist()[::2] == [1, 1]
  assert GUARDED._leaning(variables, HITS, images).tolist() == [1, 0, 0]
  assert not dataclasses.replace(GUARDED, success=1.0)._leaning(variables, HITS, images).any()

  variables, state, _ = looking(GUARDED)
  batch = GUARDED.shared("student", variables, state, NOISE, None, None, 0)
  batch["leaning"] = jnp.array([1.0, 0, 0, 1, 0, 0])
  terms, aux = GUARDED.loss("student", variables, state, batch, None, jax.random.key(3), 0)
  for name in ("kl", "attention"):
    np.testing.assert_array_equal(terms[name][1], 1 - batch["leaning"])
  np.testing.assert_array_equal(terms["unlearning"][1], 1)
  np.testing.assert_array_equal(aux.metrics["leaning"], batch["leaning"])


def test_the_report_shows_the_images_that_the_student_saw():
  toy = phase(GUARDED)
  state, frozen = toy.play(2)
  trees = {**frozen, **state.roles}
  made = types.SimpleNamespace(program=toy.program, trees=trees, memory=state.memory)
  shown = synthetic.arrays({"seed0/abd/student/poisoned": made})
  variables = toy.program.bind(trees)
  noise = jax.random.normal(jax.random.key(0), (synthetic.IMAGES // 8, 8, BASE.noise))
  less = GUARDED.guarded(variables, state.memory)["generator"]
  plain, guarded = (jnp.concatenate([g(z) for z in noise]) for g in (variables["generator"], less))
  found = shown["seed0/abd/student/poisoned:images"] / 255
  np.testing.assert_allclose(found, guarded, atol=0.5 / 255 + 1e-6)
  assert float(jnp.abs(plain - guarded).max()) > 0.01


def test_the_report_shows_images_where_nothing_can_be_shuffled():
  seer = Network(lookup.load("models", "vit")(16, 1, 4, 1, 3), (8, 8, 1), (0.5,), (0.25,))
  given = {"teacher": start.fresh(seer, jax.random.key(0))}
  toy = small.Small(ood.Method(), networks={**small.NETWORKS, "teacher": seer}, given=given)
  state, frozen = toy.play(1)
  trees = {**frozen, **state.roles}
  made = types.SimpleNamespace(program=toy.program, trees=trees, memory=state.memory)
  shown = synthetic.arrays({"seed0/ood/student/poisoned": made})
  assert {name.split(":")[-1] for name in shown} == {"copies", "images", "answers"}


# The whole.


@pytest.mark.slow
@pytest.mark.parametrize("method", (STAGES | OTHERS).values(), ids=STAGES | OTHERS)
def test_a_killed_phase_ends_with_the_same_bytes(method, tmp_path):
  small.killed(phase(method), tmp_path / "cut", 4)
  whole, resumed = (phase(method).train(tmp_path / d) for d in ("whole", "cut"))
  assert checkpoint.digest(resumed) == checkpoint.digest(whole)
  if method is FIRST:
    assert int(resumed.memory["vaccine"]["tried"]) == 2 and "orders" in resumed.memory["vaccine"]


@pytest.mark.slow
@pytest.mark.parametrize("method", STAGES.values(), ids=STAGES)
def test_eight_devices_give_the_single_devices_result(method):
  one, eight = (phase(method, devices=n).play(2)[0] for n in (1, 8))
  small.close(without_biases(one.roles), without_biases(eight.roles), rtol=5e-3, atol=5e-4)
  if method is POOLED:
    small.close(one.memory["base"]["images"], eight.memory["base"]["images"], rtol=0, atol=1e-3)


def without_biases(roles):
  """One before a normalisation has no gradient but rounding, which Adam makes steps of."""
  leaves = traverse_util.flatten_dict(dict(roles))
  return {path: leaf for path, leaf in leaves.items() if path[-1] != "bias"}


@pytest.mark.parametrize(
  ("stage", "fields", "said"),
  [
    (vaccine, {"base": kd.Method()}, "'kd' learns from data"),
    (retrospection, {"base": kd.Method()}, "'kd' learns from data"),
    (vaccine, {"direction": "up"}, "vaccine.direction"),
    (vaccine, {"rejected": "silently"}, "choose keep or off"),
    (vaccine, {"teachers": 0}, "vaccine.teachers"),
    (vaccine, {"tail": 2.0}, "vaccine.tail"),
    (retrospection, {"victim": "everybody"}, "choose teacher or student"),
    (retrospection, {"share": 2.0}, "retrospection.share"),
    (unlearning, {"guard": -1.0}, "unlearning.guard"),
    (unlearning, {"success": 2.0}, "unlearning.success"),
    (unlearning, {"weight": -1.0}, "unlearning.weight"),
  ],
)
def test_wrong_fields_are_refused(stage, fields, said):
  with pytest.raises(UserError, match=said):
    stage.Method(**{"base": BASE, **fields})


def test_a_guard_needs_a_generator():
  guarded = unlearning.Method(base=ood.Method())
  with pytest.raises(UserError, match="and 'ood' has none"):
    guarded.roles({"teacher": TINY, "student": TINY})


def test_a_generator_that_stands_still_must_be_given():
  with pytest.raises(UserError, match="'generator' has no values"):
    small.Small(SECOND, given={"teacher": small.network(3)}).begin()


def test_networks_that_cannot_be_shuffled_are_refused():
  networks = {"teacher": TINY, "student": TINY}
  with pytest.raises(UserError, match="has 1 that read several channels"):
    dataclasses.replace(FIRST, layers=2).roles(networks)
  vit = lookup.load("models", "vit")()
  seer = Network(vit, (32, 32, 3), (0.5,) * 3, (0.25,) * 3)
  free = vaccine.Method(base=ood.Method(), layers=1)
  with pytest.raises(UserError, match="none but its first"):
    free.roles({"teacher": seer, "student": seer})
