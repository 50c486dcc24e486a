"""The stream: batch k of an epoch is rows k*B.. of permutation(seed, epoch), wherever it opens."""

import jax
import numpy as np
import pytest

from rkd_jax.data import seeds
from rkd_jax.data.stream import Nothing, Resident, Rows, order, padded
from rkd_jax.training import sharding


def rows(size, kind=None):
  images = np.arange(size, dtype=np.uint8).reshape(-1, 1, 1, 1)
  return Rows(images, np.arange(size, dtype=np.int32) % 3, kind)


def stream(size=10, batch=3, seed=5, devices=1, **kwargs):
  mesh = sharding.make_mesh(devices)
  return Resident(rows(size), batch, seed, lambda t: sharding.replicate(mesh, t), **kwargs)


def batch(stream, step):
  table = np.asarray(stream.source(step)["order"])
  return table[step % len(table)]


@pytest.mark.parametrize("step", [0, 1, 2, 3, 7, 100])
def test_a_batch_is_a_slice_of_the_epochs_permutation(step):
  epoch, k = divmod(step, 3)
  permutation = seeds.rng(5, "order", epoch).permutation(10)
  np.testing.assert_array_equal(batch(stream(), step), permutation[3 * k : 3 * k + 3])


def test_opens_at_any_step_in_any_order():
  going, straight = stream(), [batch(stream(), step) for step in range(12)]
  for step in (11, 0, 4, 3, 5, 2, 11):
    np.testing.assert_array_equal(batch(going, step), straight[step])


def test_every_example_once_an_epoch_in_another_order_each_time():
  whole = stream(size=12, batch=4)
  assert whole.steps_per_epoch == 3
  epochs = [np.concatenate([batch(whole, 3 * e + k) for k in range(3)]) for e in range(4)]
  for epoch in epochs:
    assert sorted(epoch) == list(range(12))
  assert len({tuple(e) for e in epochs}) == 4
  assert tuple(epochs[0]) != tuple(np.concatenate([batch(stream(12, 4, 6), k) for k in range(3)]))


def test_the_remainder_is_left_out_and_not_always_the_same():
  left = {tuple(np.setdiff1d(np.arange(10), order(5, e, 10, 3))) for e in range(20)}
  assert all(len(rest) == 1 for rest in left) and len(left) > 3


def test_a_batch_is_never_larger_than_the_data():
  clipped = stream(size=10, batch=64)
  assert (clipped.batch, clipped.steps_per_epoch) == (10, 1)
  assert sorted(batch(clipped, 3)) == list(range(10))


def test_the_order_is_the_same_on_any_number_of_devices():
  one, eight = stream(16, 8), stream(16, 8, devices=8)
  for step in range(5):
    np.testing.assert_array_equal(batch(one, step), batch(eight, step))
  assert len(eight.source(0)["rows"]["image"].sharding.device_set) == 8


def test_rows_are_what_was_given_and_nothing_travels_but_an_order_an_epoch():
  put = []

  def counting(tree):
    put.append(tree)
    return jax.tree.map(np.asarray, tree)

  kinds = np.zeros(10, np.int8)
  made = Resident(rows(10, kinds), 5, 3, counting, backdoor="trigger")
  for step in range(6):
    source = made.source(step)
  assert len(put) == 1 + 3
  assert set(source) == {"seed", "rows", "order", "epoch", "backdoor"}
  assert source["seed"] == 3 and source["epoch"] == 2
  assert set(source["rows"]) == {"image", "label", "kind", "index"}
  made.add(targets=np.ones(3))
  assert "targets" in made.source(7) and "backdoor" not in stream().source(0)


def test_padding_stands_out_of_range():
  found = [p.tolist() for p in padded(7, 3)]
  assert found == [[0, 1, 2], [3, 4, 5], [6, 7, 7]]
  assert [p.tolist() for p in padded(4, 2)] == [[0, 1], [2, 3]]


def test_one_pass_in_order_sees_each_once_and_says_what_is_padding():
  made = stream(7, 3)
  passes = list(made.in_order(4))
  assert [np.asarray(s["order"]).tolist() for s in passes] == [[[0, 1, 2, 3]], [[4, 5, 6, 6]]]
  assert [np.asarray(s["mask"]).tolist() for s in passes] == [[1, 1, 1, 1], [1, 1, 1, 0]]
  assert all(s["size"] == 7 and s["epoch"] == 0 for s in passes)
  assert "mask" not in made.source(0)  # the stream itself is as it was


def test_a_phase_without_data_has_a_seed_and_a_length():
  made = Nothing(8, 5, 9, lambda tree: tree)
  assert (made.size, made.batch, made.steps_per_epoch) == (0, 8, 5)
  assert made.source(3) == {"seed": 9} and made.source(0) is made.source(100)
  assert not list(made.in_order(4))
