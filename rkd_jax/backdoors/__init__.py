"""Backdoors with a fixed trigger, one file each (`class Backdoor`). The contract is in `base.py`."""
