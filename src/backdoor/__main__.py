"""`python -m backdoor`."""

from __future__ import annotations

from backdoor.cli.main import main

if __name__ == "__main__":
    main()
