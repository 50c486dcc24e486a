"""Distil a small student that can be trusted from a teacher that cannot."""

__version__ = "0.1.0"
