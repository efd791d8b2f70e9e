"""What a sweep shows while it runs, in a real terminal (a pseudo one), and nowhere else."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import socket
import struct
import subprocess
import sys
import termios
import time
from contextlib import nullcontext

import pytest
from rich.console import Console

from backdoor.sweep.interrupts import Stopped
from backdoor.sweep.notes import NOTES, SCREEN, write_note
from backdoor.sweep.progress import REFRESH_S, Progress, clock, noted, watching
from helpers.command import QUICK

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo terminal")
SWEEP = ("-m", *QUICK, "reserved=0.05", "attack=badnets", "defense=none,ft")


def on_terminal(*words: str) -> str:
    """What the command shows on a terminal of 130 columns, without colours and cursor moves."""
    env = {name: value for name, value in os.environ.items() if name != "CI"}
    env |= {"TERM": "xterm", "OMP_NUM_THREADS": "1"}
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 130, 0, 0))
    command = [sys.executable, "-m", "backdoor", *words]
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=env)
    os.close(slave)
    shown = b""
    while True:
        try:
            part = os.read(master, 1 << 16)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    text = shown.decode(errors="replace")
    assert process.wait(timeout=60) == 0, text
    os.close(master)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_workers_have_a_line_each_and_jobs_their_own_files(tmp_path):
    folder = tmp_path / "sweep"
    one = ("hydra/launcher=joblib", "hydra.launcher.workers=1")  # two might end between two looks
    shown = on_terminal(*SWEEP, *one, f"store.dir={tmp_path / 'cache'}", f"hydra.sweep.dir={folder}")
    assert "0 of 2 jobs done" in shown
    assert re.search(r"1 of 2 jobs done, about \d:\d\d:\d\d left", shown)
    assert re.search(r" 0 +defense=none .*\d:\d\d:\d\d", shown)
    assert re.search(r" 1 +defense=ft .*\d:\d\d:\d\d", shown)
    assert "victim" in (folder / "0-badnets-none" / SCREEN).read_text()
    assert "R-Acc" not in shown.split("2 jobs: 2 done")[0]  # no job's own lines between those of the sweep
    assert not (folder / NOTES).exists()


def test_jobs_in_this_process_keep_their_bars(tmp_path):
    shown = on_terminal(*SWEEP, f"store.dir={tmp_path / 'cache'}", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert re.search(r"job 1: defense=ft  \(1 of 2 jobs done, about .* left\)", shown)
    assert "R-Acc" in shown.split("2 jobs: 2 done")[0]


@pytest.mark.parametrize(("ci", "terminal"), [("", True), ("true", True), ("", False)])
def test_ci_and_pipes_are_quiet(ci, terminal, tmp_path, monkeypatch):
    monkeypatch.setenv("CI", ci)
    screen = io.StringIO()
    with watching(tmp_path, ["a", "b"], separate=True, console=Console(file=screen, force_terminal=terminal)):
        time.sleep(2 * REFRESH_S)
    assert ("0 of 2 jobs done" in screen.getvalue()) is (terminal and not ci)


def test_dead_workers_vanish_and_those_of_other_machines_stay(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    note = {"folder": str(tmp_path), "host": socket.gethostname(), "since": time.time(), "state": "running"}
    for number, other in enumerate([{"pid": os.getpid()}, {"pid": child.pid}, {"pid": child.pid, "host": "elsewhere"}]):
        write_note(tmp_path, number, {**note, **other})
    write_note(tmp_path, 3, {**note, "state": "failed"})
    (tmp_path / NOTES / "4.json").write_text('{"state": "run')  # half-written
    (tmp_path / "status.json").write_text(json.dumps({"state": "running", "stage": "victim", "epoch": 7}))
    progress = Progress(tmp_path, [f"job {number}" for number in range(6)], started=time.time() - 10)
    progress.look()
    assert sorted(progress.running) == [0, 2]
    assert progress.ended == {3: "failed"}
    assert progress.summary() == "1 of 6 jobs done, 1 failed, about 0:00:50 left"
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(progress.lines())
    assert re.search(r"2 +job 2 +victim 7 +0:00:0\d", console.export_text())


ENDINGS = [
    (None, "failed", "its process died"),
    (Stopped(15), "interrupted", "SIGTERM"),
    (OSError("x"), "failed", "OSError: x"),
]


@pytest.mark.parametrize(("error", "state", "why"), ENDINGS)
def test_what_a_killed_job_could_not_say_is_said_for_it(tmp_path, capsys, error, state, why):
    for number, known in enumerate(("running", "done")):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "status.json").write_text(json.dumps({"state": known, "victim": "hit"}))
    with nullcontext() if error is None else pytest.raises(type(error)), watching(tmp_path, "ab", separate=True):
        for number in (0, 1):
            note = {"folder": str(tmp_path / str(number)), "host": socket.gethostname(), "pid": 1, "since": 0.0}
            write_note(tmp_path, number, {**note, "state": "running"})
        if error is not None:
            raise error
    killed, done = (json.loads((tmp_path / name / "status.json").read_text()) for name in "01")
    assert killed == {"state": state, "victim": "hit", "error": why}
    assert done["state"] == "done"
    assert ("the same command goes on" in capsys.readouterr().out) is (state == "interrupted")


def test_a_failing_job_is_noted(tmp_path):
    def fail(progress):
        with noted(tmp_path, 0, tmp_path / "job"):
            progress.look()
            assert list(progress.running) == [0]
            raise ValueError

    with watching(tmp_path, ["only"], separate=True, console=Console(file=sys.stderr)) as progress:
        with pytest.raises(ValueError):
            fail(progress)
        progress.look()
        assert progress.ended == {0: "failed"}
    assert clock(3661.9) == "1:01:01"
