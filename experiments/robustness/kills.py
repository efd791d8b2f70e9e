"""Do runs, sweeps and Slurm jobs that are killed again and again end with the numbers of ones that were left alone?

python experiments/robustness/kills.py [--runs 10] [--sweeps 8] [--slurm 4] [--seed 0] [--launcher joblib] [--csv FILE]

Each kind runs once undisturbed. Then, into another store, it is started, ended by a signal at a random moment after its
first training has begun, and started again, up to four times, and the last time left alone. Every number of every
record but times must be the same, bit for bit. A run that got SIGTERM must exit with 143, one that got SIGINT with 130,
both with the state `interrupted`; of a sweep whose parent alone was killed no worker may live on for more than 20 s.
Without a Slurm that `sinfo` reaches its jobs are left out, which is said.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import Row, arguments, close, numbers, tell

COMMON = ("model=small_cnn", "model.width=4", "threads=1", "trainer.checkpoint_s=0", "trainer.monitor_images=20",
          "trainer.max_epochs=6", "progress=false")  # fmt: skip
RUN = (*COMMON, "attack=badnets", "defense=ft", "hydra.run.dir=out/one")
GRID = ("-m", *COMMON, "attack=badnets,blended", "defense=none,ft", "hydra.sweep.dir=out")
ON_SLURM = (*GRID, "hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=20", "hydra.launcher.cpus_per_task=1")
STATUS = {signal.SIGKILL: 137, signal.SIGTERM: 143, signal.SIGINT: 130}  # as a shell says them
LIMIT_S = 900
CHAIN = 4  # kills of one run, at most
ORPHANS_S = 20.0


@dataclass(frozen=True)
class Way:
    """How something is killed: the signal, and whom it meets (`all` its processes, its `parent`, or a Slurm `job`)."""

    signal: signal.Signals
    whom: str = "all"

    def __str__(self) -> str:
        return f"{self.signal.name} of {self.whom}"


RUN_WAYS = (Way(signal.SIGKILL), Way(signal.SIGTERM), Way(signal.SIGKILL), Way(signal.SIGINT))
SWEEP_WAYS = (Way(signal.SIGKILL), Way(signal.SIGKILL, "parent"), Way(signal.SIGTERM, "parent"),
              Way(signal.SIGINT))  # fmt: skip
SLURM_WAYS = (Way(signal.SIGKILL, "job"), Way(signal.SIGKILL, "parent"), Way(signal.SIGTERM, "job"))


@dataclass
class Killed:
    """One kill: after how long, the exit status, and what was wrong about how it ended."""

    way: Way
    after: float
    status: int
    fault: str


def start(folder: Path, words: tuple[str, ...]) -> subprocess.Popen[bytes]:
    """The command, in a process group of its own; what it says goes to a file."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if name not in ("HYDRA_FULL_ERROR", "WANDB_MODE")}
    env = {**kept, "BACKDOOR_CACHE": str(folder / "store"), "CI": "true", "OMP_NUM_THREADS": "1"}
    with (folder / "said").open("ab") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "backdoor", *words],
            env=env,
            cwd=folder,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # what a shell starts in the background ignores SIGINT, and so would its children


def finish(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Wait for one that nobody kills."""
    if process.wait(LIMIT_S):
        sys.exit(f"exit status {process.returncode}: {(folder / 'said').read_text()[-2000:]}")


def table(folder: Path) -> dict[str, Any]:
    """Name of a job -> its numbers and the digests of its weights."""
    return {path.parent.name: numbers(path.parent) for path in sorted(folder.glob("out/*/result.json"))}


def living(group: int) -> list[int]:
    """The processes of a group that are no zombies."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(its_group) == group and state not in "ZX":
            found.append(int(stat.parent.name))
    return found


def slurm_jobs() -> set[str]:
    """Slurm's jobs that run now."""
    asked = subprocess.run(["squeue", "-h", "-r", "-t", "R", "-o", "%i"], capture_output=True, text=True)
    return set(asked.stdout.split())


def strike(way: Way, process: subprocess.Popen[bytes], before: set[str]) -> None:
    """Send the signal; `before`: Slurm's jobs that are none of this process."""
    if way.whom == "job":
        for job in sorted(slurm_jobs() - before)[:1]:
            subprocess.run(["scancel", f"--signal={way.signal.name.removeprefix('SIG')}", "--full", job], check=True)
    elif way.whom == "parent":
        os.kill(process.pid, way.signal)
    else:
        os.killpg(process.pid, way.signal)


def fault_of(way: Way, process: subprocess.Popen[bytes], folder: Path, begun: float) -> str:
    """What is wrong about how a killed process ended; empty if nothing is. None of its processes lives after this.

    `begun`: the time of its start; a state that is older is of the kill before, as this run had not begun yet.
    """
    status = process.wait(LIMIT_S)
    status = 128 - status if status < 0 else status
    fault = ""
    if way.whom != "job" and status != STATUS[way.signal]:
        fault = f"exit status {status} instead of {STATUS[way.signal]}"
    deadline = time.monotonic() + ORPHANS_S
    while living(process.pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    if living(process.pid):
        fault += f" {len(living(process.pid))} processes live on after {ORPHANS_S:.0f} s"
        os.killpg(process.pid, signal.SIGKILL)
    status_file = folder / "out" / "one" / "status.json"
    began = status_file.exists() and status_file.stat().st_mtime > begun
    if way.signal != signal.SIGKILL and began and not (folder / "out/one/result.json").exists():
        state = json.loads(status_file.read_text()).get("state")
        fault += "" if state == "interrupted" else f" state {state}"
    return fault.strip()


def kill_once(folder: Path, words: tuple[str, ...], way: Way, span: float, draw: random.Random) -> Killed | None:
    """Start it, kill it at a random moment of its training, and look how it ends; None if it was faster."""
    before = slurm_jobs() if way.whom == "job" else set()
    clock, process, begun = time.time(), start(folder, words), time.monotonic()
    while process.poll() is None and not list(folder.glob("store/*/*.part")):
        time.sleep(0.02)
    wait = draw.uniform(0, span)
    try:
        process.wait(wait)
    except subprocess.TimeoutExpired:
        strike(way, process, before)
        after = time.monotonic() - begun
        fault = fault_of(way, process, folder, clock)
        return Killed(way, after, process.returncode, fault)
    finish(process, folder)
    return None


def measure_kind(
    kind: str, words: tuple[str, ...], ways: tuple[Way, ...], kills: int, place: Path, draw: random.Random
) -> list[Row]:
    """Kill one kind so many times; a row for each kill."""
    calm, begun = place / kind / "calm", time.monotonic()
    finish(start(calm, words), calm)
    span = min(20.0, (time.monotonic() - begun) / 2)
    expected = table(calm)
    print(f"{kind}: {len(expected)} jobs, undisturbed in {time.monotonic() - begun:.0f} s", flush=True)
    rows: list[Row] = []
    for number in range(3 * kills):  # a run that is faster than its kill is none
        if len(rows) >= kills:
            break
        folder, done = place / kind / str(number), []
        for _ in range(min(CHAIN, kills - len(rows))):
            killed = kill_once(folder, words, ways[(len(rows) + len(done)) % len(ways)], span, draw)
            if killed is None:
                break
            done.append(killed)
        finish(start(folder, words), folder)
        same = table(folder) == expected
        for one in done:
            came = (one.fault or "survived") if same else "other numbers"
            rows.append(Row("kills", kind, f"{one.way}", "survived", came, came == "survived", one.after,
                            f"exit status {one.status}"))  # fmt: skip
            print(f"{len(rows):>3}: {kind}, {one.way} after {one.after:.1f} s: {came}", flush=True)
        shutil.rmtree(folder)
    return rows


def no_slurm() -> str:
    """Why there is no Slurm; empty if there is one."""
    if shutil.which("sinfo") is None:
        return "there is no sinfo here"
    return "" if subprocess.run(["sinfo"], capture_output=True).returncode == 0 else "Slurm does not answer"


def measure(
    place: Path, runs: int = 10, sweeps: int = 8, slurm: int = 4, seed: int = 0, launcher: str = "joblib"
) -> list[Row]:
    """So many kills of each kind."""
    draw, rows = random.Random(seed), list[Row]()
    kinds: list[tuple[str, tuple[str, ...], tuple[Way, ...], int, Callable[[], str]]] = [
        ("run", RUN, RUN_WAYS, runs, lambda: ""),
        (f"{launcher} sweep", (*GRID, f"hydra/launcher={launcher}"), SWEEP_WAYS, sweeps, lambda: ""),
        ("Slurm sweep", ON_SLURM, SLURM_WAYS, slurm, no_slurm),
    ]
    for kind, words, ways, kills, lacks in kinds:
        why = lacks() if kills else ""
        if why:
            print(f"{kind}: left out, {why}", flush=True)
        elif kills:
            rows += measure_kind(kind, words, ways, kills, place, draw)
    return rows


def main() -> None:
    parser = arguments(__doc__)
    for name, kills in (("runs", 10), ("sweeps", 8), ("slurm", 4)):
        parser.add_argument(f"--{name}", type=int, default=kills, help="kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--launcher", default="joblib")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="robust-") as place:
        rows = measure(Path(place), args.runs, args.sweeps, args.slurm, args.seed, args.launcher)
        tell(rows, Path(place))
    close(rows, args.csv)


if __name__ == "__main__":
    main()
