"""Backdoors with a fixed trigger, one file each (`class Backdoor`); the contract is `base.py`."""
