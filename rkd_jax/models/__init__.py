"""Architectures, one file each (`class Model`), behind the one contract of `network.py`."""
