"""This package's launcher for a Ray cluster, where Hydra looks for plugins."""
