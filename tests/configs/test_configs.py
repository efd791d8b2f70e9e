"""Every YAML under conf/: it says what it is, composes, names what exists; attacks and defenses run to the end."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hydra.utils import instantiate
from omegaconf import OmegaConf
from sklearn.datasets import load_digits

from backdoor.data.sources import Source
from helpers.command import QUICK, read_json
from helpers.configs import CONF, REQUIRED, choices, composed, targets, words_for

YAML = sorted(path.relative_to(CONF).as_posix() for path in CONF.rglob("*.yaml"))


@pytest.mark.parametrize("name", YAML)
def test_each_file_says_what_it_is_and_names_what_exists(name):
    text = (CONF / name).read_text()
    first = text.splitlines()[0]
    assert first.startswith("# ")
    assert len(first) > 10
    for target in targets(yaml.safe_load(text)):
        module, _, attribute = target.rpartition(".")
        assert callable(getattr(importlib.import_module(module), attribute)), target


@pytest.mark.parametrize(
    "choice",
    [
        f"{group}={name}"
        for group in ("attack", "defense", "data", "model", "trainer", "logger", "victim")
        for name in choices(group)
    ],
)
def test_each_choice_composes_and_resolves(choice):
    cfg = composed(choice, *REQUIRED.get(choice, ()))
    resolved = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    group, _, name = choice.partition("=")
    assert resolved[group]
    if group in ("attack", "defense", "data"):
        assert resolved[group]["name"] == name


@pytest.mark.parametrize("name", choices("data"))
def test_each_data_config_makes_a_source(name):
    source = instantiate(composed(f"data={name}", *REQUIRED.get(f"data={name}", ())).data, _convert_="all")
    assert isinstance(source, Source)
    assert source.recipe["epochs"] >= 1


@pytest.mark.parametrize("name", choices("trigger"))
def test_each_trigger_fits_an_attack(name):
    cfg = composed("attack=badnets", f"trigger@attack.trigger={name}", *REQUIRED.get(f"trigger={name}", ()))
    resolved = OmegaConf.to_container(cfg.attack, resolve=True, throw_on_missing=True)
    assert resolved["trigger"] == resolved["groups"]["poison"]["trigger"]


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the files lie that `external` and `abl_unlearn` ask for: made by hand, from the digits."""
    folder = tmp_path_factory.mktemp("files")
    images, labels = load_digits(return_X_y=True)
    pixels = (images.reshape(-1, 8, 8)[:400] * 15.9).astype(np.uint8).repeat(4, 1).repeat(4, 2)
    pixels[:40, -3:, -3:], changed = 255, labels[:400].copy()
    changed[:40] = 0
    np.savez(folder / "train.npz", images=pixels, labels=changed)
    np.savez(folder / "rows.npz", rows=np.arange(40))
    np.savez(folder / "isolated.npz", index=np.arange(20))
    return folder


def run_to_the_end(command: Any, folder: Path, config: str, files: Path) -> dict[str, Any]:
    words = words_for(config, files)
    status, _, said = command(*QUICK, config, *words, f"hydra.run.dir={folder}")
    assert status == 0, said
    assert read_json(folder, "status.json")["state"] == "done"
    return read_json(folder)


@pytest.mark.parametrize("attack", choices("attack"))
def test_each_attack_runs(command, tmp_path, quick_run, attack):
    words = ("defense=none", *words_for(f"attack={attack}", quick_run))
    status, _, said = command(*QUICK, f"attack={attack}", *words, f"hydra.run.dir={tmp_path / 'run'}")
    assert status == 0, said
    result = read_json(tmp_path / "run")
    assert read_json(tmp_path / "run", "status.json")["state"] == "done"
    assert [stage["name"] for stage in result["stages"]] == ["victim"]
    assert ("asr" in result["final"]) == (attack != "none")
    assert (tmp_path / "run" / "figures" / "trigger.png").exists() == (attack != "none")
    assert (tmp_path / "run" / "plan.npz").exists() == (attack != "external")


@pytest.mark.parametrize("attack", [name for name in choices("attack") if name not in ("none", "external")])
def test_each_attack_takes_grey_images_that_are_not_square(command, tmp_path, attack):
    grey = ("data.channels=1", "data.mean=[0.3]", "data.std=[0.4]", "data.image_size=[16,40]")
    few = ("data.limit.train=150", "data.limit.test=50", "defense=none")
    status, _, said = command(*QUICK, *grey, *few, f"attack={attack}", f"hydra.run.dir={tmp_path / 'run'}")
    assert status == 0, said
    assert "asr" in read_json(tmp_path / "run")["final"]


@pytest.mark.parametrize("defense", choices("defense"))
def test_each_defense_runs(command, tmp_path, quick_run, defense):
    result = run_to_the_end(command, tmp_path / "run", f"defense={defense}", quick_run)
    stages = [stage["name"] for stage in result["stages"]]
    cfg = composed(f"defense={defense}")
    assert stages == ["victim", *(name for name, stage in cfg.defense.stages.items() if stage.get("enabled", True))]
    assert {"c_acc", "asr", "r_acc"} <= set(result["final"])
    for stage in result["stages"]:
        weights = tmp_path / "run" / "weights" / f"{stage['name']}.safetensors"
        assert weights.exists() == ("c_acc" in stage)  # a detector, or a teacher, leaves the model as it is
        if "c_acc" in stage:
            assert 0 <= stage["c_acc"] <= 1
            assert stage["asr"] + stage["r_acc"] <= 1


def test_an_experiment_may_set_what_belongs_to_no_group():
    assert composed("experiment=benchmark_cifar10_cpu", "data.root=x").reserved == 0.05
    assert composed("experiment=benchmark_cifar10_cpu", "data.root=x", "reserved=7").reserved == 7
