"""Sweepers other than Hydra's grid choose their jobs as they go, from what the jobs before were worth."""

from __future__ import annotations

import json
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

from backdoor.errors import UserError
from backdoor.experiment import run as experiment
from backdoor.sweep.reuse import objective_of
from helpers.command import QUICK, read_json

JOBS = ("-m", *QUICK, "defense=none", "attack.ratio=interval(0.3,0.4)")

# Halves the interval; Hydra wants such a class in its namespace package.
HALVING = """
import json
from pathlib import Path
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper

class Halving(Sweeper):
    def __init__(self, tries):
        self.tries = tries

    def setup(self, *, hydra_context, task_function, config):
        self.folder = Path(config.hydra.sweep.dir)
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments):
        words = OverridesParser.create().parse_overrides(arguments)
        fixed = [word.input_line for word in words if not word.is_sweep_override()]
        (asked,) = [word for word in words if word.is_interval_sweep()]
        value, worth = asked.value().start, []
        for number in range(self.tries):
            value = (value + asked.value().end) / 2
            job, = self.launcher.launch([[*fixed, f"{asked.key_or_group}={value}"]], initial_job_idx=number)
            worth.append(job.return_value)
        (self.folder / "worth.json").write_text(json.dumps(worth))
"""


@pytest.fixture
def halving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The word that chooses that sweeper."""
    place = tmp_path / "plugins" / "hydra_plugins" / "halving"
    place.mkdir(parents=True)
    (place / "__init__.py").write_text(HALVING)
    monkeypatch.syspath_prepend(str(tmp_path / "plugins"))
    Plugins.instance().register(import_module("hydra_plugins.halving").Halving)
    node = {"_target_": "hydra_plugins.halving.Halving", "tries": 2}
    ConfigStore.instance().store(group="hydra/sweeper", name="halving", node=OmegaConf.create(node), provider="test")
    return "hydra/sweeper=halving"


def test_another_sweeper_chooses_the_jobs_and_learns_what_they_were_worth(command, halving, tmp_path, monkeypatch):
    words = (*JOBS, halving, f"hydra.sweep.dir={tmp_path / 'sweep'}")
    status, said, errors = command(*words, cache=tmp_path / "cache")
    assert (status, "2 done" in said) == (0, True), errors
    results = [read_json(tmp_path / "sweep" / f"{number}-badnets-none") for number in (0, 1)]
    assert [result["config"]["attack"]["ratio"] for result in results] == pytest.approx([0.35, 0.375])
    assert read_json(tmp_path / "sweep", "worth.json") == [result["final"]["c_acc"] for result in results]
    monkeypatch.setattr(experiment, "run", lambda cfg: pytest.fail("it is in the store"))
    status, _, errors = command(*words, "objective=[asr,c_acc]", cache=tmp_path / "cache")
    assert status == 0, errors
    wanted = [[result["final"]["asr"], result["final"]["c_acc"]] for result in results]
    assert read_json(tmp_path / "sweep", "worth.json") == wanted


def test_two_of_its_jobs_in_one_folder_are_refused(command, halving, tmp_path):
    words = (*JOBS, halving, f"hydra.sweep.dir={tmp_path / 'sweep'}")
    status, _, said = command(*words, "hydra.sweep.subdir=same")
    assert status == 2
    assert said.splitlines()[-1].startswith("error: hydra.sweep.subdir: jobs 0 and 1 would both write into ")
    status, _, said = command(*words, "hydra.sweep.subdir=../up")
    assert status == 2
    assert "expected a folder below the sweep's" in said.splitlines()[-1]


def test_a_worth_is_a_number_that_the_job_has_measured(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps({"final": {"asr": 1, "detection": {"auroc": 0.5}, "x": None}}))
    assert objective_of(tmp_path, "detection.auroc") == 0.5
    assert objective_of(tmp_path, ["asr", "detection.auroc"]) == [1.0, 0.5]
    for name in ("acr", "x", "detection", None):
        with pytest.raises(UserError, match=rf"^objective={name}: .*Choices: asr"):
            objective_of(tmp_path, name)


@pytest.mark.skipif(find_spec("optuna") is None, reason="hydra-optuna-sweeper is not installed")
def test_optuna(command, tmp_path):
    asked: tuple[Any, ...] = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1")
    status, _, errors = command(*JOBS, *asked, f"hydra.sweep.dir={tmp_path}", cache=tmp_path / "cache")
    assert status == 0, errors
    best = OmegaConf.load(tmp_path / "optimization_results.yaml")
    assert 0.3 <= best.best_params["attack.ratio"] <= 0.4
    assert best.best_value == min(read_json(tmp_path / f"{n}-badnets-none")["final"]["c_acc"] for n in (0, 1))
