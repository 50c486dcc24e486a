"""Feature distillation: distances by hand, who is compared with whom, and what reaches whom."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from scipy import integrate, stats

from rkd_jax import losses
from rkd_jax.data.augment import Augment
from rkd_jax.errors import UserError
from rkd_jax.methods import agreement, attention, features, fitnet, kd, ofd, views
from rkd_jax.models import resnet, wideresnet
from rkd_jax.models.network import Network
from rkd_jax.training import start, update
from rkd_jax.training.checkpoint import digest
from rkd_jax.training.optimizer import Optimizer

TINY, WIDE = small.tiny.network(), small.tiny.network(6)
NETWORKS = {"teacher": WIDE, "student": TINY}
TAPS = ("stage1", "stage2")
METHODS = {"ofd": ofd.Method, "attention": attention.Method, "fitnet": fitnet.Method}
each_method = pytest.mark.parametrize("name", METHODS)


def row(*numbers):
  """One example of one pixel."""
  return jnp.array(numbers, jnp.float32).reshape(1, 1, 1, -1)


# The distances.


def test_overhaul_by_hand():
  margin = jnp.array([-1.0, -1.0, -0.5, -0.5, -0.5])
  student, teacher = row(-1.5, 2.0, -3.0, 0.5, 0.0), row(-2.0, 1.0, -0.1, -5.0, 3.0)
  # below the margin of -1: nothing; 2 to 1; below a negative target; above the margin; 0 to 3
  assert losses.overhaul(student, teacher, margin).tolist() == [0 + 1 + 0 + 1 + 9]


def test_attention_by_hand():
  feature = jnp.array([[[1.0, 0], [1, 1]], [[0, 0], [0, 0]]]).reshape(1, 2, 2, 2)
  np.testing.assert_allclose(losses.attention_map(feature)[0] * np.sqrt(5), [1, 2, 0, 0], 1e-6)
  other = jnp.zeros((1, 2, 2, 3)).at[0, 1, 1, 2].set(-7.0)  # channels may differ
  found = losses.attention_transfer(feature, other)
  np.testing.assert_allclose(found, ((1 + 4) / 5 + 1) / 4, rtol=1e-6)
  # the scale of a map does not matter
  np.testing.assert_allclose(losses.attention_transfer(3 * feature, other / 9), found, rtol=1e-6)


def test_hint_and_variances_by_hand():
  a, b = row(1.0, 2.0, 3.0, 6.0), row(1.0, 0.0, 3.0, 0.0)
  assert losses.hint(a, b).tolist() == [(4 + 36) / 4]
  # a - b = 0, 2, 0, 6: mean 2, variance 6; b: mean 1, variance 1.5
  np.testing.assert_allclose(losses.residual_variance(a, b), [6 / 1.5], rtol=1e-5)
  np.testing.assert_allclose(losses.residual_variance(a + 5, b), [6 / 1.5], rtol=1e-5)
  assert losses.view_variance(a, b).tolist() == [10 / 4]
  batch, other = jnp.concatenate([a, a + 2]), jnp.concatenate([b, b])  # deviations 1 and 0
  np.testing.assert_allclose(losses.moment_gap(batch, other), 1, rtol=1e-6)


ZERO = jnp.zeros((2, 3, 3, 4))
DISTANCES = {
  "overhaul": lambda s, t: losses.overhaul(s, t, jnp.full(4, -0.5)),
  "attention": losses.attention_transfer,
  "hint": losses.hint,
  "residual": losses.residual_variance,
  "moments": lambda s, t: losses.moment_gap(s, t)[None],
  "views": losses.view_variance,
}


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("teacher", [0.0, 1.0, 1e4])
def test_constant_features_have_finite_gradients(name, teacher):
  total = lambda s, t: DISTANCES[name](s, t).sum()  # noqa: E731
  value, gradients = jax.value_and_grad(total, (0, 1))(ZERO, ZERO + teacher)
  assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("name", DISTANCES)
def test_distances_are_float32_and_of_their_own_example(name):
  s, t = jax.random.normal(jax.random.key(0), (2, 3, 2, 2, 4))
  found = DISTANCES[name](s.astype(jnp.bfloat16), t.astype(jnp.bfloat16))
  assert found.dtype == jnp.float32 and found.shape == ((1,) if name == "moments" else (3,))
  if name != "moments":
    moved = DISTANCES[name](s.at[0].set(9.0), t)
    np.testing.assert_allclose(moved[1:], DISTANCES[name](s, t)[1:], rtol=1e-5)
  with pytest.raises(AssertionError):
    DISTANCES[name](s, t[:, :1])


@pytest.mark.parametrize(("beta", "gamma"), [(0.0, 1.0), (1.0, -0.5), (-2.0, 0.7), (3.0, 1.0)])
def test_the_margin_is_the_mean_below_zero(beta, gamma):
  normal = stats.norm(beta, abs(gamma))
  mean, _ = integrate.quad(lambda z: z * normal.pdf(z), -20, 0, points=(beta, -1))
  found = ofd.normal_tail_mean(jnp.array([beta]), jnp.array([gamma]))
  np.testing.assert_allclose(found, mean / normal.cdf(0), rtol=1e-4)


def test_the_margin_far_out():
  beta, gamma = np.array(
    [(3.2, 1), (1e6, 2), (-1e6, 2), (5, 0), (0, 0), (-5, 0), (1e-30, 1e-35), (-40, 1)], "float32"
  ).T
  expected = [-3, -6, -1e6, 0, 0, -5, -3e-35, -40]  # -3 |gamma| where almost nothing is below 0
  found = jax.jit(ofd.normal_tail_mean)(beta, gamma)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-30)


# Who is compared with whom.


def names(method, teacher=TINY, student=TINY):
  return method.stages(teacher, 0), method.stages(student, -1)


def test_taps():
  assert names(ofd.Method()) == (TAPS, TAPS)
  assert names(ofd.Method(taps=("stage2:stage1",))) == (("stage2",), ("stage1",))
  assert names(fitnet.Method()) == (("stage1",), ("stage1",))
  middle = fitnet.Method().default
  assert [middle(tuple("abcde"[:n])) for n in (1, 3, 4, 5)] == [("a",), ("b",), ("b",), ("c",)]
  # as a command line or a list in a config gives them
  for taps in ("stage1,stage2", ("stage1,stage2",), ["stage1", "stage2"]):
    assert hash(ofd.Method(taps=taps)) == hash(ofd.Method(taps=TAPS))
  assert ofd.Method(taps="") == ofd.Method()


def network(module):
  return Network(module, (8, 8, 1), (0.5,), (0.25,))


THREE = network(wideresnet.Model(10, 1, classes=3))


@pytest.mark.parametrize(
  ("method", "networks", "says"),
  [
    (ofd.Method(taps=("stage9",)), NETWORKS, "ofd.taps: the teacher has no stage 'stage9'. Did"),
    (fitnet.Method(taps=("stage1:x",)), NETWORKS, "fitnet.taps: the student has no stage 'x'."),
    (ofd.Method(taps=("stage1", "stage1:stage2")), NETWORKS, "name each stage of the teacher once"),
    (ofd.Method(taps=("stage1:stage1:stage1",)), NETWORKS, "'stage2:stage1'"),
    (
      attention.Method(),
      {"teacher": THREE, "student": TINY},
      "attention cannot tell which stages belong together. The teacher has stage1 [8, 8, 16], "
      "stage2 [4, 4, 32], stage3 [2, 2, 64]; the student has stage1 [4, 4, 4], stage2 [2, 2, 8]. "
      "Pairs that fit, teacher first: stage2:stage1, stage3:stage2; as in taps=('stage3:stage2',).",
    ),
    (
      ofd.Method(taps=("stage1",)),
      {"teacher": THREE, "student": TINY},
      "ofd compares stage1 of the teacher, stage1 [8, 8, 16], with stage1 of the student, "
      "stage1 [4, 4, 4]: height and width must be equal. The teacher has stage1 [8, 8, 16]",
    ),
    (
      ofd.Method(),
      {"teacher": dataclasses.replace(TINY, image_shape=(64, 64, 1)), "student": TINY},
      "No two of their stages have the same height and width.",
    ),
    (ofd.Method(), {"student": TINY}, "needs a network 'teacher'"),
  ],
)
def test_what_cannot_be_compared_is_said_before_training(method, networks, says):
  with pytest.raises(UserError) as error:
    method.roles(networks)
  assert says in str(error.value)


@pytest.mark.parametrize(
  ("fields", "says"),
  [
    ({"variance": "std"}, "variance is 'std'; choose one of none, residual, moments, views."),
    ({"weight": -1.0}, "weight is -1.0"),
    ({"variance_weight": float("nan")}, "variance_weight is nan"),
    ({"amplitude": 2.0}, "amplitude is 2.0"),
    ({"alpha": -0.1}, "alpha is -0.1"),
  ],
)
@each_method
def test_wrong_fields_are_named(name, fields, says):
  with pytest.raises(UserError) as error:
    METHODS[name](**fields)
  assert says in str(error.value)


def test_stages_of_other_numbers_are_paired_by_taps():
  method = ofd.Method(taps=("stage2:stage1", "stage3:stage2"))
  connector = method.roles({"teacher": THREE, "student": TINY})["connector"].module
  assert connector.taps == (("stage2", 4, 32), ("stage3", 8, 64))
  toy = small.Small(
    method, networks={"teacher": THREE, "student": TINY},
    given={"teacher": start.fresh(THREE, jax.random.key(5))},
  )  # fmt: skip
  state, _ = toy.play(1)
  assert np.isfinite(float(state.metrics["loss"][0]))


@pytest.mark.parametrize("variance", features.VARIANCES)
@each_method
def test_who_has_a_connector(name, variance):
  student = network(resnet.Model(8, 4, classes=3, dtype=jnp.bfloat16, bn_group=4))
  found = METHODS[name](variance=variance).roles({"teacher": THREE, "student": student})
  assert ("connector" in found) == (name != "attention" or variance != "none")
  if "connector" in found:
    connector = found["connector"].module
    assert (connector.dtype, connector.bn_group) == (jnp.bfloat16, 4)


# What the student is told.


def bound(networks=NETWORKS, method=None):
  """Bound networks, and a connector that is not as at first."""
  seeds = {"teacher": 3, "student": 4}
  made = {n: start.fresh(net, jax.random.key(seeds[n])) for n, net in networks.items()}
  variables = {n: small.Bound(networks[n], tree) for n, tree in made.items()}
  if method:
    connector = method.roles(networks)["connector"].module
    variables["connector"] = small.Bound(connector, connector.init(jax.random.key(8)))
  return variables


def batch(size=8, unlabelled=3):
  rows = small.rows(size, unlabelled)
  image, index = jnp.float32(rows.image) / 255, jnp.arange(size)
  return {"image": image, "label": jnp.asarray(rows.label), "index": index}


def ask(method, variables, seen, state=None):
  state = state or method.init_state(None, variables, None)
  targets = method.targets(variables, seen, None)
  return method.loss("student", variables, state, seen, targets, jax.random.key(7), 0)


def said(variables, seen, tensor):
  """(teacher's, connected student's) of every tap, and the student's own."""
  teacher = getattr(variables["teacher"](seen["image"], train=False)[0], tensor)
  own = getattr(variables["student"](seen["image"], train=True)[0], tensor)
  return teacher, variables["connector"](own, train=True)[0], own


def test_ofds_terms_are_put_together_as_said():
  method = ofd.Method(weight=3.0, alpha=0.25)
  variables, seen = bound(method=method), batch()
  terms, aux = ask(method, variables, seen)
  teacher, connected, _ = said(variables, seen, "pre_relu")
  norms = variables["teacher"].params
  margins = [ofd.normal_tail_mean(norms[n]["bias"], norms[n]["scale"]) for n in ("norm1", "norm2")]
  values = [
    losses.overhaul(connected[t], teacher[t], m) for t, m in zip(TAPS, margins, strict=True)
  ]
  small.close(terms["feature"][0], 3 * (values[0] / 2 + values[1]) / 1000, rtol=1e-5)
  assert terms["feature"][1].tolist() == [1] * 8
  plain, plain_aux = ask(
    kd.Method(alpha=0.25), variables | {"student": variables["student"]}, seen, ()
  )
  small.close({n: terms[n] for n in plain}, plain)
  small.close(aux.batch_stats["student"], plain_aux.batch_stats["student"])
  assert set(aux.batch_stats) == {"student", "connector"} and set(terms) == {"ce", "kl", "feature"}
  assert aux.metrics["train_teacher_finite"].tolist() == [1] * 8


def test_the_deepest_tap_weighs_most_whatever_their_names():
  """A compiled program hands a dict's entries over in alphabetical order."""
  method = ofd.Method(taps=("stage2", "stage1"))  # as if the second stage were the shallow one
  variables, seen = bound(method=method), batch()
  state = method.init_state(None, variables, None)
  targets = jax.jit(lambda images: method.targets(variables, {"image": images}, None))(
    seen["image"]
  )
  terms, _ = method.loss("student", variables, state, seen, targets, jax.random.key(7), 0)
  teacher, connected, _ = said(variables, seen, "pre_relu")
  one = lambda t: losses.overhaul(  # noqa: E731
    connected[t], teacher[t], method.margin(t, variables, state)
  )
  small.close(terms["feature"][0], (one("stage2") / 2 + one("stage1")) / 1000, rtol=1e-5)


def test_the_other_distances_are_put_together_as_said():
  method = attention.Method(weight=10.0, variance="residual", variance_weight=2.0)
  variables, seen = bound(method=method), batch()
  teacher, connected, own = said(variables, seen, "features")
  terms, _ = ask(method, variables, seen)
  value = sum(losses.attention_transfer(own[t], teacher[t]) for t in TAPS)
  small.close(terms["feature"][0], 10 * value, rtol=1e-5)
  value = sum(losses.residual_variance(connected[t], teacher[t]) for t in TAPS)
  small.close(terms["variance"], (value, np.ones(8)), rtol=1e-5)  # 2 / 2 taps
  method = fitnet.Method(taps=TAPS, variance="moments", variance_weight=3.0)
  terms, _ = ask(method, variables, seen)
  small.close(
    terms["feature"][0], 50 * sum(losses.hint(connected[t], teacher[t]) for t in TAPS), rtol=1e-5
  )
  value = sum(losses.moment_gap(connected[t], teacher[t]) for t in TAPS) / 2
  assert terms["variance"].shape == () and float(terms["variance"]) == pytest.approx(3 * value)


def test_views_are_a_second_look_that_leaves_no_trace(monkeypatch):
  method = ofd.Method(variance="views", variance_weight=2.0, amplitude=0.5)
  variables, seen = bound(method=method), batch()
  asked = []

  def half(key, images, amplitude):
    asked.append((key, amplitude))
    return 0.5 * images

  monkeypatch.setattr(views, "random_blend", half)
  terms, aux = ask(method, variables, seen)
  _, connected, _ = said(variables, seen, "pre_relu")
  _, other, _ = said(variables, {"image": 0.5 * seen["image"]}, "pre_relu")
  value = sum(losses.view_variance(connected[t], other[t]) for t in TAPS)
  small.close(terms["variance"], (value, np.ones(8)), rtol=1e-5)
  ((key, amplitude),) = asked
  assert (
    amplitude == 0.5 and (jax.random.key_data(key) != jax.random.key_data(jax.random.key(7))).any()
  )
  plain, plain_aux = ask(dataclasses.replace(method, variance="none"), variables, seen)
  small.close({n: terms[n] for n in plain}, plain)
  small.close(aux.batch_stats, plain_aux.batch_stats)


@each_method
@pytest.mark.parametrize("variance", ["none", "moments", "views"])
def test_gradients_reach_student_and_connector_and_never_the_teacher(name, variance):
  method = METHODS[name](variance=variance)
  variables, seen = bound(method=dataclasses.replace(method, variance="moments")), batch()
  state, targets = method.init_state(None, variables, None), method.targets(variables, seen, None)
  if variance == "none" and name == "attention":
    del variables["connector"]

  @jax.jit
  def total(params):
    learning = {role: variables[role].with_params(tree) for role, tree in params.items()}
    terms, _ = method.loss("student", learning, state, seen, targets, jax.random.key(0), 0)
    return update.reduce_terms({n: t for n, t in terms.items() if n in ("feature", "variance")})[0]

  gradient = jax.grad(total)({role: v.params for role, v in variables.items()})
  assert not any(leaf.any() for leaf in jax.tree.leaves(gradient.pop("teacher")))
  size = jax.tree.map(lambda leaf: float(jnp.abs(leaf).max()), gradient)
  assert all(np.isfinite(jax.tree.leaves(size)))
  assert size["student"]["conv1"]["kernel"] > 0 and size["student"]["head"]["kernel"] == 0
  if "connector" in size:
    used = {"stage1"} if name == "fitnet" else set(TAPS)
    assert {
      tap for tap in TAPS if size["connector"].get(tap, {"conv": {"kernel": 0}})["conv"]["kernel"]
    } == used


# What the teacher says.


class Blind(ofd.Method):
  """A repaired teacher: its first stage says nothing."""

  def taught(self, frozen, images):
    edit = lambda stage, x: 0 * x if stage == "stage1" else x  # noqa: E731
    return frozen["teacher"](images, train=False, edit=edit)[0]


def test_a_repaired_teacher_is_what_is_taught():
  variables, seen = bound(), batch()
  plain, changed = (m.targets(variables, seen, None) for m in (ofd.Method(), Blind()))
  assert not changed["features"]["stage1"].any() and plain["features"]["stage1"].any()
  assert (changed["features"]["stage2"] != plain["features"]["stage2"]).any()
  assert not np.allclose(changed["logits"], plain["logits"])
  assert Blind().cacheable


def test_only_what_is_compared_is_kept():
  targets = fitnet.Method(taps=("stage2",)).targets(bound(), batch(), None)
  assert {t: x.shape for t, x in targets["features"].items()} == {"stage2": (8, 2, 2, 12)}
  assert (targets["features"]["stage2"] >= 0).all()  # after the ReLU, ofd's before it
  assert (ofd.Method().targets(bound(), batch(), None)["features"]["stage2"] < 0).any()


class Bare(small.tiny.Tiny):
  """A network without norms before its stages' ends, as a transformer is."""

  margin_bn = {}  # noqa: RUF012


def test_a_stage_without_a_norm_has_the_margin_of_the_data():
  networks = small.NETWORKS | {"teacher": dataclasses.replace(TINY, module=Bare())}
  toy = small.Small(ofd.Method(), small.rows(20), networks=networks)
  state, frozen = toy.begin()
  teacher = small.Bound(TINY, frozen["teacher"])
  found = teacher(jnp.float32(toy.rows.image) / 255, train=False)[0].pre_relu
  variables = {"teacher": small.Bound(networks["teacher"], frozen["teacher"])}
  for tap in TAPS:  # 20 images, so 236 rows of padding left out
    z = np.asarray(found[tap]).reshape(-1, found[tap].shape[-1])
    expected = [channel[channel < 0].mean() if (channel < 0).any() else 0 for channel in z.T]
    np.testing.assert_allclose(
      toy.method.margin(tap, variables, state.memory), expected, rtol=1e-4, atol=1e-6
    )
  state = toy.round(state, frozen)
  assert np.isfinite(float(state.metrics["loss"][0]))


def broken(stage="norm2"):
  tree = jax.tree.map(np.array, small.network(3))
  tree["params"][stage]["bias"][0] = np.nan
  return tree


@pytest.mark.parametrize("wrapped", [False, True])
@each_method
def test_a_teacher_that_says_nan_is_refused_before_training(name, wrapped):
  method, given = METHODS[name](taps=TAPS), {"teacher": broken()}
  if wrapped:
    method, given = agreement.Method(base=method), {**given, "witness": small.network(4)}
  toy = small.Small(method, given=given)
  with pytest.raises(UserError, match=r"not finite .* in stage2\)"):
    toy.begin()


def test_a_teacher_that_begins_to_say_nan_is_logged():
  toy = small.Small(ofd.Method())
  state, frozen = toy.begin()
  state = toy.round(state, {**frozen, "teacher": broken()})
  assert [float(number) for number in state.metrics["train_teacher_finite"]] == [0, 8]


# A phase.


def curve(method, rounds=24, **changes):
  """What the loss's terms are, round by round."""
  optimizer = Optimizer("adam", learning_rate=0.02, weight_decay=0.0, schedule="constant")
  given = {"teacher": start.fresh(WIDE, jax.random.key(5))}
  settings = {"networks": NETWORKS, "given": given, "optimizer": optimizer, "rounds": rounds}
  toy = small.Small(method, **settings | changes)
  state, frozen = toy.begin()
  found = []
  for _ in range(rounds):
    state = toy.round(update.zero_metrics(toy.program, state), frozen)
    found.append({name: float(total / n) for name, (total, n) in state.metrics.items()})
  return found, state


@pytest.mark.parametrize(
  ("name", "variance"),
  [*((name, "none") for name in METHODS), *(("ofd", v) for v in features.VARIANCES[1:])],
)
def test_a_phase_learns(name, variance):
  found, state = curve(METHODS[name](variance=variance))
  means = lambda rows, term: np.mean([row[term] for row in rows])  # noqa: E731
  for term in {"loss", "feature", "variance"} & found[0].keys():
    if (variance, term) != ("views", "variance"):  # 0 for a student that says one thing
      assert means(found[-4:], term) < 0.9 * means(found[:4], term), term
  assert found[-1]["train_teacher_finite"] == 1
  assert set(state.roles) == {"student"} | ({"connector"} if name != "attention" else set())


def test_without_its_terms_it_is_kd():
  method = ofd.Method(weight=0.0, alpha=0.9)
  (a, _), (b, _) = (small.Small(m, small.rows(16, 6)).play(3) for m in (method, kd.Method()))
  small.close(a.roles["student"], b.roles["student"], rtol=1e-5)


@pytest.mark.parametrize("method", [ofd.Method(variance="moments"), attention.Method()])
def test_targets_kept_train_as_targets_made(method):
  kept, made = (small.Small(method, small.rows(20, 8), cached=c) for c in (True, False))
  (a, _), (b, _) = kept.play(5), made.play(5)
  assert "targets" in kept.stream.source(0) and "targets" not in made.stream.source(0)
  small.close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variance", ["residual", "moments", "views"])
def test_eight_devices_are_one(variance):
  method = ofd.Method(variance=variance)
  toys = [
    small.Small(method, small.rows(32, 8), batch=16, devices=d, augment=Augment(flip=True, crop=1))
    for d in (1, 8)
  ]
  (a, _), (b, _) = (toy.play(6) for toy in toys)
  small.close(a.roles, b.roles, rtol=1e-3, atol=1e-3)
  small.close(a.metrics, b.metrics, rtol=1e-3, atol=1e-3)


def test_agreement_weighs_the_distance_too():
  method = agreement.Method(base=ofd.Method(variance="residual"))
  toy = small.Small(method, small.rows(16, 12))
  state, frozen = toy.begin()
  variables = toy.program.bind({**frozen, **state.roles})
  memory = {**state.memory, "keep": jnp.arange(16) % 2 == 0}
  seen, memory = method.batch(jax.random.key(0), variables, memory, batch(), jnp.int32(0))
  targets = method.targets(variables, seen, None)
  terms, _ = method.loss("student", variables, memory, seen, targets, jax.random.key(1), 0)
  for term in ("feature", "variance"):
    assert terms[term][1].tolist() == [1, 0] * 4
  toy.round(state, frozen)


def test_a_phase_goes_on_from_its_checkpoint(tmp_path):
  make = lambda: small.Small(ofd.Method(variance="views"), augment=Augment(flip=True))  # noqa: E731
  whole = make().train(tmp_path)
  shutil.rmtree(tmp_path / "6")
  assert digest(make().train(tmp_path)) == digest(whole)
