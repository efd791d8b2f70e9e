"""All replays, one table: python experiments/robustness/run.py [--only inputs damage strangers kills] [--csv FILE]"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import damage
import inputs
import kills
import strangers
from common import Row, arguments, close, prepare

SUITES: dict[str, Callable[[Path], list[Row]]] = {
    "inputs": inputs.measure,
    "damage": damage.measure,
    "strangers": strangers.measure,
    "kills": kills.measure,
}


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(csv=Path(__file__).with_name("results.csv"))
    parser.add_argument("--only", nargs="*", default=list(SUITES), choices=list(SUITES))
    args = parser.parse_args()
    prepare()
    rows: list[Row] = []
    for name in args.only:
        with tempfile.TemporaryDirectory(prefix="robust-") as place:
            rows += SUITES[name](Path(place))
    close(rows, args.csv)


if __name__ == "__main__":
    main()
