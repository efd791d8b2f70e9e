"""The values of all jobs of a sweep are checked before the first of them runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from backdoor.attacks import External, PoisonPlan
from backdoor.configs import explain as cli_errors
from backdoor.configs.command import check_job, read_command, waits_for_hydra
from backdoor.data import Arrays, Digits
from backdoor.experiment.run import check
from backdoor.sweep.jobs import all_words
from helpers.command import QUICK, RunCli, read_json

SWEEP = ("-m", *QUICK, "data=digits", "defense=none", "seed=3")
GREY = {"name": "grey", "mean": [0.5], "std": [0.5]}


def config(*words: str) -> DictConfig:
    """What a job with these overrides gets."""
    return check_job(read_command(words)).cfg


def refusal(cfg: DictConfig, **options: Any) -> str | None:
    """The line that a user would read, or None for a config that is fine."""
    try:
        check(cfg, **options)
    except Exception as error:
        return cli_errors.explain(error) or repr(error)
    return None


def test_a_bad_value_in_the_second_job_stops_the_sweep(run_cli: RunCli, tmp_path: Path) -> None:
    here, cache = tmp_path / "here", tmp_path / "cache"
    here.mkdir()
    done = run_cli(*SWEEP, "attack.ratio=0.1,2", cwd=here, env={"BACKDOOR_CACHE": str(cache)})
    assert done.returncode == 2, done.stderr
    said = done.stderr.splitlines()
    assert len(said) == 1
    assert said[0].startswith("error: job 1 (")
    assert "seed=3 attack.ratio=2): attack.ratio=2: expected a number from 0 to 1" in said[0]
    assert list(here.iterdir()) == []
    assert not cache.exists()


def test_a_good_sweep_runs(run_cli: RunCli, tmp_path: Path) -> None:
    done = run_cli(*SWEEP, "attack.ratio=0.1,0.2", f"hydra.sweep.dir={tmp_path}/sweep")
    assert done.returncode == 0, done.stderr
    jobs = sorted((tmp_path / "sweep").glob("*-badnets-none"))
    assert [read_json(job, "status.json")["state"] for job in jobs] == ["done", "done"]
    assert [len(PoisonPlan.load(job / "plan.npz").rows) for job in jobs] == [144, 287]  # of 1,437


BAD = {
    "attack.ratio=2": "attack.ratio=2: expected a number from 0 to 1",
    "attack.target=10": "attack.target=10: expected a class from 0 to 9",
    "data=gtsrb attack.target=43": "attack.target=43: expected a class from 0 to 42",
    "attack.trigger.size=40": "attack.trigger.size: expected a trigger that fits 32x32",
    "victim.module.schedule=cosin": "victim: schedule=cosin: did you mean 'cosine'",
    "victim.module.lr=-1": "victim.module.lr=-1: expected a number of at least 0",
    "victim.epochs=-3": "victim.epochs=-3: expected a whole number of at least 1",
    "defense.stages.finetune.augment=crops": "defense.stages.finetune: augment=crops: did you mean 'crop'",
    "defense.isolation_ratio=3": "defense.isolation_ratio=3: expected a number between 0 and 1",
    "~defense.stages.isolate": "defense=abl: stage finetune needs suspect",
    "defense=abl_unlearn reserved=0.1": "defense=abl_unlearn: stage control needs suspect",
    "model.depth=17": "model.depth=17: expected 6n + 4",
    "data.mean=[0.5,0.5]": "data.mean=[0.5, 0.5]: expected 3 values",
    "data.channels=2": "data.channels=2: expected 1 or 3",
    "trainer.device=gpu7": "trainer.device=gpu7: not available here",
    "trainer.max_epochs=-1": "trainer.max_epochs=-1: expected a whole number of at least 1",
    "trainer.monitor_images=null": "trainer.monitor_images=null: expected a whole number",
    "threads=0": "threads=0: expected a whole number from 1 to 1024",
    "seed=first": "seed=first: expected a whole number",
    "reserved=1.5": "reserved: expected a number of rows",
    "logger=wandb logger.wandb.mode=on": "logger.wandb.mode: expected one of",
}


@pytest.mark.parametrize("words", BAD)
def test_bad_values_are_refused_without_data(words: str) -> None:
    line = refusal(config(*words.split()))
    assert line is not None
    assert line.startswith(BAD[words])


@pytest.mark.parametrize(
    "words",
    [
        "attack.ratio=0.95 attack.eligible=non_target",
        "reserved=5000",
        "data=folder data.root=nowhere attack.target=99 attack.trigger.size=40 model=vit_b_16",
        "data=cifar10 data.root=nowhere defense=abl_joint",
    ],
)
def test_what_only_the_data_tell_is_left_to_the_run(words: str) -> None:
    assert refusal(config(*words.split())) is None


def test_a_device_is_looked_for_only_where_the_job_will_run() -> None:
    assert refusal(config("trainer.device=gpu7"), here=False) is None
    assert check_job(read_command(["seed=1"])).here
    sent = "hydra.launcher._target_=hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"
    assert not check_job(read_command([sent])).here


def test_checking_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BACKDOOR_CACHE", str(tmp_path / "cache"))
    random, threads = torch.get_rng_state(), torch.get_num_threads()
    check(config("threads=7", "logger=wandb_offline", "model=resnet18"))
    assert torch.equal(random, torch.get_rng_state())
    assert torch.get_num_threads() == threads
    assert list(tmp_path.iterdir()) == []


def test_references_to_the_running_job_are_left_to_it() -> None:
    with pytest.raises(Exception) as raised:
        check(config("seed=${hydra:job.num}"))
    assert waits_for_hydra(raised.value)
    assert not waits_for_hydra(ValueError("seed"))


BROKEN = """
from torch import nn


class Broken(nn.Module):
    def __init__(self, **settings):
        raise KeyError("a bug")
"""


def test_an_error_without_a_line_keeps_its_traceback_and_names_the_job(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_model.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(Exception, match="Broken") as raised:
        command("-m", "data=digits", "model._target_=backdoor.models.WideResNet,broken_model.Broken")
    assert raised.value.__notes__ == ["job 1 (data=digits model._target_=broken_model.Broken) cannot run"]


def test_asking_for_help_is_no_sweep() -> None:
    assert read_command(["-m", "seed=1,2"]).sweep
    assert not read_command(["-m", "seed=1,2", "--help"]).sweep
    assert all_words(read_command(["-m", "seed=1,2"])) == [("seed=1",), ("seed=2",)]


@pytest.mark.parametrize("words", ["", "data.channels=1", "data.image_size=[20,24]", "data.limit.train=50"])
def test_what_is_known_of_the_digits_is_what_is_loaded(words: str, cache_dir: Path) -> None:
    node = config("data.mean=[0.3]", "data.std=[0.4]", *words.split()).data
    if "channels" not in words:
        node.mean, node.std = [0.3] * 3, [0.4] * 3
    source: Digits = instantiate(node, _convert_="all")
    data = source.load(cache_dir, progress=False)
    assert source.shape == data.shape
    assert source.names() == data.classes


def test_what_files_alone_tell_is_not_known() -> None:
    arrays = Arrays(train="a.npz", test="b.npz", channels=1, **GREY)
    assert (arrays.shape, arrays.names()) == (None, None)
    named = Arrays(train="a.npz", test="b.npz", channels=1, image_size=16, classes=["cat", "dog"], **GREY)
    assert (named.shape, named.names()) == ((1, 16, 16), ("cat", "dog"))
    assert Digits(channels=None, **GREY).shape is None


def test_what_somebody_elses_poison_gives_the_defense(tmp_path: Path) -> None:
    file = tmp_path / "file.npz"
    file.touch()
    assert External().inputs == frozenset()
    assert External(model=str(file), isolated=str(file)).inputs == {"model", "suspect"}
