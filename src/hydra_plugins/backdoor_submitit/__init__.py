"""This package's launcher for a Slurm cluster, where Hydra looks for plugins."""
