"""From the words of a command line to a config that can be run."""
