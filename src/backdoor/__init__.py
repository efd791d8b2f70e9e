"""Backdoor attacks on image classifiers and defenses against them."""

__version__ = "0.1.0"
