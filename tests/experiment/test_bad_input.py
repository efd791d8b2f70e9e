"""Mistakes in settings and files: one line that names the setting, before anything trains, and nothing is lost."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from helpers.command import QUICK, read_json


class Payload:
    """What a hostile checkpoint would hold: unpickling it writes a file."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("unpickled",)


def tree(root: Path, classes: dict[str, list[str]], size: int = 16) -> Path:
    """A folder with two noise images for each class of each part."""
    random = np.random.default_rng(0)
    for part, names in classes.items():
        for name in names:
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(4):
                Image.fromarray(random.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return root


def npz(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    np.savez(path, images=images, labels=labels)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good and bad data and checkpoints."""
    root = tmp_path_factory.mktemp("bad")
    tree(root / "good", {"train": ["cat", "dog"], "test": ["cat", "dog"]})
    tree(root / "extra", {"train": ["cat", "dog"], "test": ["cat", "dog", "owl"]})
    tree(root / "corrupt", {"train": ["cat", "dog"], "test": ["cat", "dog"]})
    (root / "corrupt/train/dog/2.png").write_bytes(b"not an image")
    (root / "hollow/train/cat").mkdir(parents=True)
    (root / "hollow/test/cat").mkdir(parents=True)
    (root / "empty").mkdir()
    images, labels = np.zeros((8, 16, 16, 3), np.uint8), np.arange(8) % 2
    npz(root / "good.npz", images, labels)
    npz(root / "pickled.npz", images, np.array([{"a": 1}] * 8, dtype=object))
    npz(root / "float.npz", images.astype(np.float32), labels)
    npz(root / "flat.npz", images.reshape(8, -1), labels)
    npz(root / "short.npz", images, labels[:5])
    npz(root / "class2.npz", images, np.arange(8) % 3)
    (root / "text.npz").write_text("not an npz")
    torch.save(nn.Linear(3, 2).state_dict(), root / "wide.pt")
    torch.save({"state_dict": {"weight": torch.ones(2)}, "extra": Payload()}, root / "hostile.pt")
    (root / "text.pt").write_text("not a checkpoint")
    np.savez(root / "rows.npz", rows=np.array([5, 99_999]))
    return root


FOLDER = "data=folder data.root={files}/"
ARRAYS = "data=arrays data.test={files}/good.npz data.train={files}/"
MODEL = "attack=external defense=none attack.model={files}/"

MISTAKES = {
    # names
    "attack=badnet": ["attack=badnet", "did you mean 'badnets'"],
    "defense=alb": ["defense=alb", "did you mean 'abl'"],
    "data=digit": ["data=digit", "did you mean 'digits'"],
    "attack.ratoi=0.1": ["attack.ratoi", "did you mean 'ratio'"],
    "victim.epohcs=1": ["victim.epohcs", "did you mean 'epochs'"],
    "victim.module.schedule=cosin": ["victim", "schedule=cosin", "did you mean 'cosine'"],
    "+victim.module.lrr=1": ["victim", "module", "lrr"],
    "defense.stages.unlearn.module.bn_mode=eval": ["defense.stages.unlearn", "bn_mode=eval", "frozen"],
    "defense.stages.isolate.module.form=lag": ["defense.stages.isolate", "form=lag", "'lga'"],
    "victim.rows=everything": ["victim", "rows=everything", "all"],
    "victim.epochs=0": ["victim", "epochs=0", "at least 1"],
    "trainer.precision=fp3": ["trainer.precision=fp3", "fp32"],
    "trainer.device=gpu7": ["trainer.device=gpu7", "cpu"],
    # the attack's numbers
    "attack.ratio=-0.1": ["attack.ratio=-0.1", "from 0 to 1"],
    "attack.ratio=1.5": ["attack.ratio=1.5", "from 0 to 1"],
    "attack.ratio=much": ["attack.ratio=much", "from 0 to 1"],
    "attack.ratio=0.95 attack.eligible=non_target": ["attack.ratio=0.95", "eligible", "largest ratio"],
    "attack=sig attack.ratio_of=train attack.ratio=0.3": ["attack.ratio=0.3", "largest ratio"],
    "attack.target=10": ["attack.target=10", "from 0 to 9"],
    "attack.target=-1": ["attack.target=-1", "from 0 to 9"],
    "attack.eligible=nontarget": ["attack.eligible=nontarget", "non_target"],
    "attack.trigger.size=40": ["attack.trigger", "40"],
    "defense.isolation_ratio=0": ["isolation_ratio=0", "between 0 and 1"],
    "reserved=5000": ["reserved", "1437"],
    # data
    "data=folder": ["data.root", "required"],
    FOLDER + "nowhere": ["data.root=", "nowhere", "expected"],
    FOLDER + "empty": ["data.root=", "holds no folder", "expected"],
    FOLDER + "hollow": ["data.root=", "holds no image"],
    FOLDER + "extra": ["data.root=", "'owl'"],
    FOLDER + "corrupt": ["data.root", "train/dog/2.png", "data.on_corrupt=skip"],
    ARRAYS + "nowhere.npz": ["data.train=", "no such file"],
    ARRAYS + "pickled.npz": ["data.train=", "without pickled objects"],
    ARRAYS + "float.npz": ["data.train=", "expected uint8", "float32"],
    ARRAYS + "flat.npz": ["data.train=", "expected uint8", "(8, 768)"],
    ARRAYS + "short.npz": ["data.train=", "labels", "(5,)"],
    ARRAYS + "text.npz": ["data.train=", "expected an npz"],
    "data=arrays data.train={files}/good.npz data.test={files}/class2.npz": ["data", "labels", "0 to 1"],
    # other people's poison
    MODEL + "nowhere.pt": ["attack.model=", "no such file"],
    MODEL + "wide.pt": ["attack.model=", "another architecture", "missing", "unexpected"],
    MODEL + "hostile.pt": ["attack.model=", "could run code", "safetensors"],
    MODEL + "text.pt": ["attack.model="],
    "attack=external +trigger@attack.trigger=grid": ["attack.target", "target class"],
    "attack=external attack.poisoned_rows={files}/rows.npz": ["attack.poisoned_rows", "0 to 1436"],
    "attack=external attack.isolated={files}/rows.npz defense=abl_unlearn": [
        "attack.isolated",
        "attack.train",
    ],
    "defense=abl_unlearn": ["defense=abl_unlearn", "suspect", "attack.isolated"],
    # places
    "store.dir={files}/good.npz": ["store.dir=", "writable"],
    "hydra.run.dir={files}/good.npz/run": ["hydra.run.dir", "cannot write"],
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_gets_one_line_and_trains_nothing(command, files, tmp_path, words):
    cache = tmp_path / "cache"
    status, _, said = command("model=wrn16_1", *words.format(files=files).split(), cache=cache)
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert status == 2
    assert len(errors) == 1, said
    assert "Traceback" not in said
    for part in MISTAKES[words]:
        assert part in errors[0]
    assert not list(cache.glob("victim/*")), "a stage has begun"
    assert not (tmp_path / "unpickled").exists()


def test_a_corrupt_image_can_be_left_out(command, files, tmp_path):
    words = FOLDER.format(files=files) + "corrupt data.on_corrupt=skip defense=none attack.ratio=0.3"
    folder = tmp_path / "run"
    status, out, said = command(*QUICK, *words.split(), f"hydra.run.dir={folder}", cache=tmp_path / "cache")
    assert status == 0, said
    assert "7 train images" in out  # of eight
    assert read_json(folder, "status.json")["state"] == "done"


def test_what_went_wrong_is_in_the_folder_and_what_was_there_is_kept(command, tmp_path):
    folder = tmp_path / "run"
    status, _, said = command(*QUICK, "defense=none", f"hydra.run.dir={folder}")
    assert status == 0, said
    weights = (folder / "weights" / "victim.safetensors").read_bytes()
    status, _, _ = command(*QUICK, "defense=none", "attack.target=12", f"hydra.run.dir={folder}")
    assert status == 2
    failed = read_json(folder, "status.json")
    assert failed["state"] == "failed"
    assert "attack.target=12" in failed["error"]
    assert (folder / "weights" / "victim.safetensors").read_bytes() == weights


def test_a_real_process_exits_with_two_and_one_line(run_cli):
    done = run_cli("attack.ratio=2", timeout=120)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        line for line in done.stderr.splitlines() if line.startswith("error: attack.ratio=2")
    ]
    assert len(done.stderr.splitlines()) == 1


@pytest.fixture
def tiny_disk(tmp_path: Path):
    """A file system of 256 kB, which only root can mount."""
    place = tmp_path / "disk"
    place.mkdir()
    options = ["-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(["mount", *options], capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("a small file system cannot be mounted here (it takes root)")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("full", ["hydra.run.dir", "store.dir"])
def test_a_full_disk(command, tiny_disk, tmp_path, full):
    """With the store on the full disk nothing is trained; with the run's folder there, the victim is kept."""
    places = {"hydra.run.dir": tmp_path / "run", "store.dir": tmp_path / "store", full: tiny_disk / "here"}
    words = [f"{name}={place}" for name, place in places.items()]
    quick = ("model=wrn16_1", "trainer=debug", "defense=none")
    status, _, said = command(*quick, *words)
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert status == 2, said
    assert len(errors) == 1
    assert "full" in errors[0] or "No space left" in errors[0]
    assert full in errors[0]
    if full == "hydra.run.dir":
        places[full] = tmp_path / "elsewhere"
        status, _, said = command(*quick, *(f"{name}={place}" for name, place in places.items()))
        assert status == 0, said
        assert read_json(tmp_path / "elsewhere", "status.json")["victim"] == "hit"
