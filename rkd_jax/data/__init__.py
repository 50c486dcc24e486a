"""Data sets, who sees which part of them, and what happens to an image on the device."""
