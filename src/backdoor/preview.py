"""`python -m backdoor.preview attack=blended`: what an attack's triggers look like, without training a victim."""

from __future__ import annotations

import sys

from backdoor.cli.main import run_command


def main() -> None:
    """Exits with 0, 2 (the user's mistake) or 130 (Ctrl-C), as `python -m backdoor` does."""
    sys.exit(run_command("backdoor.experiment.appearance", "preview"))


if __name__ == "__main__":
    main()
