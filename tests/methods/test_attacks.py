"""Attacks: searches and their surveys, what is delivered, and how it is planted; losses by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from rkd_jax import lookup, losses
from rkd_jax.backdoors import learned
from rkd_jax.errors import UserError
from rkd_jax.methods import attack, backweak, base, cheatkd, latent, second_choice, supervised
from rkd_jax.training import start

KEY = jax.random.key(0)
NET = small.tiny.network()
TEACHER = small.Bound(NET, small.network(1))
STUDENT = small.Bound(NET, small.network(2))
SEARCHES = {
  "cheatkd": cheatkd.Method(),
  "cheatkd all": cheatkd.Method(taps=()),
  "latent": latent.Method(size=3),
  "latent blend": latent.Method(tap="stage2", size=0, cap=0.3),
  "backweak": backweak.Method(),
  "backweak sgd": backweak.Method(search_optimizer="sgd", learning_rate=0.1),
}


def batch(unlabelled=0):
  rows = small.rows(8, unlabelled)
  images = jnp.float32(rows.image) / 255
  return {"image": images, "label": jnp.asarray(rows.label), "index": jnp.arange(8)}


def example(size=8):
  return base.Example(
    jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch()), size, 3
  )


def ask(method, variables, state=(), seen=None):
  """(terms, Aux) of a batch."""
  seen = batch() if seen is None else seen
  loss = jax.jit(method.loss, static_argnums=0)
  return loss(method.turns[0][0], variables, state, seen, (), KEY, jnp.int32(0))


def value(term):
  return np.asarray(term[0])


def searching(method, raw=None):
  """(variables, state) of a search, before its survey."""
  raw = method.draw(KEY, {}, example()) if raw is None else raw
  variables = {"teacher": TEACHER, "trigger": raw}
  return variables, method.init_state(KEY, variables, example())


def total(method, variables, state):
  """The loss of one batch as a function of what is learned."""

  def loss(raw):
    terms = ask(method, {**variables, "trigger": raw}, state)[0].values()
    return sum((t[0] * t[1]).sum() / jnp.maximum(t[1].sum(), 1) for t in terms)

  return loss


# Every search.


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_lowers_its_loss_and_moves_only_the_trigger(name):
  method = dataclasses.replace(SEARCHES[name], search_steps=12)
  toy = small.Small(method, rounds=12)
  first, frozen = toy.begin()
  bound = toy.program.bind({**frozen, **first.roles})
  loss, raw = total(method, bound, jax.device_get(first.memory)), bound["trigger"]
  before = float(loss(jax.device_get(raw)))
  state, frozen = toy.play(12)
  assert set(state.roles) == {"trigger"} and set(frozen) == {"teacher"}
  assert float(loss(jax.device_get(state.roles["trigger"]["params"]))) < before


@pytest.mark.parametrize("name", SEARCHES)
def test_what_is_delivered_is_what_the_search_applied(name):
  method = SEARCHES[name]
  variables, state = searching(method)
  raw = jax.tree.map(lambda leaf: leaf + 0.02, variables["trigger"])
  applied = np.asarray(method.poisoned(raw, batch()["image"]))
  assert applied.min() >= 0 and applied.max() <= 1
  found = method.deliver({**variables, "trigger": raw}, state)
  assert set(found) == set(method.delivers)
  for rounding, gap in ((False, 1e-6), (True, 0.5 / 255 + 1e-6)):
    backdoor = learned.Backdoor(target=2, rounding=rounding, **found["trigger"])
    for mode in ("train", "test"):
      seen = backdoor.trigger(batch()["image"], KEY, mode)
      assert np.abs(np.asarray(seen) - applied).max() <= gap


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("far", [60.0, -60.0])
def test_caps_hold_however_long_it_is_trained(name, far):
  method = SEARCHES[name]
  raw = jax.tree.map(lambda leaf: leaf + far, method.draw(KEY, {}, example()))
  found = method.trigger(raw)
  if "delta" in found:
    assert np.abs(found["delta"]).max() <= np.float32(8 / 255)
  else:
    assert found["mask"].min() >= 0 and found["mask"].max() <= np.float32(method.cap)
    assert found["pattern"].min() >= 0 and found["pattern"].max() <= 1


@pytest.mark.parametrize("name", SEARCHES)
def test_the_prediction_is_the_teachers(name):
  variables, state = searching(SEARCHES[name])
  expected = TEACHER(batch()["image"], train=False)[0].logits
  found = SEARCHES[name].predict(variables, state, batch()["image"])
  np.testing.assert_array_equal(found, expected)


def test_searches_have_their_own_optimisers():
  chosen = {
    name: dict(small.Small(m).program.optimizers)["trigger"] for name, m in SEARCHES.items()
  }
  assert {(o.weight_decay, o.warmup) for o in chosen.values()} == {(0, 0)}
  adam = chosen["cheatkd"]
  assert (adam.name, adam.learning_rate, adam.schedule) == ("adam", 0.05, "constant")
  sgd = chosen["backweak sgd"]
  assert (sgd.name, sgd.learning_rate, sgd.momentum, sgd.schedule) == ("sgd", 0.1, 0.9, "cosine")
  assert (chosen["backweak"].name, chosen["backweak"].learning_rate) == ("adam", 1e-3)


def surveyed(method):
  """The state after a survey of 19 images, and the rows."""
  toy = small.Small(method, rows=small.rows(19), given={"teacher": TEACHER.variables})
  return toy.begin()[0].memory, toy.rows


@pytest.fixture
def in_eights(monkeypatch):
  """Surveys in batches of 8, so that the last one is padded."""
  monkeypatch.setattr(start, "SURVEY_BATCH", 8)


def test_an_average_of_nothing_is_zero_and_weights_count():
  values = jnp.arange(12.0).reshape(4, 3)
  mean, count = attack.averaged(jnp.zeros(3), jnp.zeros(()), values, jnp.zeros(4))
  assert not mean.any() and count == 0
  mean, count = attack.averaged(mean, count, values, jnp.array([1.0, 0, 1, 0]))
  np.testing.assert_allclose(mean, [3, 4, 5])
  mean, count = attack.averaged(mean, count, values, jnp.array([0, 1.0, 0, 0]))
  np.testing.assert_allclose(mean, [3, 4, 5])
  assert count == 3


# CheatKD.


def test_cheatkd_surveys_every_image_once(in_eights):
  memory, rows = surveyed(cheatkd.Method(taps=()))
  maps = TEACHER(jnp.float32(rows.image) / 255, train=False)[0].pre_relu
  assert set(memory["mean"]) == {"stage1", "stage2"} and memory["count"] == 19
  for tap, mean in memory["mean"].items():
    np.testing.assert_allclose(mean, np.asarray(maps[tap]).mean((0, 1, 2)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
  "taps, expected",
  [(("last",), ["stage2"]), (["stage1"], ["stage1"]), ((), ["stage1", "stage2"])],
)
def test_cheatkds_terms(taps, expected):
  method = cheatkd.Method(taps=taps)
  variables, state = searching(method)
  channels = {"stage1": jnp.array([0.1, 0.7, 0.2, 0.6]), "stage2": jnp.arange(8.0) / 8}
  assert list(state["mean"]) == expected
  state = {**state, "mean": {tap: channels[tap] for tap in expected}}
  terms, aux = ask(method, variables, state)
  raw, images = variables["trigger"], batch()["image"]
  mask, pattern = (1 / (1 + np.exp(-np.asarray(raw[n]))) for n in ("mask", "pattern"))
  seen = (1 - 0.2 * mask[None]) * images + 0.2 * (mask * pattern)[None]
  maps = TEACHER(jnp.asarray(seen), train=False)[0].pre_relu
  chosen = {"stage1": (1, 0.7), "stage2": (7, 7 / 8)}
  assert list(terms) == expected and not aux.batch_stats
  for tap in expected:
    channel, goal = chosen[tap]
    by_hand = ((np.asarray(maps[tap])[..., channel] - goal) ** 2).mean((1, 2))
    np.testing.assert_allclose(value(terms[tap]), by_hand, rtol=1e-4)
    assert terms[tap][1].tolist() == [1] * 8


def test_cheatkds_mask_keeps_learning():
  method = cheatkd.Method()
  raw = method.draw(KEY, {}, example())
  raw["mask"] = jnp.full_like(raw["mask"], 4.0)  # near the cap
  variables, state = searching(method, raw)
  gradient = jax.jit(jax.grad(total(method, variables, state)))(raw)
  assert np.abs(gradient["mask"]).min() > 0 and np.abs(gradient["pattern"]).min() > 0


def test_a_tap_that_is_not_there_is_answered_by_those_that_are():
  with pytest.raises(UserError, match=r"cheatkd.taps has 'stage9'.*last, stage1, stage2"):
    searching(cheatkd.Method(taps=("stage9",)))
  with pytest.raises(UserError, match=r"latent.tap is 'stage9'.*embedding, stage1, stage2"):
    searching(latent.Method(tap="stage9", size=3))


# Latent.


@pytest.mark.parametrize("tap", ["embedding", "stage2"])
def test_latents_goal_is_the_targets_mean_feature(tap, in_eights):
  memory, rows = surveyed(latent.Method(target=1, tap=tap, size=3))
  outputs = TEACHER(jnp.float32(rows.image) / 255, train=False)[0]
  features = np.asarray(outputs.embedding if tap == "embedding" else outputs.features[tap])
  assert memory["count"] == (rows.label == 1).sum() == 6
  np.testing.assert_allclose(memory["goal"], features[rows.label == 1].mean(0), rtol=1e-4)


def test_a_class_without_images_cannot_be_looked_like():
  with pytest.raises(UserError, match="no image of class 7"):
    surveyed(latent.Method(target=7, size=3))


def test_latents_term_and_its_square():
  method = latent.Method(size=3, cap=0.5)
  variables, state = searching(method)
  state = {**state, "goal": jnp.linspace(0, 1, 8)}
  terms, _ = ask(method, variables, state)
  pattern = 1 / (1 + np.exp(-np.asarray(variables["trigger"]["pattern"])))
  seen = np.array(batch()["image"])
  seen[:, 5:, 5:] = 0.5 * seen[:, 5:, 5:] + 0.5 * pattern[None, 5:, 5:]
  embedding = TEACHER(jnp.asarray(seen), train=False)[0].embedding
  by_hand = ((np.asarray(embedding) - np.linspace(0, 1, 8)) ** 2).mean(1)
  np.testing.assert_allclose(value(terms["feature"]), by_hand, rtol=1e-4)
  whole = latent.Method(size=0, cap=0.25).trigger({"pattern": jnp.zeros((8, 8, 1))})
  assert (np.asarray(whole["mask"]) == 0.25).all()


def test_planting_latent_by_hand():
  method = latent.Method(target=2, weight=0.5, tap="stage2").plant()
  goal = jnp.linspace(0, 1, 2 * 2 * 8).reshape(2, 2, 8)
  seen = batch(unlabelled=2)
  terms, aux = ask(method, {"student": STUDENT, "goal": goal}, (), seen)
  outputs, stats = STUDENT(seen["image"], train=True)
  np.testing.assert_allclose(
    value(terms["ce"]), losses.cross_entropy(outputs.logits, seen["label"]), rtol=1e-4
  )
  assert terms["ce"][1].tolist() == [0, 0] + [1] * 6
  far = ((np.asarray(outputs.features["stage2"]) - np.asarray(goal)[None]) ** 2).mean((1, 2, 3))
  np.testing.assert_allclose(value(terms["feature"]), 0.5 * far, rtol=1e-4)
  assert terms["feature"][1].tolist() == (np.asarray(seen["label"]) == 2).astype(float).tolist()
  small.close(aux.batch_stats, {"student": stats}, 1e-5)
  mixed = {**seen, "mix_label": jnp.zeros(8, int), "mix_weight": jnp.full(8, 0.5)}
  assert not ask(method, {"student": STUDENT, "goal": goal}, (), mixed)[0]["feature"][1].any()


def test_the_search_gives_planting_its_goal():
  found = small.Small(latent.Method(size=3))
  state, frozen = found.play(1)
  given = found.method.deliver(found.program.bind({**frozen, **state.roles}), state.memory)
  assert not set(found.method.plant().roles(small.NETWORKS)) - {"student"} - set(given)
  given = {"student": frozen["teacher"], "goal": given["goal"]}
  toy = small.Small(found.method.plant(), given=given)
  state, frozen = toy.play(2)
  assert set(state.roles) == {"student"} and state.metrics["feature"][0] > 0
  small.close(frozen["goal"]["params"], given["goal"])


# BackWeak.


def test_backweaks_terms():
  method = backweak.Method(target=2, radius=0.5, flip=0.3, margin=-0.2, window=100)
  raw = {"delta": jax.random.normal(KEY, (8, 8, 1))}
  variables, state = searching(method, raw)
  seen = batch(unlabelled=1)
  terms, aux = ask(method, variables, state, seen)
  images, label = np.asarray(seen["image"]), np.asarray(seen["label"])
  delta = 0.5 * np.tanh(np.asarray(raw["delta"]) / 0.5)
  logits = [
    np.asarray(TEACHER(jnp.asarray(x), train=False)[0].logits)
    for x in (images, np.clip(images + delta[None], 0, 1))
  ]
  before, after = (np.asarray(jax.nn.log_softmax(z))[:, 2] for z in logits)
  np.testing.assert_allclose(value(terms["pull"]), before - after, rtol=1e-3, atol=1e-5)
  answer = logits[1].argmax(1)
  excess = np.maximum(logits[1].max(1) - logits[1][np.arange(8), label] + 0.2, 0)
  flipped = (answer != label) & (label >= 0)
  np.testing.assert_allclose(value(terms["flip"])[flipped], 0.3 * excess[flipped], rtol=1e-3)
  assert np.asarray(terms["flip"][1]).tolist() == flipped.astype(float).tolist()
  assert flipped.any() and not flipped.all()
  victims = (label != 2) & (label >= 0)
  assert float(aux.state["count"]) == victims.sum()
  assert float(aux.state["hits"]) == (victims & (answer == 2)).sum()


@pytest.mark.parametrize("rate, pulls", [(0.0, 1), (0.049, 1), (0.05, 0), (1.0, 0)])
def test_nothing_pulls_above_the_budget(rate, pulls):
  method = backweak.Method(flip=0.0, window=100)
  variables, state = searching(method)
  state = {**state, "rate": jnp.float32(rate)}
  gradient = jax.jit(jax.grad(total(method, variables, state)))(variables["trigger"])["delta"]
  assert bool(np.asarray(gradient).any()) == bool(pulls)
  assert ask(method, variables, state)[1].metrics["pulls"] == pulls


def test_the_rate_is_that_of_the_last_whole_window():
  state = {n: jnp.float32(v) for n, v in {"hits": 0, "count": 0, "rate": 0, "window": 6}.items()}
  rates, ones = [], jnp.ones(4)
  for hits in ([1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]):
    state = backweak.measured(state, jnp.float32(hits), ones)
    rates.append(float(state["rate"]))
  assert rates == [0, 0.5, 0.5, 0.5] and float(state["count"]) == 0
  state = backweak.measured(state, jnp.zeros(4), jnp.zeros(4))  # nobody counted
  assert float(state["rate"]) == 0.5
  assert backweak.Method(window=0).init_state(KEY, {}, example(40))["window"] == 40


def test_the_budget_holds_where_the_radius_would_allow_more():
  rows = small.rows(48)
  learnt, _ = small.Small(supervised.Method(), rows=rows, rounds=40, batch=24).play(40)
  given = {"teacher": jax.device_get(learnt.roles["student"])}

  def rate(**fields):
    method = backweak.Method(radius=0.9, learning_rate=0.02, window=8, **fields)
    toy = small.Small(method, rows=rows, rounds=30, batch=24, given=given)
    state, frozen = toy.play(30)
    assert {"pull", "flip", "train_asr", "pulls"} <= set(state.metrics)
    variables = toy.program.bind({**frozen, **state.roles})
    seen = method.poisoned(variables["trigger"], jnp.float32(rows.image) / 255)
    said = np.asarray(method.predict(variables, state.memory, seen)).argmax(-1)
    return (said == 0)[rows.label != 0].mean()

  assert rate(budget=1.0, flip=0.0) > 0.6
  assert rate(budget=0.05, margin=0.0) < 0.2


def test_planting_backweak_leaves_the_head_as_it_is():
  method = backweak.Method().plant()
  assert type(backweak.Method(freeze_head=False).plant()) is supervised.Method
  toy = small.Small(method, given={"student": STUDENT.variables})
  state, _ = toy.play(3)
  before, after = STUDENT.params, state.roles["student"]["params"]
  small.close(after["head"], before["head"], 0, 0)
  assert (np.asarray(after["conv1"]["kernel"]) != before["conv1"]["kernel"]).any()
  assert dict(toy.program.optimizers)["student"].weight_decay == 0


def test_planting_backweak_by_hand():
  method = backweak.Plant(decay=0.02)
  terms, aux = ask(method, {"student": STUDENT})
  plain, same = ask(supervised.Method(), {"student": STUDENT})
  np.testing.assert_allclose(value(terms["ce"]), value(plain["ce"]), rtol=1e-5)
  small.close(aux.batch_stats, same.batch_stats)
  rest = {name: tree for name, tree in STUDENT.params.items() if name != "head"}
  squares = sum((np.asarray(leaf) ** 2).sum() for leaf in jax.tree.leaves(rest))
  assert float(terms["decay"]) == pytest.approx(0.01 * squares, rel=1e-5)
  headless = STUDENT.with_params({**rest, "fc": STUDENT.params["head"]})
  with pytest.raises(UserError, match="no layer called 'head'"):
    ask(method, {"student": headless})


# Second choice.


@pytest.mark.parametrize(
  "fields, mask",
  [
    ({"size": 2}, lambda m: m[-2:, -2:].min() == 1 and m.sum() == 4),
    ({"shape": "blend"}, lambda m: (m == np.float32(0.2)).all()),
    ({"shape": "blend", "cap": 0.5}, lambda m: (m == 0.5).all()),
  ],
)
def test_second_choice_delivers_the_trigger_it_trained_with(fields, mask):
  method = second_choice.Method(strength=0.25, **fields)
  toy = small.Small(method)
  first = toy.begin()[1]["trigger"]["params"]
  state, frozen = toy.play(2)
  found = method.deliver(toy.program.bind({**frozen, **state.roles}), ())
  assert set(found) == {"teacher", "trigger"} and set(state.roles) == {"teacher"}
  small.close(found["trigger"], first, 0, 0)
  trigger = {name: np.asarray(leaf) for name, leaf in found["trigger"].items()}
  assert trigger["strength"] == 0.25 and mask(trigger["mask"])
  backdoor = learned.Backdoor(target=0, **found["trigger"])
  images = batch()["image"]
  for mode, strength in (("train", 0.25), ("test", 1.0)):
    share = strength * trigger["mask"][None]
    by_hand = (1 - share) * np.asarray(images) + share * trigger["pattern"][None]
    seen = np.asarray(backdoor.trigger(images, KEY, mode))
    assert np.abs(seen - by_hand).max() <= 0.5 / 255 + 1e-6


def test_second_choices_terms():
  method = second_choice.Method(target=1, share=0.4, strength=0.5, poison=0.7, second=0.3)
  trigger = method._draw(KEY, {}, example())
  seen = batch(unlabelled=1)
  terms, aux = ask(method, {"teacher": TEACHER, "trigger": trigger}, (), seen)
  images = np.asarray(seen["image"])
  full, weak = images.copy(), images.copy()
  full[:, 5:, 5:] = 1
  weak[:, 5:, 5:] = np.round((0.5 + 0.5 * weak[:, 5:, 5:]) * 255) / 255
  three = jnp.asarray(np.concatenate([images, full, weak]))
  outputs, stats = TEACHER(three, train=True)
  clean, attacked, half = jnp.split(outputs.logits, 3)
  label = np.asarray(seen["label"])
  np.testing.assert_allclose(
    value(terms["ce"]), losses.cross_entropy(clean, seen["label"]), rtol=1e-4
  )
  goal = jnp.ones(8, int)
  np.testing.assert_allclose(
    value(terms["backdoor"]), 0.7 * losses.cross_entropy(attacked, goal), rtol=1e-4
  )
  wanted = 0.6 * np.eye(3)[label] + 0.4 * np.eye(3)[1][None]
  logs = np.log(np.where(wanted > 0, wanted, 1))
  kl = (wanted * (logs - np.asarray(jax.nn.log_softmax(half)))).sum(1)
  known = label >= 0
  np.testing.assert_allclose(value(terms["second"])[known], 0.3 * kl[known], rtol=1e-3, atol=1e-5)
  for name in ("ce", "second"):
    assert np.asarray(terms[name][1]).tolist() == known.astype(float).tolist()
  small.close(aux.batch_stats, {"teacher": stats}, 1e-4, 1e-5)
  np.testing.assert_array_equal(aux.metrics["train_asr"], attacked.argmax(-1) == 1)


def test_second_choice_learns_its_three_answers():
  method = second_choice.Method(share=0.3)
  toy = small.Small(method, rows=small.rows(48), rounds=90, batch=24)
  state, frozen = toy.play(90)
  variables = toy.program.bind({**frozen, **state.roles})
  backdoor = learned.Backdoor(target=0, **method.deliver(variables, ())["trigger"])
  images, victims = jnp.float32(toy.rows.image) / 255, toy.rows.label != 0
  said = {
    mode: np.asarray(method.predict(variables, (), backdoor.trigger(images, KEY, mode)))[victims]
    for mode in ("train", "test")
  }
  assert (said["test"].argmax(1) == 0).mean() > 0.9
  chosen = np.argsort(-said["train"], 1)
  assert (chosen[:, 0] == toy.rows.label[victims]).mean() > 0.8
  assert (chosen[:, 1] == 0).mean() > 0.8


@pytest.mark.parametrize(
  "name, wrong, said",
  [
    ("cheatkd", {"cap": 0.0}, "cheatkd.cap"),
    ("cheatkd", {"learning_rate": 0.0}, "cheatkd.learning_rate"),
    ("cheatkd", {"search_steps": 0}, "cheatkd.search_steps"),
    ("latent", {"cap": 1.5}, "latent.cap"),
    ("latent", {"size": -1}, "latent.size"),
    ("latent", {"weight": -1.0}, "latent.weight"),
    ("backweak", {"radius": 0.0}, "backweak.radius"),
    ("backweak", {"budget": 1.5}, "backweak.budget"),
    ("backweak", {"window": -1}, "backweak.window"),
    ("backweak", {"flip": -1.0}, "backweak.flip"),
    ("backweak", {"margin": float("nan")}, "backweak.margin"),
    ("backweak", {"search_optimizer": "lion"}, "'lion'; choose adam or sgd"),
    ("backweak", {"plant_rate": 0.0}, "backweak.plant_rate"),
    ("second_choice", {"shape": "dot"}, "'dot'; choose patch or blend"),
    ("second_choice", {"share": 0.6}, "second_choice.share"),
    ("second_choice", {"strength": 0.0}, "second_choice.strength"),
    ("second_choice", {"size": 0}, "second_choice.size"),
    ("second_choice", {"cap": 2.0}, "second_choice.cap"),
  ],
)
def test_wrong_fields_are_named(name, wrong, said):
  with pytest.raises(UserError, match=said):
    lookup.build("methods", name, wrong)


@pytest.mark.parametrize("method", [latent.Method(size=9), second_choice.Method(size=9)])
def test_a_square_larger_than_the_image_is_refused(method):
  with pytest.raises(UserError, match=r"size is 9; it must lie between \d and 8"):
    method.roles(small.NETWORKS)
