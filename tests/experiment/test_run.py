"""Whole runs through the real command line: the backdoor goes in and comes out, and every number can be believed."""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from backdoor.attacks import PoisonPlan
from backdoor.store.weights import load_weights
from helpers.command import QUICK, environment, numbers, read_json
from helpers.run import finish, stage, start

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="session")
def default_run(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Path:
    """The command that a newcomer types, once for all tests."""
    folder = tmp_path_factory.mktemp("default") / "run"
    words = ("attack=badnets", "defense=abl", f"hydra.run.dir={folder}")
    said = finish(start(cache_dir, folder.parent, *words))
    (folder.parent / "said.txt").write_text(said)
    return folder


def test_the_backdoor_goes_in_is_found_and_comes_out(default_run):
    victim, final = stage(default_run, "victim"), read_json(default_run)["final"]
    assert victim["asr"] >= 0.95
    assert victim["c_acc"] >= 0.95
    assert final["asr"] <= 0.05
    assert final["c_acc"] >= victim["c_acc"] - 0.06
    found = stage(default_run, "isolate")["detection"]
    assert found["poisoned"] == 144
    assert found["precision"] > 0.8  # a blind choice finds the poisoning ratio, 0.1
    assert found["auroc"] > 0.7


def test_every_row_is_possible(default_run):
    stages = read_json(default_run)["stages"]
    with (default_run / "metrics.csv").open() as file:
        epochs = [{k: float(v) for k, v in row.items() if k != "stage" and v} for row in csv.DictReader(file)]
    for row in [*stages, *(row for row in epochs if "asr" in row)]:
        assert row["asr"] + row["r_acc"] <= 1 + 1e-9
        for name in ("c_acc", "c_acc_non_target", "asr", "r_acc"):
            assert 0 <= row[name] <= 1
    assert len(epochs) >= 10


def test_the_folder_holds_what_the_readme_promises(default_run):
    stages = ["victim", "isolate", "finetune", "control", "unlearn"]
    result = read_json(default_run)
    assert [entry["name"] for entry in result["stages"]] == stages
    named = {"schema", "data", "images", "attack", "attacks", "defense", "model", "seed", "stages", "final"}
    assert set(result) == named | {"started", "seconds", "peak_memory", "environment", "config"}
    assert (result["schema"], result["attack"], result["defense"]) == (2, "badnets", "abl")
    assert result["model"] == "WideResNet-16-1"
    assert result["seconds"] > 0
    assert result["peak_memory"]["ram"] > 1e8  # torch alone is more
    assert result["environment"] == read_json(default_run, "environment.json")
    assert result["config"] == OmegaConf.to_container(OmegaConf.load(default_run / "config.yaml"))
    page = (default_run / "figures" / "index.html").read_text()
    assert all(f'src="{name}.png"' in page for name in ("trigger", "isolate_loss_gap", "stages", "epochs"))
    assert read_json(default_run, "status.json") == {"state": "done", "victim": "trained"}
    for entry in result["stages"]:
        assert {"c_acc", "c_acc_non_target", "asr", "r_acc", "seconds", "stored"} <= set(entry)
        assert ("der" in entry) == (entry["name"] != "victim")  # against the victim
        assert ("detection" in entry) == (entry["name"] == "isolate")
        assert entry.get("control", False) == (entry["name"] == "control")
    unlearned = {name: stage(default_run, "unlearn")[name] for name in ("c_acc", "asr", "r_acc", "der")}
    assert unlearned == {name: result["final"][name] for name in unlearned}  # not the control's
    assert {path.stem for path in (default_run / "weights").iterdir()} == set(stages)
    config = OmegaConf.load(default_run / "config.yaml")
    assert (config.attack.ratio, config.seed) == (0.1, 0)
    assert {"python", "packages", "device"} <= set(read_json(default_run, "environment.json"))
    for name in ("trigger", "isolate_loss_gap", "stages", "epochs"):
        with Image.open(default_run / "figures" / f"{name}.png") as picture:
            assert min(picture.size) > 100
    assert not list(default_run.rglob("*.tmp"))


def test_plan_and_isolation_agree_with_the_result(default_run):
    plan = PoisonPlan.load(default_run / "plan.npz")
    assert (len(plan.rows), plan.total, set(plan.labels.tolist())) == (144, 1437, {0})
    with np.load(default_run / "isolate.npz", allow_pickle=False) as file:
        isolated = {name: file[name] for name in file.files}
    found = stage(default_run, "isolate")["detection"]
    assert len(isolated["index"]) == len(isolated["score"]) == len(isolated["images"]) == found["flagged"]
    hits = np.isin(isolated["index"], plan.rows.numpy())
    assert hits.mean() == pytest.approx(found["precision"])
    assert hits.sum() / len(plan.rows) == pytest.approx(found["recall"])


def test_the_console_shows_the_table_and_the_folder(default_run):
    said = (default_run.parent / "said.txt").read_text()
    for word in ("C-Acc", "ASR", "R-Acc", "DER", "victim", "isolate", "finetune", "control", "unlearn"):
        assert word in said
    # The path is shown relative to the working directory where it lies below it.
    assert "Folder: run" in said


def test_another_defense_reuses_the_victim(default_run, run_cli, tmp_path):
    begun = time.monotonic()
    done = run_cli("attack=badnets", "defense=none", f"hydra.run.dir={tmp_path / 'run'}")
    spent = time.monotonic() - begun
    assert done.returncode == 0, done.stderr
    assert read_json(tmp_path / "run", "status.json") == {"state": "done", "victim": "hit"}
    assert numbers(tmp_path / "run") == numbers(default_run)[:1]
    assert spent < max(30.0, stage(default_run, "victim")["seconds"] / 2)


EVALUATE = """
import json, sys
from pathlib import Path
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from backdoor.attacks import PoisonPlan
from backdoor.store.weights import load_weights
folder, cache = Path(sys.argv[1]), Path(sys.argv[2])
cfg = OmegaConf.load(folder / "config.yaml")
data = instantiate(cfg.data, _convert_="all").load(cache, progress=False)
attack = instantiate(cfg.attack, _convert_="all")
test = data.test.open()
triggered = attack.attack_set(test, data.num_classes).as_wanted()
model = instantiate(
    cfg.model, num_classes=data.num_classes, in_channels=3, image_size=32, mean=list(data.mean), std=list(data.std)
)
load_weights(model, folder / "weights" / "unlearn.safetensors")
model.eval().to(memory_format=torch.channels_last)
def share(split):
    right = 0
    with torch.no_grad():
        for rows in torch.arange(len(split)).split(128):
            images = split.images[rows].float().div(255).to(memory_format=torch.channels_last)
            right += int((model(images).argmax(1) == split.labels[rows]).sum())
    return right / len(split)
print(json.dumps({"c_acc": share(test), "asr": share(triggered)}))
"""


def test_saved_is_evaluated(default_run, cache_dir):
    """A new process that knows only the run's folder gets the numbers of the table, without the evaluator's code."""
    done = subprocess.run(
        [sys.executable, "-c", EVALUATE, str(default_run), str(cache_dir)],
        capture_output=True,
        text=True,
        env=environment(cache_dir),
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    final = read_json(default_run)["final"]
    assert OmegaConf.create(done.stdout) == {"c_acc": final["c_acc"], "asr": final["asr"]}


def test_weights_in_the_folder_are_the_stored_ones_bit_for_bit(default_run, cache_dir):
    in_folder = default_run / "weights" / "unlearn.safetensors"
    saved = cache_dir.glob("stage/*/model.safetensors")
    stored = [path for path in saved if path.read_bytes() == in_folder.read_bytes()]
    assert stored
    cfg = OmegaConf.load(default_run / "config.yaml")
    logits = []
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for path in (in_folder, stored[0]):
        model = instantiate(cfg.model, num_classes=10, in_channels=3, image_size=32, mean=[0.3] * 3, std=[0.4] * 3)
        load_weights(model, path)
        with torch.no_grad():
            logits.append(model.eval()(images))
    assert torch.equal(*logits)
    assert logits[0].std() > 0


def poisoned_digits(default_run: Path, cache_dir: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The train set that the run's victim saw: images (N, H, W, 3), labels, poisoned rows."""
    cfg = OmegaConf.load(default_run / "config.yaml")
    data = instantiate(cfg.data, _convert_="all").load(cache_dir, progress=False)
    plan = PoisonPlan.load(default_run / "plan.npz")
    split = instantiate(cfg.attack, _convert_="all").poison(data.train.open(), plan)
    return split.images.permute(0, 2, 3, 1).numpy(), split.labels.numpy(), plan.rows.numpy()


def isolated_rows(default_run: Path) -> int:
    """As many as the recipe for digits isolates."""
    return int(stage(default_run, "isolate")["detection"]["flagged"])


@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_somebody_elses_poison(default_run, cache_dir, command, tmp_path, kind):
    images, labels, rows = poisoned_digits(default_run, cache_dir)
    if kind == "npz":
        path = tmp_path / "poisoned.npz"
        np.savez(path, images=images, labels=labels)
    else:
        path = tmp_path / "poisoned"
        order = np.argsort(labels, kind="stable")  # a tree is read class by class
        for place, row in enumerate(order):
            folder = path / str(labels[row])
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[row]).save(folder / f"{place:05}.png")
        rows = np.flatnonzero(np.isin(order, rows))
    (tmp_path / "rows.txt").write_text("\n".join(map(str, rows)))
    given = ("attack=external", f"attack.train={path}", f"attack.poisoned_rows={tmp_path / 'rows.txt'}")
    words = (*given, "+trigger@attack.trigger=grid", "attack.target=0", "defense=abl")
    status, _, said = command(*QUICK, *words, f"hydra.run.dir={tmp_path / 'run'}")
    assert status == 0, said
    found = stage(tmp_path / "run", "isolate")["detection"]
    assert (found["poisoned"], found["flagged"]) == (144, isolated_rows(default_run))
    assert {"asr", "r_acc", "c_acc"} <= set(stage(tmp_path / "run", "victim"))


def test_what_cannot_be_known_is_absent(default_run, cache_dir, command, tmp_path):
    images, labels, _ = poisoned_digits(default_run, cache_dir)
    np.savez(tmp_path / "poisoned.npz", images=images, labels=labels)
    words = ("attack=external", f"attack.train={tmp_path / 'poisoned.npz'}", "defense=abl")
    status, _, said = command(*QUICK, *words, f"hydra.run.dir={tmp_path / 'run'}")
    assert status == 0, said
    for entry in read_json(tmp_path / "run")["stages"]:
        assert not {"asr", "r_acc", "der", "c_acc_non_target"} & set(entry)
        assert set(entry.get("detection", {})) <= {"flagged"}
    assert stage(tmp_path / "run", "isolate")["detection"]["flagged"] == isolated_rows(default_run)


def test_quick_unlearning_from_a_run(default_run, command, tmp_path):
    """One command, no training data but the isolated rows: the last stages of the whole run, number for number."""
    status, _, said = command(
        "attack=external",
        f"attack.model={default_run / 'weights' / 'finetune.safetensors'}",
        f"attack.isolated={default_run / 'isolate.npz'}",
        "+trigger@attack.trigger=grid",
        "attack.target=0",
        "defense=abl_unlearn",
        f"hydra.run.dir={tmp_path / 'run'}",
    )
    assert status == 0, said
    assert read_json(tmp_path / "run", "status.json")["victim"] == "none"
    given, control, unlearned = read_json(tmp_path / "run")["stages"]
    before = stage(default_run, "finetune")
    assert (given["c_acc"], given["asr"]) == (before["c_acc"], before["asr"])
    assert control["control"]
    assert unlearned["asr"] < 0.5 * given["asr"]
    assert (tmp_path / "run" / "weights" / "unlearn.safetensors").exists()
