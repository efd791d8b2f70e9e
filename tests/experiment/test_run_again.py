"""Runs that are repeated, killed, or started twice: the same numbers, and nothing is made twice."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from backdoor.attacks import PoisonPlan
from backdoor.loggers.wandb import summary_keys
from helpers.command import QUICK, numbers, read_json
from helpers.report import ended, items, kind
from helpers.run import finish, in_process, start

pytestmark = pytest.mark.timeout(900)

# Enough epochs that a kill in the middle and a difference between runs would show, few enough to be quick.
SHORT = (
    "model=small_cnn",
    "model.width=8",
    "victim.epochs=6",
    "trainer.monitor_images=0",
    "trainer.precision=fp32",
    "threads=1",  # as QUICK: two processes that each want every core hinder one another
)


def test_same_seed_same_numbers_other_seed_other_plan(command, tmp_path):
    folders = {}
    for name, seed in (("first", 3), ("again", 3), ("other", 4)):
        folders[name] = tmp_path / name
        words = (*QUICK, f"seed={seed}", f"hydra.run.dir={folders[name]}")
        status, _, said = command(*words, cache=tmp_path / f"cache_{name}")  # nothing can come from the store
        assert status == 0, said
    assert numbers(folders["first"]) == numbers(folders["again"])
    weights = [load_file(folders[name] / "weights" / "unlearn.safetensors") for name in folders]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert not all(torch.equal(value, weights[2][name]) for name, value in weights[0].items())
    plans = [PoisonPlan.load(folders[name] / "plan.npz").rows for name in folders]
    assert torch.equal(plans[0], plans[1])
    assert not torch.equal(plans[0], plans[2])


def wait_for(found: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    """Until `found`, as long as the process lives."""
    while not found():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)


@pytest.fixture
def killed() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that do not outlive the test, whatever it does."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()


def test_a_killed_run_goes_on_to_the_same_numbers(tmp_path, killed):
    words = (*SHORT, "defense=none", "trainer.checkpoint_s=0")
    status, said = in_process(tmp_path / "cache_whole", *words, f"hydra.run.dir={tmp_path / 'whole'}")
    assert status == 0, said
    cache, words = tmp_path / "cache_killed", (*words, f"hydra.run.dir={tmp_path / 'killed'}")
    process = start(cache, tmp_path, *words)
    killed.append(process)
    wait_for(lambda: list(cache.glob("victim/*.part/resume.ckpt")), process)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "result.json").exists()
    assert not list(cache.glob("victim/*/artifact.json"))
    status, said = in_process(cache, *words)
    assert status == 0, said
    assert numbers(tmp_path / "killed") == numbers(tmp_path / "whole")
    weights = [load_file(tmp_path / name / "weights" / "victim.safetensors") for name in ("whole", "killed")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert read_json(tmp_path / "killed", "status.json") == {"state": "done", "victim": "trained"}
    with (tmp_path / "killed" / "metrics.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3", "4", "5", "6"]


def test_two_at_once_train_the_victim_once(tmp_path, killed):
    cache = tmp_path / "cache"
    for name in ("one", "two"):
        killed.append(start(cache, tmp_path, *SHORT, "defense=none", f"hydra.run.dir={tmp_path / name}"))
    for process in killed:
        finish(process)
    states = [read_json(tmp_path / name, "status.json")["victim"] for name in ("one", "two")]
    assert sorted(states) == ["hit", "trained"]
    assert numbers(tmp_path / "one") == numbers(tmp_path / "two")
    assert len(list(cache.glob("victim/*/artifact.json"))) == 1
    assert not list(cache.glob("victim/*.part"))


def test_four_jobs_give_four_runs_of_one_study(run_cli, tmp_path):
    words = (*QUICK, "logger=wandb_offline", "attack=badnets", "attack.ratio=0.1,0.2", "defense=none,spectral")
    done = run_cli("-m", *words, f"hydra.sweep.dir={tmp_path / 'sweep'}", f"store.dir={tmp_path / 'store'}")
    assert done.returncode == 0, done.stderr
    jobs = sorted(path for path in (tmp_path / "sweep").iterdir() if path.is_dir())
    assert len(jobs) == 4
    found = set()
    for job in jobs:
        assert (job / "metrics.csv").exists()
        records = ended(job)
        (begun,) = [record.run for record in records if kind(record) == "run"][:1]
        defense, tags = begun.job_type, set(begun.tags)
        assert begun.run_group == "digits"
        assert {"badnets", defense, "digits", "small_cnn", "seed 0"} <= tags
        found |= {(defense, tag) for tag in tags if tag.startswith("ratio")}
        summary: dict[str, object] = {}
        for record in records:
            if kind(record) == "summary":
                summary |= items(record.summary.update)
        wanted = summary_keys(read_json(job))
        assert {"final/asr", "final/c_acc", "victim/r_acc"} <= set(wanted)
        assert {key: summary[key] for key in wanted} == wanted
        assert list(job.glob("wandb/offline-run-*/files/media/table/poisoned*.json"))
        assert list(job.glob("wandb/offline-run-*/files/media/images/figures/*.png"))
    assert found == set(product(("none", "spectral"), ("ratio 0.1", "ratio 0.2")))
    assert not (tmp_path / "wandb").exists()  # nothing beside the runs' folders
