"""Spectral Signatures."""

from backdoor.defenses.spectral.method import spectral_signatures

__all__ = ["spectral_signatures"]
