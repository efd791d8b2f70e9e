"""Activation Clustering."""

from backdoor.defenses.ac.method import activation_clusters

__all__ = ["activation_clusters"]
