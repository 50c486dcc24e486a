"""Thin command lines, each `python -m rkd_jax.commands.<name>`."""
