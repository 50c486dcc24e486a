"""RobustKD: whatever the base asks of the teacher, it hears the detoxified one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from rkd_jax.errors import UserError
from rkd_jax.methods import agreement, attention, consistency, detox, kd, ofd, robustkd
from rkd_jax.setup import make_method

DETOX = detox.Method(cap=0.5, start="random")


def mask(seed=5):
  """A mask that changes what the teacher says."""
  toy = small.Small(DETOX, small.rows(16), given={"teacher": small.network(3)})
  found = toy.begin()[0].roles["mask"]["params"]
  return jax.tree.map(lambda leaf: 3 * leaf, jax.device_get(found))


def toy(method, **changes):
  given = {"teacher": small.network(3), "mask": mask()} | changes.pop("given", {})
  return small.Small(method, small.rows(16, 6), given=given, **changes)


def edited():
  """The teacher, with the change put in by hand: logits and features of all 16 images."""
  images, change = jnp.float32(small.rows(16).image) / 255, mask()

  def edit(stage, tensor):
    return tensor + 0.5 * change[stage]["pattern"][None]

  network, variables = small.tiny.network(), small.network(3)
  plain = network.apply(variables, images, train=False)[0]
  return plain, network.apply(variables, images, train=False, edit=edit)[0], images


@pytest.mark.parametrize("base", [kd.Method(), ofd.Method(), attention.Method()])
def test_its_targets_are_the_detoxified_teachers(base):
  plain, changed, images = edited()
  assert np.abs(plain.logits - changed.logits).max() > 0.1
  made = toy(robustkd.Method(base=base, detox=DETOX))
  variables = made.program.bind(made.begin()[1])
  batch = {"image": images, "label": jnp.zeros(16, int), "index": jnp.arange(16)}
  targets = made.method.targets(variables, batch, None)
  if isinstance(base, kd.Method) and not hasattr(base, "tensor"):
    targets = {"logits": targets, "features": {}}
  np.testing.assert_allclose(targets["logits"], changed.logits, rtol=1e-4, atol=1e-5)
  for stage, feature in targets["features"].items():
    expected = getattr(changed, base.tensor)[stage]
    np.testing.assert_allclose(feature, expected, rtol=1e-4, atol=1e-5)


def test_plug_ins_around_it_hear_the_detoxified_teacher_too():
  _, changed, images = edited()
  inner = robustkd.Method(base=kd.Method(), detox=DETOX)
  around = consistency.Method(base=inner)
  made = toy(around)
  variables = made.program.bind(made.begin()[1])
  batch = {"image": images, "label": jnp.zeros(16, int), "index": jnp.arange(16)}
  targets = around.targets(variables, batch, None)
  np.testing.assert_allclose(targets["answer"], changed.logits, rtol=1e-4, atol=1e-5)

  filtered = toy(agreement.Method(base=inner), given={"witness": small.network(9)})
  state, _ = filtered.begin()
  witness = small.tiny.network().apply(small.network(9), images, train=False)[0].logits.argmax(-1)
  keep = (witness == changed.logits.argmax(-1)) | (filtered.rows.label >= 0)
  np.testing.assert_array_equal(state.memory["keep"], keep)


def test_an_empty_change_is_the_base():
  nothing = detox.Method(cap=0.0)
  given = {"teacher": small.network(3)}
  for base in (kd.Method(), ofd.Method(variance="residual")):
    (a, _) = small.Small(base, small.rows(16, 6), given=given).play(3)
    wrapped = robustkd.Method(base=base, detox=nothing)
    (b, _) = small.Small(wrapped, small.rows(16, 6), given={**given, "mask": mask()}).play(3)
    small.close(a.roles, b.roles, 1e-6, 1e-7)


def test_only_the_base_is_trained_and_targets_may_be_kept():
  method = robustkd.Method(base=ofd.Method(), detox=DETOX)
  assert method.cacheable
  kept, made = toy(method, cached=True), toy(method)
  (a, frozen), (b, _) = kept.play(4), made.play(4)
  assert "targets" in kept.stream.source(0)
  small.close(a, b, 1e-4, 1e-5)
  assert set(a.roles) == {"student", "connector"} and set(frozen) == {"teacher", "mask"}


def test_a_teacher_that_is_not_finite_is_refused_under_any_wrapping():
  method = agreement.Method(base=robustkd.Method(base=ofd.Method(), detox=DETOX))
  broken = jax.tree.map(lambda leaf: leaf * np.float32(np.nan), small.network(3))
  with pytest.raises(UserError, match="not finite"):
    toy(method, given={"teacher": broken, "witness": small.network(9)}).begin()


def test_eight_devices_are_one():
  method = robustkd.Method(base=ofd.Method(variance="moments"), detox=DETOX)
  (a, _), (b, _) = (toy(method, devices=n).play(3) for n in (1, 8))
  small.close(a.roles, b.roles, 2e-3, 1e-4)


def test_variants_fill_what_is_left_open():
  paper = make_method({"name": "robustkd"})
  assert paper == robustkd.Method(base=ofd.Method(), detox=detox.Method())
  chosen = make_method(
    {"name": "robustkd", "base": "attention", "detox": {"name": "detox", "cap": 0.1}}
  )
  assert chosen == robustkd.Method(base=attention.Method(), detox=detox.Method(cap=0.1))
  tuned = robustkd.Method.complete({"variant": "tuned"})
  assert tuned["base"]["variance"] == "views" and len(tuned["base"]["variance_weight"]) > 1
  one = {**tuned["base"], "variance_weight": 10.0}  # its grid is for `selection`
  found = make_method({"name": "robustkd", "variant": "tuned", "base": one})
  assert found.variant == "tuned" and found != paper
  with pytest.raises(UserError, match=r"robustkd\.variant is 'papers'; choose paper or tuned"):
    make_method({"name": "robustkd", "variant": "papers"})
