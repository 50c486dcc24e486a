"""AutoAttack: exactly who can be fooled, whoever is asked with whom, before and after a kill."""

import jax
import jax.numpy as jnp
import linear
import numpy as np
import pytest

from rkd_jax.adversarial import apgd, autoattack, named
from rkd_jax.errors import UserError


def attacked(eps=0.015, norm="linf", apply=None, count=20, **how):
  apply = apply or linear.network()
  images, labels, keys = linear.examples(apply, count)
  found = autoattack.run(autoattack.AutoAttack(eps, norm), apply, images, labels, keys, **how)
  return found, apply, images, np.asarray(labels)


@pytest.fixture(scope="module")
def whole():
  return attacked()


def test_exactly_those_fall_whom_the_radius_reaches(whole):
  found, apply, images, labels = whole
  far = linear.distances(apply, images, labels, "linf")
  assert 3 < (far > 0.015).sum() < 17
  np.testing.assert_array_equal(found.said == labels, far > 0.015)
  np.testing.assert_array_equal(found.by == -1, far > 0.015)
  np.testing.assert_array_equal(apply(jnp.asarray(found.images)).argmax(-1), found.said)
  assert linear.sizes(found.images, images, "linf").max() <= 0.015 + 1e-6


def test_its_stages_are_the_references(whole):
  found = whole[0]
  assert [s["stage"] for s in found.stages] == [
    "apgd-ce", *(f"{kind} {k}" for kind in ("apgd-t", "fab-t") for k in (2, 3, 4, 5)), "square",
  ]  # fmt: skip
  ten = list(autoattack.AutoAttack(0.1).stages(10))
  assert len(ten) == 1 + 9 + 9 + 1 and ten[-1][1].queries == 5000
  assert ten[9][1] == apgd.APGD(eps=0.1, loss="dlr-t", rank=10) and ten[0][1].steps == 100
  assert len(list(autoattack.AutoAttack(0.1).stages(100))) == 20


def test_a_stage_sees_only_who_is_left(whole):
  stages = whole[0].stages
  left = 20
  for stage in stages:
    assert stage["left"] == left and stage["forward"] >= stage["backward"] >= 0
    left -= stage["fooled"]
  assert left == (whole[0].by == -1).sum()
  assert stages[0]["backward"] == 20 * 101 or stages[0]["backward"] == 32 * 101


def test_batches_change_nothing(whole):
  other = attacked(batch=8)[0]
  np.testing.assert_array_equal(other.said, whole[0].said)
  np.testing.assert_array_equal(other.by, whole[0].by)


def test_buckets_are_few_and_fixed():
  sizes = [len(rows) for rows in autoattack._buckets(np.arange(300), 256)]
  assert sizes == [256, 64]
  rows = np.concatenate(list(autoattack._buckets(np.arange(0, 600, 2), 256)))
  assert set(rows) == set(range(0, 600, 2))
  assert [len(r) for r in autoattack._buckets(np.arange(3), 256)] == [8]


def test_it_goes_on_after_a_kill_as_if_there_was_none(whole, tmp_path, monkeypatch):
  file, saved = tmp_path / "attacks" / "a.npz", []
  save = autoattack._save

  def stop_after_three(path, mark, found):
    save(path, mark, found)
    saved.append(found.stages[-1]["stage"])
    if len(saved) == 3:
      raise KeyboardInterrupt

  monkeypatch.setattr(autoattack, "_save", stop_after_three)
  with pytest.raises(KeyboardInterrupt):
    attacked(resume=file)
  rest = attacked(resume=file)[0]
  assert saved == [stage["stage"] for stage in whole[0].stages]  # none twice
  np.testing.assert_array_equal(rest.images, whole[0].images)
  np.testing.assert_array_equal(rest.by, whole[0].by)
  strip = lambda s: {k: v for k, v in s.items() if k != "seconds"}  # noqa: E731
  assert list(map(strip, rest.stages)) == list(map(strip, whole[0].stages))
  assert not list(file.parent.glob("*.part"))


def test_a_file_of_something_else_is_refused(tmp_path):
  file = tmp_path / "a.npz"
  attacked(resume=file)
  with pytest.raises(UserError, match="other images, another network or another attack"):
    attacked(eps=0.02, resume=file)
  file.write_bytes(b"PK nonsense")
  with pytest.raises(UserError, match="damaged"):
    attacked(resume=file)


def test_a_file_that_was_cut_or_changed_is_said_to_be_damaged(tmp_path):
  file, apply = tmp_path / "a.npz", linear.network()
  images, labels, keys = linear.examples(apply, 8)

  def attacked():
    attack = autoattack.Several(0.02, kind="fab-t")
    return autoattack.run(attack, apply, images, labels, keys, resume=file)

  whole, good = attacked(), file.read_bytes()
  for length in range(0, len(good), 97):
    file.write_bytes(good[:length])
    with pytest.raises(UserError, match="damaged"):
      attacked()
  for at in range(0, len(good), 31):  # times of archived files may be anything
    file.write_bytes(good[:at] + bytes([good[at] ^ 8]) + good[at + 1 :])
    try:
      np.testing.assert_array_equal(attacked().images, whole.images)
    except UserError as error:
      assert "damaged" in str(error)


def test_a_file_belongs_to_weights_not_to_what_they_answer_to_the_last_bit(tmp_path):
  """An accelerator may add in another order the next time."""

  def otherwise(weights, images):
    return linear.score(weights, images) * (1 + 1e-6)

  file, apply = tmp_path / "a.npz", linear.network()
  images, labels, keys = linear.examples(apply, 8)
  attack = autoattack.Several(0.02, kind="fab-t")
  first = autoattack.run(attack, apply, images, labels, keys, resume=file)
  same = jax.tree_util.Partial(otherwise, *apply.args)
  again = autoattack.run(attack, same, images, labels, keys, resume=file)
  assert again.stages == first.stages  # with the seconds of then
  other = jax.tree_util.Partial(linear.score, apply.args[0].at[0, 0].add(1e-6))
  with pytest.raises(UserError, match="another network"):
    autoattack.run(attack, other, images, labels, keys, resume=file)


def test_nobody_right_and_nobody_there():
  apply = linear.network()
  images, labels, keys = linear.examples(apply, 20)
  attack = autoattack.AutoAttack(0.01)
  wrong = autoattack.run(attack, apply, images, (labels + 1) % 5, keys)
  assert (wrong.by == 0).all() and all(s["left"] == s["forward"] == 0 for s in wrong.stages)
  np.testing.assert_array_equal(wrong.images, images)
  nothing = autoattack.run(attack, apply, images[:0], labels[:0], keys[:0])
  assert len(nothing.images) == 0 and not nothing.stages


def test_without_a_radius_it_is_the_accuracy_itself():
  found, _, _, labels = attacked(eps=0.0)
  assert (found.said == labels).all()


def some(apply):
  images, labels, _ = linear.examples(linear.network(), 8)
  logits = np.asarray(apply(images))
  return list(autoattack._warned(apply, np.asarray(images), np.asarray(labels), logits, 8))


def test_it_warns_of_probabilities():
  soft = jax.tree_util.Partial(
    lambda w, x: jax.nn.softmax(linear.score(w, x)), linear.network().args[0]
  )
  assert any("probabilities" in text for text in some(soft))
  assert not some(linear.network())


def test_it_warns_of_gradients_that_are_not_there():
  steps = jax.tree_util.Partial(
    lambda w, x: linear.score(w, jnp.round(x * 20) / 20), linear.network().args[0]
  )
  found = some(steps)
  assert any("gradient is 0" in text for text in found)


def test_few_classes():
  found = attacked(apply=linear.network(3))[0]
  assert [s["stage"] for s in found.stages] == ["apgd-ce", "fab-t 2", "fab-t 3", "square"]
  assert any("3 classes" in text for text in found.warnings)


def test_the_targeted_ones_alone():
  apply = linear.network()
  images, labels, keys = linear.examples(apply, 20)
  for name in ("apgd-t", "fab-t"):
    attack = named.make(name, "linf", 0.02)
    assert {s[0].split()[0] for s in attack.stages(5)} == {name}
    far = linear.distances(apply, images, labels, "linf")
    right = apply(attack(apply, images, labels, keys)).argmax(-1) == labels
    np.testing.assert_array_equal(right, far > 0.02)


def test_a_file_of_other_draws_is_refused(tmp_path):
  file, apply = tmp_path / "a.npz", linear.network()
  images, labels, keys = linear.examples(apply, 8)
  attack = autoattack.Several(0.01, kind="fab-t")
  autoattack.run(attack, apply, images, labels, keys, resume=file)
  with pytest.raises(UserError, match="other random keys"):
    autoattack.run(attack, apply, images, labels, keys[::-1], resume=file)


def test_no_two_stages_draw_the_same(monkeypatch):
  apply, seen = linear.network(), []
  images, labels, keys = linear.examples(apply, 8)
  real = apgd.APGD.counted

  def looking(self, apply, images, labels, keys):
    seen.append(np.asarray(jax.random.key_data(keys))[0].tolist())
    return real(self, apply, images, labels, keys)

  monkeypatch.setattr(apgd.APGD, "counted", looking)
  autoattack.run(autoattack.Several(0.001), apply, images, labels, keys)
  assert len(seen) == 4 and len({tuple(key) for key in seen}) == 4
