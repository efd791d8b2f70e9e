"""What does a grid cost beside its own work?

python benchmarks/sweep.py [--threads 2] [WORDS ...]

Runs `experiment=smoke_grid` at real length (2 attacks x 2 ratios x 6 defenses on digits: 24 jobs, WRN-16-1; WORDS are
more overrides) into an empty store, in processes of its own, and says:
  victims   trained ones, of 24 jobs
  total     wall time of the whole command over the sum of the distinct work: the seconds of every stage that was run
            and not taken from the store, as the records have them (measuring and drawing are not in it)
  again     wall time of the same command once more, when all is done
  a job     under joblib with one worker and `force=true`, so that each job runs whole and every stage comes from the
            store: seconds from the first job's start to the last one's end outside of all records' own `seconds`, a job
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from common import arguments, verdict

WORDS = ("-m", "experiment=smoke_grid", "trainer=auto", "model=wrn16_1")


def run(cache: Path, folder: Path, words: list[str]) -> float:
    """Wall seconds of the command line."""
    env = {**os.environ, "BACKDOOR_CACHE": str(cache), "CI": "true"}
    started = time.perf_counter()
    command = [sys.executable, "-m", "backdoor", *WORDS, f"hydra.sweep.dir={folder}", *words]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return time.perf_counter() - started


def records(folder: Path) -> list[dict[str, Any]]:
    """Every job's result.json."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*/result.json"))]


def distinct_work(found: list[dict[str, Any]]) -> float:
    """Seconds of all stages that were run."""
    return sum(stage["seconds"] for record in found for stage in record["stages"] if not stage["stored"])


def between_jobs(found: list[dict[str, Any]]) -> float:
    """Seconds a job outside of the records, from the first start to the last end; starts are whole seconds."""
    begun = sorted((datetime.fromisoformat(record["started"]).timestamp(), record["seconds"]) for record in found)
    first, (last, spent) = begun[0][0], begun[-1]
    return (last + spent - first - sum(seconds for _, seconds in begun)) / (len(begun) - 1)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("words", nargs="*", help="more overrides of the sweep")
    args = parser.parse_args()
    if args.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(args.threads)
    with tempfile.TemporaryDirectory() as place:
        cache, folder = Path(place, "cache"), Path(place, "sweep")
        total = run(cache, folder, args.words)
        found = records(folder)
        trained = len(list(cache.glob("victim/*/artifact.json")))
        work = distinct_work(found)
        print(f"victims  {trained} trained for {len(found)} jobs")
        ratio = total / work
        print(f"total    {total:7.1f} s, distinct work {work:.1f} s: {ratio:.2f}x", end=" ")
        print(f"(target 1.3x: {verdict(ratio, 1.3, at_least=False)})")
        again = run(cache, folder, args.words)
        print(f"again    {again:7.1f} s (target 5 s: {verdict(again, 5, at_least=False)})")
        own = ["force=true", "hydra/launcher=joblib", "hydra.launcher.workers=1"]
        run(cache, Path(place, "forced"), [*args.words, *own])
        gap = between_jobs(records(Path(place, "forced")))
        print(f"a job    {gap:7.2f} s (target 1 s: {verdict(gap, 1, at_least=False)})")


if __name__ == "__main__":
    main()
