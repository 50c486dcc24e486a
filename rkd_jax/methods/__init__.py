"""Ways of training, one file each (`class Method`). The contract is in `base.py`."""
