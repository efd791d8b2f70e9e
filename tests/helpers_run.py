"""What the tests of whole runs share: real processes, and a stage of their result."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from conftest import environment, read_json


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
