"""The command line: what `python -m backdoor` does."""
