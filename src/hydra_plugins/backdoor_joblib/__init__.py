"""This package's launcher for several processes, where Hydra looks for plugins."""
