"""Does a sweep that is killed again and again end with the table of one that was left alone?

python benchmarks/kills.py [--kills 10] [--seed 0] [--launcher joblib]

A sweep of 12 jobs on digits (2 attacks x 2 ratios x 3 defenses) runs once undisturbed. Then, into another store, it is
started, killed with SIGKILL at a random moment of its life, all of its processes at once, and started again, --kills
times, and the last time left alone. Every number of every record but times must be the same, bit for bit.
Exits with 1 if it is not.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import arguments

WORDS = (
    *("-m", "experiment=smoke_grid", "trainer=auto", "trainer.checkpoint_s=0", "trainer.monitor_images=20"),
    *(
        "attack=badnets,blended",
        "attack.ratio=0.05,0.1",
        "defense=none,ft,abl",
    ),
    *("victim.epochs=6", "progress=false"),
)
TIMES = {"seconds", "started", "stored", "peak_memory", "environment"}


def start(cache: Path, folder: Path, launcher: str) -> subprocess.Popen[str]:
    """The sweep, in a process group of its own."""
    words = [*WORDS, f"hydra/launcher={launcher}", f"hydra.sweep.dir={folder}"]
    env = {**os.environ, "BACKDOOR_CACHE": str(cache), "CI": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "backdoor", *words],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for a sweep that nobody kills."""
    said = process.communicate()[0]
    if process.returncode:
        sys.exit(f"exit status {process.returncode}: {said}")


def without_times(value: Any) -> Any:
    """The same without what a clock or a machine decides."""
    if isinstance(value, dict):
        return {name: without_times(part) for name, part in value.items() if name not in TIMES}
    return [without_times(part) for part in value] if isinstance(value, list) else value


def table(folder: Path) -> dict[str, Any]:
    """Name of a job -> its stages and final numbers."""
    found = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/result.json")}
    return {name: without_times({key: record[key] for key in ("stages", "final")}) for name, record in found.items()}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--launcher", default="joblib")
    args = parser.parse_args()
    draw = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as place:
        begun = time.perf_counter()
        finish(start(Path(place, "calm"), Path(place, "undisturbed"), args.launcher))
        alone = time.perf_counter() - begun
        expected = table(Path(place, "undisturbed"))
        print(f"undisturbed: {len(expected)} jobs in {alone:.0f} s", flush=True)
        killed = Path(place, "killed")
        for number in range(args.kills):
            process = start(Path(place, "cache"), killed, args.launcher)
            after = draw.uniform(2, max(4.0, 1.5 * alone / args.kills + 8))
            try:
                process.wait(after)
                ended = f"ended before {after:.1f} s"
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                ended = f"killed after {after:.1f} s"
            print(f"{number + 1:>3}: {ended}, {len(table(killed))} of {len(expected)} jobs done", flush=True)
        finish(start(Path(place, "cache"), killed, args.launcher))
        found = table(killed)
    differ = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    print(f"{args.kills} kills: " + (f"{', '.join(differ)} differ" if differ else "the same table"))
    sys.exit(bool(differ))


if __name__ == "__main__":
    main()
