"""Test-time attacks: what a small change of an image makes a network say."""
