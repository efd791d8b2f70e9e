"""A sweep while it runs: one live line a worker, jobs done of all, time left; nothing with CI=true or in a pipe.

Jobs leave a note each in the sweep's folder, so that the lines are the same whatever launched them, and wherever. A
launcher that runs them in this very process leaves the screen to the job's own bars, and gets a line between jobs.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from backdoor.sweep.folders import check_below, claim
from backdoor.sweep.interrupts import ending, stop_of
from backdoor.sweep.notes import ENDS, KNOWN, NOTES, OWNER, PLAN, alive, note_end, read, screen_of, write_note

REFRESH_S = 0.5


@contextmanager
def noted(sweep_dir: Path, number: int, folder: Path) -> Iterator[None]:
    """Around a job of a sweep: leaves word of it, and keeps what it prints out of the sweep's lines.

    Raises:
        UserError: the folder is another job's, or does not lie below the sweep's.
    """
    check_below(sweep_dir, number, folder)
    claim(sweep_dir, number, folder)
    announce(sweep_dir, number)
    note = {"folder": str(folder), "host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
    write_note(sweep_dir, number, {**note, "state": "running"})
    try:
        with screen_of(folder):
            yield
    except BaseException as error:
        write_note(sweep_dir, number, {**note, "state": ending(error)["state"]})
        raise
    write_note(sweep_dir, number, {**note, "state": "done"})


def announce(sweep_dir: Path, number: int) -> None:
    """Before a job in the sweep's own process, whose bars have the screen: a line that says how far the sweep is."""
    plan = read(sweep_dir / NOTES / PLAN)
    if plan.get("pid") == os.getpid() and not quiet(Console()):
        progress = Progress(sweep_dir, plan["jobs"], plan["started"], plan["first"])
        progress.look()
        print(f"job {number}: {progress.name(number)}  ({progress.summary()})", flush=True)


@dataclass
class Progress:
    """What the notes of a sweep say.

    Attributes:
        jobs: what each launched job is called, in the order of the launch; empty if that is not known before.
        first: the first one's number.
        left: number -> note of the jobs that have begun and not ended.
        running: those of them whose process is there.
        ended: number -> one of `ENDS`.
    """

    sweep_dir: Path
    jobs: Sequence[str]
    started: float = field(default_factory=time.time)
    first: int = 0
    left: dict[int, dict[str, Any]] = field(default_factory=dict)
    running: dict[int, dict[str, Any]] = field(default_factory=dict)
    ended: dict[int, str] = field(default_factory=dict)

    def look(self) -> None:
        """Read the notes of jobs that have not ended."""
        self.left, self.running = {}, {}
        with contextlib.suppress(OSError):
            for entry in os.scandir(self.sweep_dir / NOTES):
                name, _, kind = entry.name.partition(".")
                if kind != "json" or not name.isdigit() or int(name) in self.ended:
                    continue
                note = read(Path(entry.path))
                if note.get("state") in ENDS:
                    self.ended[int(name)] = note["state"]
                elif note.keys() >= KNOWN:
                    self.left[int(name)] = note
        self.running = {number: note for number, note in self.left.items() if alive(note)}

    def name(self, number: int) -> str:
        """What a job is called."""
        place = number - self.first
        return self.jobs[place] if 0 <= place < len(self.jobs) else ""

    def summary(self) -> str:
        """Jobs ended of all, those of them that are not done, and the time left if the others take as long."""
        ended, bad = len(self.ended), self.counts(ENDS[1:])
        parts = [
            f"{ended:,} of {len(self.jobs):,} jobs done" if self.jobs else f"{ended:,} jobs done",
            *([bad] if bad else []),
        ]
        if 0 < ended < len(self.jobs):
            left = (time.time() - self.started) / ended * (len(self.jobs) - ended)
            parts.append(f"about {clock(left)} left")
        return ", ".join(parts)

    def counts(self, states: Sequence[str] = ENDS) -> str:
        """`2 done, 1 failed`, of these states."""
        counts = Counter(self.ended.values())
        return ", ".join(f"{counts[state]:,} {state}" for state in states if counts[state])

    def lines(self) -> Group:
        """The summary, a bar, and a line a running job: what it is, its stage, for how long."""
        table = Table.grid(padding=(0, 2))
        for number, note in sorted(self.running.items()):
            status = read(Path(note["folder"]) / "status.json")
            stage = " ".join(str(status[key]) for key in ("stage", "epoch") if key in status)
            since = clock(time.time() - note["since"])
            table.add_row(f"{number:>4}", Text(self.name(number)), Text(stage), since, style="dim" if not stage else "")
        bar = ProgressBar(total=max(1, len(self.jobs)), completed=len(self.ended), width=30)
        last = Table.grid(padding=(0, 2))
        last.add_row(bar, self.summary())
        return Group(table, last)


def clock(seconds: float) -> str:
    """`0:01:30`, without the fraction."""
    return str(timedelta(seconds=int(max(0.0, seconds))))


def quiet(console: Console) -> bool:
    """Whether nothing is to be drawn."""
    return os.environ.get("CI", "").lower() in ("true", "1") or not console.is_terminal


@contextmanager
def watching(
    sweep_dir: Path, jobs: Sequence[str], *, separate: bool, first: int = 0, console: Console | None = None
) -> Iterator[Progress]:
    """Shows the sweep's progress while the launcher works.

    Args:
        jobs: names of the launched jobs, in the launch's order.
        first: the number of the first of them.
        separate: they run in processes of their own. Else there is a line before each job (see `announce`).
        console: where to draw; the standard output if None.
    """
    shutil.rmtree(sweep_dir / NOTES, ignore_errors=True)  # of a sweep into the same folder that was killed
    progress, console = Progress(sweep_dir, jobs, first=first), console or Console()
    plan = {"pid": os.getpid(), "started": progress.started, "jobs": list(jobs), "first": first}
    write_note(sweep_dir, Path(PLAN).stem, plan)
    try:
        with drawn(progress, console) if separate and not quiet(console) else contextlib.nullcontext():
            yield progress
        close_open(progress, {"state": "failed", "error": "its process died"})
    except BaseException as error:
        close_open(progress, ending(error))
        if stop_of(error) is not None:
            several = f" of {len(jobs):,} jobs" if jobs else ""
            print(f"{progress.counts() or 'none begun'}{several}; the same command goes on", flush=True)
        raise
    finally:
        shutil.rmtree(sweep_dir / NOTES, ignore_errors=True)


def close_open(progress: Progress, end: dict[str, str]) -> None:
    """The launcher has ended: a job that is still under way by its word was killed before it could say `end`."""
    progress.look()
    for number, note in progress.left.items():
        if read(Path(note["folder"]) / "status.json").get("state", "running") == "running":
            note_end(Path(note["folder"]), end)
        progress.ended[number] = end["state"]


@contextmanager
def drawn(progress: Progress, console: Console) -> Iterator[None]:
    """The lines, drawn by a thread."""
    os.environ[OWNER] = str(os.getpid())
    stop = threading.Event()
    try:
        with Live(progress.lines(), console=console, auto_refresh=False, transient=True) as live:
            thread = threading.Thread(target=redraw, args=(progress, live, stop), daemon=True)
            thread.start()
            try:
                yield
            finally:
                stop.set()
                thread.join()
    finally:
        del os.environ[OWNER]


def redraw(progress: Progress, live: Live, stop: threading.Event) -> None:
    """Look at the notes a few times a second, until told to stop."""
    while not stop.wait(REFRESH_S):
        progress.look()
        live.update(progress.lines(), refresh=True)
