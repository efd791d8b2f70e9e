"""Every defense on a finished run and on a user's own data and model; what is saved is what was evaluated."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor

from backdoor.attacks import PoisonPlan
from backdoor.experiment.evaluator import Evaluator
from backdoor.training.inference import map_split
from helpers.command import QUICK, environment, read_json
from helpers.configs import choices, composed
from helpers.run import in_process

# abl_unlearn starts from an isolation (tests/configs runs it); the others need a train set and perhaps a victim.
DEFENSES = [name for name in choices("defense") if name not in ("none", "abl_unlearn")]
FEW = ("data.limit.train=400", "data.limit.test=100", "data.image_size=16")
SHOWN = 40


class Ways:
    """A finished run, the same poison as a user's own files, and each defense on either, run once."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cache = folder, folder / "cache"
        self.evaluated: dict[str, Tensor] = {}
        planting = (*QUICK, *FEW, "attack=badnets", "defense=none", "reserved=0.2")
        self.victim = self.call("victim", *planting)
        self.words = {"finished run": ("attack=external", f"attack.run={self.victim}"), "own files": self.own()}
        self.run = cache(self.run_once)

    def own(self) -> tuple[str, ...]:
        """The settings of somebody who has images and weights, and knows nothing of an attack."""
        cfg = OmegaConf.load(self.victim / "config.yaml")
        data, attack = (instantiate(cfg[part], _convert_="all") for part in ("data", "attack"))
        loaded = data.load(self.cache, progress=False)
        plan = PoisonPlan.load(self.victim / "plan.npz")
        split = attack.poison(loaded.train.open().take(torch.arange(plan.total)), plan)
        np.savez(self.folder / "suspicious.npz", images=split.images.numpy(), labels=split.labels.numpy())
        model = self.victim / "weights" / "victim.safetensors"
        return (
            *FEW,
            "reserved=0.2",
            "attack=external",
            f"attack.train={self.folder}/suspicious.npz",
            f"attack.model={model}",
        )

    def run_once(self, way: str, defense: str) -> Path:
        """The folder of the defense's run."""
        return self.call(f"{way.replace(' ', '-')}-{defense}", *QUICK, *self.words[way], f"defense={defense}")

    def call(self, name: str, *words: str) -> Path:
        """Run, and keep the logits of every model on the way as the evaluating process has them."""
        plain, folder = Evaluator.stage, self.folder / name

        def watched(evaluator: Evaluator, finished: Any) -> dict[str, Any]:
            entry = plain(evaluator, finished)
            if "c_acc" in entry:
                shown = evaluator.truth.test_clean.take(torch.arange(SHOWN))
                key = f"{name}/{finished.step.name}"
                self.evaluated[key] = map_split(finished.state.model, shown, lambda logits, labels: logits)
            return entry

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Evaluator, "stage", watched)
            status, said = in_process(self.cache, *words, f"hydra.run.dir={folder}")
        assert status == 0, said
        return folder


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> Ways:
    return Ways(tmp_path_factory.mktemp("ways"))


@pytest.mark.parametrize("defense", DEFENSES)
@pytest.mark.parametrize("way", ["finished run", "own files"])
def test_each_defense_runs_on_what_is_there(ways, way, defense):
    folder = ways.run(way, defense)
    result, cfg = read_json(folder), composed(f"defense={defense}")
    stages = [name for name, stage in cfg.defense.stages.items() if stage.get("enabled", True)]
    assert [stage["name"] for stage in result["stages"]] == ["victim", *stages]
    assert read_json(folder, "status.json") == {"state": "done", "victim": "none"}
    known = {"asr", "r_acc"} & set(result["final"])
    assert known == ({"asr", "r_acc"} if way == "finished run" else set())
    assert result["stages"][0]["c_acc"] == read_json(ways.victim)["final"]["c_acc"]
    for stage in result["stages"]:
        found = stage.get("detection", {})
        assert set(found) <= {"flagged"} if way == "own files" else "poisoned" in found or not found


def test_nothing_is_trained_to_get_the_victim(ways):
    for defense in ("ft", "spectral"):
        ways.run("finished run", defense)
    assert len([path for path in (ways.cache / "victim").iterdir() if path.is_dir()]) == 1


LOAD = """
import json, sys
from pathlib import Path
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from backdoor.store.weights import load_weights

torch.set_num_threads(1)
folder = Path(sys.argv[1])
images = load_file(folder / "shown.safetensors")["images"]
logits = {}
for key in json.loads((folder / "asked.json").read_text()):
    run, stage = key.split("/")
    cfg = OmegaConf.load(folder / run / "config.yaml")
    mean, std = list(cfg.data.mean), list(cfg.data.std)
    facts = dict(num_classes=10, in_channels=3, image_size=16, mean=mean, std=std)
    model = instantiate(cfg.model, **facts, _convert_="all").to(memory_format=torch.channels_last).eval()
    load_weights(model, folder / run / "weights" / f"{stage}.safetensors")
    with torch.no_grad():
        logits[key] = model(images.float().to(memory_format=torch.channels_last) / 255)
save_file(logits, folder / "logits.safetensors")
"""


def test_saved_is_evaluated(ways):
    """A new process gets, out of each run's folder, the very logits that were evaluated, also of what was pruned."""
    asked = []
    for defense in DEFENSES:
        folder = ways.run("finished run", defense)
        saved = [stage["name"] for stage in read_json(folder)["stages"] if "c_acc" in stage]
        asked += [f"{folder.name}/{stage}" for stage in saved if stage != "victim"]
    assert {"prune", "mask", "unlearn", "head", "repair"} <= {key.split("/")[1] for key in asked}
    cfg = OmegaConf.load(ways.victim / "config.yaml")
    test = instantiate(cfg.data, _convert_="all").load(ways.cache, progress=False).test.open()
    save_file({"images": test.images[:SHOWN].clone()}, ways.folder / "shown.safetensors")
    (ways.folder / "asked.json").write_text(json.dumps(asked))
    command = [sys.executable, "-c", LOAD, str(ways.folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(ways.cache), timeout=200)
    assert done.returncode == 0, done.stderr
    loaded = load_file(ways.folder / "logits.safetensors")
    for key in asked:
        assert torch.equal(loaded[key], ways.evaluated[key]), key
    assert not torch.equal(loaded["finished-run-fp/prune"], loaded["finished-run-ft/finetune"])
