"""What a phase costs."""

from rkd_jax import spent


def test_what_earlier_sittings_took_counts(tmp_path, monkeypatch):
  clock = iter((0.0, 5.0, 100.0, 102.0, 200.0, 201.0))
  monkeypatch.setattr(spent.time, "monotonic", lambda: next(clock))
  path = tmp_path / "spent.json"
  spent.Spent(path, 0).save()  # 5 s, then it is stopped
  assert spent.Spent(path, 40).seconds() == 7.0
  assert spent.Spent(path, 0).seconds() == 1.0  # its checkpoint was lost: begun anew


def test_peak_memory_is_in_bytes():
  peak = spent.peak_memory()
  assert peak["host"] > 50e6 and (peak["device"] is None or peak["device"] >= 0)
