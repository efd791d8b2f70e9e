"""Notes that the jobs of a sweep leave in its folder, so that it is told alike whatever launched them, and wherever."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backdoor.store.store import write_json

NOTES, PLAN = ".jobs", "sweep.json"
SCREEN = "console.log"  # what a job in a process of its own prints, while the sweep's lines have the terminal
ENDS = ("done", "failed", "interrupted")
KNOWN = {"pid", "host", "folder", "since"}
OWNER = "BACKDOOR_SWEEP_SCREEN"  # the process that has the terminal


def write_note(sweep_dir: Path, name: int | str, note: dict[str, Any]) -> None:
    """Replace a note at once; a full disk is the job's trouble, not the display's."""
    path = sweep_dir / NOTES / f"{name}.json"
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(note))
        os.replace(part, path)


def note_end(folder: Path, end: dict[str, str]) -> None:
    """status.json says how the job ended, for a process that could not or that knows of others' end alone."""
    with contextlib.suppress(OSError):  # a full disk, which the end may be about
        write_json(folder / "status.json", {"state": "", "victim": "none"} | read(folder / "status.json") | end)


@contextmanager
def screen_of(folder: Path) -> Iterator[None]:
    """What is printed inside goes to a file in `folder`, if another process has the terminal."""
    if os.environ.get(OWNER, "") in ("", str(os.getpid())):
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (
        open(folder / SCREEN, "a", buffering=1) as screen,
        contextlib.redirect_stdout(screen),
        contextlib.redirect_stderr(screen),
    ):
        yield


def read(path: Path) -> dict[str, Any]:
    """A small JSON file; empty if it cannot be read just now."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def alive(note: dict[str, Any]) -> bool:
    """Whether the job's process may still be there; one on another machine is taken at its word."""
    if note["host"] != socket.gethostname():
        return True
    try:
        os.kill(int(note["pid"]), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        pass
    return True
