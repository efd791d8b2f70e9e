"""`python -m backdoor.list [group ...] [--json]`: what there is to choose from."""

from __future__ import annotations

from backdoor.configs.listing import main

if __name__ == "__main__":
    main()
