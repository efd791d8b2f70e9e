"""What the tests of whole runs share: real processes, and a stage of their result."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra

from backdoor.cli.main import run_command
from helpers.command import environment, read_json


def start(cache: Path, cwd: Path, *words: str) -> subprocess.Popen[str]:
    """A real process, not waited for."""
    return subprocess.Popen(
        [sys.executable, "-m", "backdoor", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(cache),
        cwd=cwd,
    )


def finish(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=800)
    assert process.returncode == 0, f"exit status {process.returncode}: {said}"
    return said


def stage(folder: Path, name: str) -> dict[str, Any]:
    return next(entry for entry in read_json(folder)["stages"] if entry["name"] == name)


@contextmanager
def stopping(stop: signal.Signals, when: Callable[[], bool]) -> Iterator[None]:
    """Sends `stop` to this process, once, when it is time."""
    ended = threading.Event()

    def watch() -> None:
        while not when() and not ended.is_set():
            time.sleep(0.02)
        if not ended.is_set():
            os.kill(os.getpid(), stop)

    thread = threading.Thread(target=watch)
    thread.start()
    yield
    ended.set()
    thread.join()


def in_process(cache: Path, *words: str) -> tuple[int, str]:
    """The command line without a process of its own, for fixtures of any scope: (exit status, what it said)."""
    said = io.StringIO()
    GlobalHydra.instance().clear()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(said):
        for name, value in {"BACKDOOR_CACHE": str(cache), "CI": "true"}.items():
            patch.setenv(name, value)
        patch.delenv("HYDRA_FULL_ERROR", raising=False)
        patch.setattr(sys, "argv", ["backdoor", *words])
        try:
            status = run_command()
        finally:
            GlobalHydra.instance().clear()
            os.environ.pop("HYDRA_FULL_ERROR", None)
    return status, said.getvalue()
