"""The stream that reads ahead shows each step the rows that the one in memory shows it."""

import threading
import time

import jax
import numpy as np
import pytest
import small

from rkd_jax.backdoors import badnets
from rkd_jax.data import seeds
from rkd_jax.data.stream import AHEAD, READERS, Rows, Streamed, ahead, order
from rkd_jax.errors import UserError
from rkd_jax.methods import agreement, kd


class Counting:
  """Images that note which of their rows were read."""

  def __init__(self, images):
    self.images, self.shape, self.read = images, images.shape, []

  def __len__(self):
    return len(self.images)

  def __getitem__(self, rows):
    self.read.append(np.asarray(rows).tolist())
    return self.images[rows]


def images(size=10, side=2):
  return np.arange(size * side * side, dtype=np.uint8).reshape(size, side, side, 1)


def host(tree):
  return jax.tree.map(np.asarray, tree)


def streamed(size=10, batch=3, kind=None, read=None, **kwargs):
  rows = Rows(images(size) if read is None else read, np.arange(size, dtype=np.int32) % 3, kind)
  return Streamed(rows, batch, 5, host, host, **kwargs)


@pytest.mark.parametrize("step", [0, 1, 2, 3, 7, 100])
def test_a_batch_is_a_slice_of_the_epochs_permutation(step):
  epoch, k = divmod(step, 3)
  made = streamed()
  source = made.source(step)
  made.close()
  wanted = seeds.rng(5, "order", epoch).permutation(10)[3 * k : 3 * k + 3]
  np.testing.assert_array_equal(source["rows"]["index"], wanted)
  np.testing.assert_array_equal(source["rows"]["image"], images()[wanted])
  np.testing.assert_array_equal(source["rows"]["label"], wanted % 3)
  assert source["epoch"] == epoch and source["seed"] == 5 and "kind" not in source["rows"]


def test_opens_at_any_step_and_reads_each_batch_of_a_sequence_once():
  read = Counting(images())
  made = streamed(read=read)
  for step in (11, 0, 1, 2, 3):
    epoch, k = divmod(step, 3)
    np.testing.assert_array_equal(made.source(step)["rows"]["index"], order(5, epoch, 10, 3)[k])
  made.close()
  for step in range(4):  # threads read ahead, in whatever order, but none of them twice
    assert read.read.count(order(5, step // 3, 10, 3)[step % 3].tolist()) == 1
  assert len(read.read) <= 2 * (AHEAD + READERS) + 5


def test_crops_have_the_size_of_the_images():
  wide = np.random.default_rng(0).integers(0, 256, (10, 6, 8, 3), np.uint8)
  made = streamed(read=wide, resized_crop=0.3)
  rows = made.source(0)["rows"]
  made.close()
  assert rows["image"].shape == (3, 6, 8, 3)
  assert (rows["image"] != wide[rows["index"]]).any()


def test_the_trigger_and_what_is_added_travel_with_every_step():
  kinds = np.arange(10, dtype=np.int8) % 3
  made = streamed(kind=kinds, backdoor="trigger")
  made.add(targets=7)
  source = made.source(4)
  made.close()
  assert (source["backdoor"], source["targets"]) == ("trigger", 7)
  np.testing.assert_array_equal(source["rows"]["kind"], kinds[source["rows"]["index"]])


def test_one_pass_in_order_sees_each_once_and_says_what_is_padding():
  passes = list(streamed(7, 3).in_order(4))
  assert [s["rows"]["index"].tolist() for s in passes] == [[0, 1, 2, 3], [4, 5, 6, 6]]
  assert [s["mask"].tolist() for s in passes] == [[1, 1, 1, 1], [1, 1, 1, 0]]
  assert all(s["size"] == 7 and s["epoch"] == 0 for s in passes)


@pytest.mark.parametrize("hosts", [2, 3])
def test_the_hosts_shares_make_up_the_batch(hosts):
  whole, parts = streamed(12, 6), [streamed(12, 6, share=(p, hosts)) for p in range(hosts)]
  for step in range(4):
    shares = [part.source(step)["rows"] for part in parts]
    for name, wanted in whole.source(step)["rows"].items():
      np.testing.assert_array_equal(np.concatenate([s[name] for s in shares]), wanted)
  for one in (whole, *parts):
    one.close()
  with pytest.raises(UserError, match="batch of 6 cannot be shared by 4 hosts"):
    streamed(12, 6, share=(0, 4))


def test_an_error_is_raised_where_its_turn_comes_and_threads_end():
  def read(number):
    if number == 3:
      raise UserError("row 3 is broken")
    return number

  before = threading.active_count()
  reader = ahead(read, 1)
  assert [next(reader), next(reader)] == [1, 2]
  with pytest.raises(UserError, match="row 3"):
    next(reader)
  reader.close()
  deadline = time.monotonic() + 5
  while threading.active_count() > before and time.monotonic() < deadline:
    time.sleep(0.01)
  assert threading.active_count() <= before and READERS >= 1


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("cached", [False, True])
def test_trains_as_from_memory(devices, cached):
  kinds = (np.arange(16) % 5 == 1).astype(np.int8)
  trigger = badnets.Backdoor(size=2)
  made = {
    streamed: small.Small(
      kd.Method(), small.rows(16, 16, kinds), devices=devices, cached=cached, backdoor=trigger,
      streamed=streamed,
    )
    for streamed in (False, True)
  }  # fmt: skip
  states = {streamed: phase.play(5)[0] for streamed, phase in made.items()}
  made[True].stream.close()
  small.close(states[True].roles, states[False].roles, rtol=1e-5, atol=1e-6)


def test_surveys_as_from_memory():
  method = agreement.Method(base=kd.Method())
  kept = []
  for streamed in (False, True):
    phase = small.Small(method, small.rows(20, 15), streamed=streamed)
    kept.append(host(phase.begin()[0].memory))
    phase.stream.close()
  jax.tree.map(np.testing.assert_array_equal, *kept)


def test_a_phase_that_stops_goes_on_to_the_same_bytes(tmp_path):
  def train(directory, rounds):
    phase = small.Small(kd.Method(), rounds=6, streamed=True)
    if rounds < 6:
      state = phase.play(rounds)[0]
      checkpoints = small.checkpoint.Checkpoints(directory, warn=print)
      checkpoints.save(rounds, state)
      checkpoints.close()
      phase.stream.close()
      return None
    state = phase.train(directory)
    phase.stream.close()
    return host(state.roles)

  whole = train(tmp_path / "whole", 6)
  train(tmp_path / "cut", 3)
  jax.tree.map(np.testing.assert_array_equal, train(tmp_path / "cut", 6), whole)
