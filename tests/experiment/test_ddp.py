"""Multi-GPU in one job, as two gloo processes: real commands, their results, and how they fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from backdoor.errors import UserError
from backdoor.experiment.ddp import first_failure
from backdoor.training.context import own_device
from helpers.command import environment, numbers, read_json
from helpers.run import in_process

TWO = ("trainer=ddp", "trainer.devices=2", "trainer.device=cpu", "trainer.precision=fp32", "threads=1")
SMALL = (
    *TWO,
    "model=small_cnn",
    "model.width=4",
    "trainer.max_epochs=2",
    "trainer.max_batches=6",
    "trainer.monitor_images=16",
)
JOBS = ("-m", "attack=badnets,blended", "defense=abl", "defense.control=false", "hydra.sweep.dir=sweep")

# A victim that only the second process cannot train.
BROKEN = """
from backdoor.errors import UserError
from backdoor.training import Classifier

class Broken(Classifier):
    def training_step(self, batch, batch_idx):
        if self.global_rank == 1:
            raise UserError("victim: the second process had enough")
        return super().training_step(batch, batch_idx)
"""


def call(cwd: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "backdoor", *words],
        capture_output=True,
        text=True,
        env={**environment(cwd / "store"), "OMP_NUM_THREADS": "1", **env},
        cwd=cwd,
        timeout=240,
    )


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two jobs of two processes each."""
    cwd = tmp_path_factory.mktemp("ddp")
    ended = call(cwd, *SMALL, *JOBS)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (cwd / "said.txt").write_text(ended.stdout)
    return cwd


def test_a_sweep_of_two_jobs_leaves_a_record_each(sweep):
    said = (sweep / "said.txt").read_text()
    for job in ("0-badnets-abl", "1-blended-abl"):
        folder = sweep / "sweep" / job
        assert read_json(folder, "status.json") == {"state": "done", "victim": "trained"}
        assert [stage["name"] for stage in read_json(folder)["stages"]] == ["victim", "isolate", "finetune", "unlearn"]
        epochs = (folder / "metrics.csv").read_text().splitlines()[1:]
        assert len(epochs) == len(set(epochs)) == 8  # 2 of each stage, each written once
    assert said.count("victim ") == 4  # a line and a row of the table a job: one rank speaks
    assert "2 jobs: 2 done" in said


def test_each_stage_is_one_artifact(sweep):
    store = sweep / "store"
    assert len(list(store.glob("victim/*/artifact.json"))) == 2
    assert len(list(store.glob("stage/*/artifact.json"))) == 6
    assert not list(store.glob("*/*.part"))
    described = json.loads(next(store.glob("victim/*/artifact.json")).read_text())
    assert described["of"]["common"]["hardware"]["devices"] == 2  # no single process takes it for its own


def test_no_sample_counts_twice(sweep, tmp_path):
    """The numbers of two processes are those of one that measures the saved victim; 360 test images are no multiple."""
    folder = sweep / "sweep" / "0-badnets-abl"
    words = ("attack=external", f"attack.run={folder}", "defense=none", "model=small_cnn", "model.width=4")
    words = (*words, "trainer=cpu", "trainer.precision=fp32", "trainer.monitor_images=0", "threads=1")
    status, said = in_process(sweep / "alone", *words, f"hydra.run.dir={tmp_path / 'alone'}")
    assert status == 0, said
    theirs, own = numbers(folder)[0], numbers(tmp_path / "alone")[0]
    for name in ("c_acc", "c_acc_non_target", "asr", "r_acc"):
        assert theirs[name] == own[name], name
    flagged = read_json(folder)["stages"][1]["detection"]["flagged"]
    assert flagged == int(1437 * 0.05) or flagged < 1437 // 2


def test_the_same_sweep_again_comes_from_the_store(sweep):
    again = call(sweep, *SMALL, *JOBS, "hydra.sweep.dir=again")
    assert again.returncode == 0, again.stderr
    assert "2 from the store" in again.stdout


def test_a_failing_process_ends_the_job_with_its_message(tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN)
    path = os.pathsep.join((str(tmp_path), environment(tmp_path)["PYTHONPATH"]))
    words = ("attack=badnets", "defense=none", "victim.module._target_=broken.Broken", "hydra.run.dir=run")
    ended = call(tmp_path, *SMALL, *words, PYTHONPATH=path)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert ended.stderr.splitlines()[-1] == "error: victim: the second process had enough"
    assert "Traceback" not in ended.stderr
    status = read_json(tmp_path / "run", "status.json")
    assert (status["state"], status["error"]) == ("failed", "UserError: victim: the second process had enough")
    assert not list((tmp_path / "store").glob("victim/*/artifact.json"))


def test_the_first_failure_is_the_one_that_is_told(tmp_path):
    for rank, (line, seconds) in enumerate([(None, 20), ("attack: bad", 10)]):
        path = tmp_path / f"{rank}.failed"
        path.write_text(json.dumps({"line": line, "trace": f"trace {rank}"}))
        os.utime(path, (seconds, seconds))
    found = first_failure(tmp_path / "job.yaml", None)
    assert isinstance(found, UserError)
    assert str(found) == "attack: bad"
    (tmp_path / "1.failed").unlink()
    assert "trace 0" in str(first_failure(tmp_path / "job.yaml", None))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["trainer.devices=0"], "trainer.devices=0: expected a whole number of at least 1"),
        (["trainer.devices=two"], "trainer.devices=two: expected a whole number of at least 1"),
        (["trainer.device=meta"], "trainer.device=meta: not available here; use auto, cpu, cuda, cuda:N or mps"),
    ],
)
def test_bad_devices_are_refused_before_anything_starts(command, words, expected):
    status, _, said = command("attack=badnets", "defense=none", *SMALL, *words)
    assert status == 2
    assert expected in said


def test_more_devices_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=r"trainer.devices=3: expected at most .* 2;"):
        own_device(torch.device("cuda"), 3)
    with pytest.raises(UserError, match=r"got cuda:1"):
        own_device(torch.device("cuda:1"), 2)
    assert own_device(torch.device("cpu"), 64) == torch.device("cpu")
