"""`python -m backdoor.plan -m attack=badnets,blended ...`: what a command would train, and for how long."""

from __future__ import annotations

import sys

from backdoor.sweep.forecast import run


def main() -> None:
    """Exits with 0 or 2 (the user's mistake)."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
