"""What the four replays share: a command in a forked child, what it came to, and one row of the table for each case.

A child is a fork of a parent that has imported torch and backdoor, so a case costs what it does and no import. It has a
process group, a working folder, a time limit and a memory limit of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import sys
import time
import traceback
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from csv import DictWriter
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

SMALL = ("model=small_cnn", "model.width=4", "trainer=debug", "trainer.monitor_images=0", "threads=1", "defense=none")
TIMES = {"seconds", "started", "stored", "peak_memory", "environment"}
MEMORY = 8 * 2**30  # of addresses, not of RAM: torch alone maps nearly 4 GiB
LIMIT_S = 120.0


@dataclass(frozen=True)
class Ended:
    """How a child ended; `status` is negative if a signal ended it, as with subprocess."""

    status: int
    out: str
    err: str
    seconds: float
    slow: bool = False


@dataclass(frozen=True)
class Row:
    """One case of the table: what was right, and what came."""

    suite: str
    group: str
    case: str
    expected: str
    came: str
    right: bool
    seconds: float
    said: str


@dataclass
class Child:
    """A running fork."""

    pid: int
    folder: Path
    started: float
    limit: float

    def poll(self) -> Ended | None:
        """How it ended, or None while it runs; one that is over its limit is killed with all that it started."""
        pid, code = os.waitpid(self.pid, os.WNOHANG)
        seconds = time.monotonic() - self.started
        slow = not pid and seconds > self.limit
        if not pid and not slow:
            return None
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        if slow:
            _, code = os.waitpid(self.pid, 0)
        out, err = ((self.folder / name).read_text(errors="replace") for name in (".out", ".err"))
        return Ended(os.waitstatus_to_exitcode(code), out, err, seconds, slow)


def prepare() -> None:
    """Import what every child needs, and set the environment of a user without a terminal."""
    import sklearn.datasets
    import torch

    import backdoor.cli.main
    import backdoor.experiment.run

    torch.set_num_threads(1)
    del sklearn, backdoor
    os.environ["CI"] = "true"
    for name in ("HYDRA_FULL_ERROR", "BACKDOOR_CACHE", "WANDB_MODE"):
        os.environ.pop(name, None)


def command(*words: str) -> Callable[[], int]:
    """`python -m backdoor WORDS`, for a child."""

    def action() -> int:
        from backdoor.cli.main import run_command

        sys.argv = ["backdoor", *words]
        return run_command()

    return action


def report(*words: str) -> Callable[[], int]:
    """`python -m backdoor.report WORDS`, for a child."""

    def action() -> int:
        from backdoor.report.__main__ import main

        sys.argv = ["backdoor.report", *words]
        main()
        return 0

    return action


def fork(action: Callable[[], int], folder: Path, limit: float = LIMIT_S) -> Child:
    """Start `action` in `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os._exit(_inside(action, folder))
    return Child(pid, folder, time.monotonic(), limit)


def _inside(action: Callable[[], int], folder: Path) -> int:
    """The child's life; its exit status, as Python's own."""
    os.setsid()
    os.chdir(folder)
    os.environ["HOME"] = str(folder)
    for name, number in ((".out", 1), (".err", 2)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        status = action()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    with suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    return status & 0xFF


def run(action: Callable[[], int], folder: Path, limit: float = LIMIT_S) -> Ended:
    """One child from its start to its end."""
    return next(run_all([(action, folder)], 1, limit))[1]


def run_all(
    jobs: Iterable[tuple[Callable[[], int], Path]], workers: int, limit: float = LIMIT_S
) -> Iterator[tuple[int, Ended]]:
    """(number of the job, how it ended), in the order in which they end; at most `workers` at a time."""
    left, running = enumerate(jobs), dict[int, Child]()
    more = True
    while more or running:
        while more and len(running) < workers:
            number, job = next(left, (-1, None))
            if job is None:
                more = False
            else:
                running[number] = fork(*job, limit)
        for number, child in list(running.items()):
            ended = child.poll()
            if ended is not None:
                del running[number]
                yield number, ended
        time.sleep(0.01)


def came_to(ended: Ended) -> str:
    """clear (exit 2 and one line), accepted, traceback, wordy (exit 2 and other lines too), slow, or the status."""
    if ended.slow:
        return "slow"
    if "Traceback (most recent call last)" in ended.err + ended.out:
        return "traceback"
    if ended.status == 2:
        lines = ended.err.splitlines()
        return "clear" if len(lines) == 1 and lines[0].startswith("error: ") else "wordy"
    return "accepted" if ended.status == 0 else f"exit {ended.status}"


def last_word(ended: Ended) -> str:
    """The last line that it said on stderr, else on stdout."""
    lines = (ended.err.strip() or ended.out.strip()).splitlines()
    return lines[-1] if lines else ""


def numbers(folder: Path) -> Any:
    """All that a run found, without what a clock or a machine decides, and the digests of its weights."""
    record = json.loads((folder / "result.json").read_text())
    weights = {path.name: digest(path) for path in sorted((folder / "weights").glob("*.safetensors"))}
    return [without_times({key: record[key] for key in ("stages", "final")}), weights]


def without_times(value: Any) -> Any:
    """The same without what a clock or a machine decides."""
    if isinstance(value, dict):
        return {name: without_times(part) for name, part in value.items() if name not in TIMES}
    return [without_times(part) for part in value] if isinstance(value, list) else value


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tell(rows: Iterable[Row], place: Path) -> None:
    """Print a line for each case that is not right; `place` is left out of what was said."""
    for row in rows:
        if not row.right:
            said = row.said.replace(str(place), "")[:160]
            print(f"{row.suite} [{row.group}] {row.case}: expected {row.expected}, came {row.came}: {said}", flush=True)


def arguments(text: str | None) -> ArgumentParser:
    """The parser of a script; its help is the module's docstring."""
    parser = ArgumentParser(description=text, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, help="write a row for each case")
    return parser


def counts(rows: Sequence[Row]) -> list[str]:
    """A Markdown table: for each suite how many cases, what came, and how many of them were right."""
    came = sorted({row.came for row in rows}, key=lambda name: (name == "traceback", name))
    lines = [f"| | cases | right | {' | '.join(came)} |", "|---" * (len(came) + 3) + "|"]
    for suite in dict.fromkeys(row.suite for row in rows):
        own = [row for row in rows if row.suite == suite]
        found = Counter(row.came for row in own)
        cells = " | ".join(str(found[name]) for name in came)
        lines.append(f"| {suite} | {len(own)} | {sum(row.right for row in own)} | {cells} |")
    return lines


def close(rows: Sequence[Row], csv: Path | None) -> None:
    """Print the counts, write the rows, and exit with 1 if a case is not right."""
    print("\n".join(counts(rows)))
    if csv is not None:
        with csv.open("w", newline="") as file:
            writer = DictWriter(
                file, [field.name for field in fields(Row) if field.name != "said"], lineterminator="\n"
            )
            writer.writeheader()
            for row in rows:
                shown = {**asdict(row), "seconds": f"{row.seconds:.1f}"}
                del shown["said"]
                writer.writerow(shown)
    raise SystemExit(not all(row.right for row in rows))
