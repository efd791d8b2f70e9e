"""Artifacts on disk: keys, locks, digests, and safe reading and writing."""
