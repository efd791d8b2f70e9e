"""SIGTERM, Ctrl-C and a closed terminal: the exit status that shells know, and `interrupted` in status.json."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backdoor.experiment import appearance
from helpers.command import QUICK, read_json
from helpers.run import start, stopping

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs the signals of POSIX")

LENGTHY = ("defense=none", "trainer.max_epochs=2000", "trainer.max_batches=2")  # longer than any test, if left alone
STOPS = {signal.SIGTERM: ("SIGTERM", 143), signal.SIGHUP: ("SIGHUP", 129), signal.SIGINT: ("Ctrl-C", 130)}


@pytest.fixture(autouse=True)
def usual_handlers() -> Iterator[None]:
    """As in a terminal; a job in the background ignores SIGINT, one under nohup SIGHUP."""
    usual = dict.fromkeys(STOPS, signal.SIG_DFL) | {signal.SIGINT: signal.default_int_handler}
    before = {one: signal.signal(one, handler) for one, handler in usual.items()}
    yield
    for one, handler in before.items():
        signal.signal(one, handler)


def trains(folder: Path) -> bool:
    """Whether the run in `folder` has ended an epoch."""
    try:
        return "epoch" in json.loads((folder / "status.json").read_text())
    except (OSError, ValueError):
        return False


@pytest.mark.parametrize("stop", STOPS)
def test_a_run_says_that_it_was_stopped(command, tmp_path, stop):
    name, status = STOPS[stop]
    with stopping(stop, lambda: trains(tmp_path / "run")):
        got, _, said = command(*QUICK, *LENGTHY, f"hydra.run.dir={tmp_path / 'run'}", cache=tmp_path / "cache")
    assert (got, said) == (status, f"interrupted ({name})\n")
    assert read_json(tmp_path / "run", "status.json") == {"state": "interrupted", "victim": "none", "error": name}


def test_a_sweep_ends_with_the_job_that_is_stopped(command, tmp_path):
    words = ("-m", *QUICK, *LENGTHY, "seed=1,2", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    with stopping(signal.SIGTERM, lambda: trains(tmp_path / "sweep" / "0-badnets-none")):
        status, shown, said = command(*words, cache=tmp_path / "cache")
    assert (status, said) == (143, "interrupted (SIGTERM)\n")
    assert "1 interrupted of 2 jobs; the same command goes on" in shown
    folders = [path for path in (tmp_path / "sweep").iterdir() if path.is_dir()]
    assert [read_json(path, "status.json")["state"] for path in folders] == ["interrupted"]


def test_so_does_a_preview(command, monkeypatch):
    def run(cfg, place):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr(appearance, "run", run)
    assert command(program=("backdoor.experiment.appearance", "preview"))[::2] == (143, "interrupted (SIGTERM)\n")


def test_a_job_that_is_to_be_queued_again_trains_on(command, tmp_path):
    """submitit takes SIGTERM for the word that Slurm wants the node, and goes on until it is killed."""
    taken = []
    signal.signal(signal.SIGTERM, lambda number, frame: taken.append(number))
    folder = tmp_path / "run"
    words = (*QUICK, "defense=none", "trainer.max_epochs=40", "trainer.max_batches=2", f"hydra.run.dir={folder}")
    with stopping(signal.SIGTERM, lambda: trains(folder)):
        status, _, said = command(*words, cache=tmp_path / "cache")
    assert (status, taken) == (0, [signal.SIGTERM]), said
    assert read_json(folder, "status.json")["state"] == "done"


def test_workers_are_stopped_with_their_sweep(tmp_path):
    launcher = ("hydra/launcher=joblib", "hydra.launcher.workers=1")
    process = start(
        tmp_path / "cache", tmp_path, "-m", *QUICK, *LENGTHY, *launcher, "seed=1,2", "hydra.sweep.dir=sweep"
    )
    folder = tmp_path / "sweep" / "0-badnets-none"
    while not trains(folder):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    worker = json.loads((tmp_path / "sweep" / ".jobs" / "0.json").read_text())["pid"]
    process.terminate()
    said, _ = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in said) == (143, False), said
    assert "1 interrupted of 2 jobs; the same command goes on" in said
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
    status = read_json(folder, "status.json")
    assert (status["state"], status["error"]) == ("interrupted", "SIGTERM")


def test_a_job_of_several_processes_ends_with_all_of_them(command, tmp_path):
    two = ("trainer=ddp", "trainer.devices=2", "trainer.device=cpu", "trainer.precision=fp32", "threads=1")
    words = (*two, "model=small_cnn", "model.width=4", *LENGTHY, "trainer.monitor_images=0")
    with stopping(signal.SIGTERM, lambda: trains(tmp_path / "run")):
        got, _, said = command(*words, f"hydra.run.dir={tmp_path / 'run'}", cache=tmp_path / "cache")
    assert (got, said) == (143, "interrupted (SIGTERM)\n")
    status = read_json(tmp_path / "run", "status.json")
    assert (status["state"], status["error"]) == ("interrupted", "SIGTERM")
