"""`python -m backdoor.preview`: every attack has a figure and numbers, no victim is trained, mistakes get one line."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch

from backdoor.attacks import PoisonPlan
from backdoor.configs.places import conf_dir
from backdoor.metrics.visibility import spectrum, visibility
from helpers.cli import python
from helpers.command import QUICK, environment, read_json

ATTACKS = sorted(path.stem for path in (Path(conf_dir()) / "attack").glob("*.yaml"))
PLANTS = [name for name in ATTACKS if name not in ("none", "external")]
# What differs from the test-time trigger in training: perturbed images, cover samples.
IN_TRAINING = {
    "lc": ["train (poison)"],
    "wanet": ["train (noise)"],
    "inputaware": ["train (cross)"],
}
FEW = ("preview.images=3", "preview.measured=40")
# Input-aware's networks at an eighth of their width.
NARROW = ("attack=inputaware", "attack.stages.mask.width=4", "attack.stages.victim.module.width=4")

Preview = Callable[..., tuple[int, str, str]]


@pytest.fixture
def preview(command: Callable[..., tuple[int, str, str]]) -> Preview:
    """The same command line as `python -m backdoor.preview`, without a process of its own."""
    return partial(command, program=("backdoor.experiment.appearance", "preview"))


def victims(cache: Path) -> list[Path]:
    return sorted((cache / "victim").glob("*/artifact.json"))


@pytest.mark.parametrize("attack", PLANTS)
def test_every_attack_has_a_preview(preview: Preview, tmp_path: Path, cache_dir: Path, attack: str) -> None:
    before = victims(cache_dir)
    chosen = NARROW if attack == "inputaware" else (f"attack={attack}",)
    status, said, wrong = preview(*QUICK, *FEW, *chosen, f"hydra.run.dir={tmp_path / 'show'}")
    assert status == 0, wrong
    found = read_json(tmp_path / "show", "preview.json")
    assert list(found["triggers"]) == ["test", *IN_TRAINING.get(attack, [])]
    for numbers in found["triggers"].values():
        assert 0 < numbers["images"] <= 40
        assert 0 < numbers["changed"] <= numbers["images"]
        assert 3 < numbers["psnr"] < 60
        assert 0 < numbers["ssim"] < 1
        assert 0 < numbers["linf"] <= 255
    assert (tmp_path / "show" / "preview.png").stat().st_size > 10_000
    assert f"attack={attack} on digits" in said
    assert f"{found['triggers']['test']['psnr']:.2f}" in said
    # Only where the victim's training makes the trigger is one trained, for one epoch, and that is said.
    assert (found["note"] == "preview after one epoch") == (attack == "inputaware")
    assert ("preview after one epoch" in said) == (attack == "inputaware")
    assert (victims(cache_dir) == before) == (attack != "inputaware")


def test_numbers_of_a_known_trigger(preview: Preview, tmp_path: Path) -> None:
    words = ("attack=badnets", "trigger@attack.trigger=square", "data.image_size=32", f"hydra.run.dir={tmp_path}")
    assert preview(*QUICK, *words, "preview.measured=2000", "attack.target=3")[0] == 0
    numbers = read_json(tmp_path, "preview.json")["triggers"]["test"]
    assert numbers["images"] == 360 - 37  # digits' test images without the 37 threes
    assert numbers["linf"] > 200


def test_the_trigger_in_training_is_shown_where_it_is_another(preview: Preview, tmp_path: Path) -> None:
    words = ("attack=sig", "attack.trigger.delta=20", "attack.trigger.test_delta=60", *FEW)
    assert preview(*QUICK, *words, f"hydra.run.dir={tmp_path}")[0] == 0
    found = read_json(tmp_path, "preview.json")["triggers"]
    assert {name: round(numbers["linf"]) for name, numbers in found.items()} == {"test": 60, "train (poison)": 20}


def test_one_channel_images(preview: Preview, tmp_path: Path) -> None:
    words = ("data.channels=1", "data.mean=[0.3]", "data.std=[0.4]", "attack=blended_kitty", *FEW)
    status, _, wrong = preview(*QUICK, *words, f"hydra.run.dir={tmp_path}")
    assert status == 0, wrong
    assert np.ptp(matplotlib.image.imread(tmp_path / "preview.png")[:100, :, :3], axis=-1).max() < 0.01  # grey


def test_a_stored_victim_is_used_and_an_epochs_victim_is_no_run(preview: Preview, command: Any, tmp_path: Path) -> None:
    """Two epochs a run: the preview's single one has a key of its own, and gives way to the full one."""
    quick = (*QUICK, "trainer.max_epochs=2", "data.limit.train=100", *NARROW, "seed=5")
    assert preview(*quick, *FEW, f"hydra.run.dir={tmp_path / 'first'}")[0] == 0
    assert read_json(tmp_path / "first", "preview.json")["note"] == "preview after one epoch"
    status, _, wrong = command(*quick, "defense=none", f"hydra.run.dir={tmp_path / 'run'}")
    assert status == 0, wrong
    assert read_json(tmp_path / "run", "status.json")["victim"] == "trained"
    status, said, _ = preview(*quick, *FEW, f"hydra.run.dir={tmp_path / 'second'}")
    assert status == 0
    assert read_json(tmp_path / "second", "preview.json")["note"] is None
    assert "one epoch" not in said


def test_the_rows_are_those_of_the_run(preview: Preview, command: Any, tmp_path: Path) -> None:
    """With rows set aside, too: the perturbed images are looked up by their number in the whole set."""
    words = (*QUICK, "attack=lc", "reserved=0.1", "seed=3")
    assert preview(*words, *FEW, f"hydra.run.dir={tmp_path / 'show'}")[0] == 0
    assert command(*words, "defense=none", f"hydra.run.dir={tmp_path / 'run'}")[0] == 0
    count = len(PoisonPlan.load(tmp_path / "run" / "plan.npz").rows)
    found = read_json(tmp_path / "show", "preview.json")["triggers"]["train (poison)"]
    assert found["images"] == min(40, count)
    assert found["changed"] == found["images"]


MISTAKES = {
    "attack=none": "attack=none: plants no trigger, so there is nothing to preview; choose an attack that does",
    "attack=external": "attack=external: plants no trigger, so there is nothing to preview",
    "attack=badnet": "attack=badnet: no such attack; did you mean 'badnets'",
    "attack.ratoi=0.1": "attack.ratoi: no such option 'ratoi' in 'attack'; did you mean 'ratio'",
    "attack.trigger.size=40": "attack.trigger.size: expected a trigger that fits 32x32",
    "preview.images=0": "preview.images=0: expected a whole number of at least 1",
    "preview.imags=3": "preview.imags: no such option 'imags' in 'preview'; did you mean 'images'?",
    "attack=lc attack.ratio=2": "attack.ratio=2: expected a number from 0 to 1",
    "-m attack=badnets,none": "job 1 (attack=none): attack=none: plants no trigger",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_gets_one_line_and_leaves_nothing(preview: Preview, tmp_path: Path, words: str) -> None:
    status, _, wrong = preview(*words.split())
    assert status == 2
    assert wrong.startswith(f"error: {MISTAKES[words]}"), wrong
    assert len(wrong.splitlines()) == 1
    assert not list(tmp_path.rglob("preview.*"))


def test_a_clean_label_ratio_is_refused_before_the_surrogate_is_trained(preview: Preview, tmp_path: Path) -> None:
    words = (*QUICK, "attack=lc", "attack.ratio_of=train", "attack.ratio=0.2", f"hydra.run.dir={tmp_path / 'show'}")
    status, said, wrong = preview(*words, cache=tmp_path / "cache")
    assert status == 2
    assert "largest ratio is 0.0988" in wrong
    assert "surrogate" not in said
    assert not (tmp_path / "cache" / "stage").exists()


def test_a_sweep_has_a_folder_a_preview(preview: Preview, tmp_path: Path) -> None:
    words = (*QUICK, *FEW, "attack=badnets,blended", f"hydra.sweep.dir={tmp_path}/sweep")
    assert preview("-m", *words)[0] == 0
    made = sorted(path.parent.name for path in tmp_path.glob("sweep/*/preview.png"))
    assert made == ["0-badnets-preview", "1-blended-preview"]


def test_the_real_command(tmp_path: Path, cache_dir: Path) -> None:
    done = python("-m", "backdoor.preview", *QUICK, *FEW, cwd=tmp_path, **environment(cache_dir))
    assert done.returncode == 0, done.stderr
    assert [path.parent.parent.name for path in tmp_path.glob("outputs/digits/*/*/preview.png")] == ["badnets-preview"]


def test_help_says_what_to_type() -> None:
    done = python("-m", "backdoor.preview", "--help")
    assert done.returncode == 0, done.stderr
    for text in ("python -m backdoor.preview attack=", "preview.images=4", "label_map:", "preview.png"):
        assert text in done.stdout


def test_visibility_by_hand() -> None:
    clean = torch.full((2, 1, 16, 16), 100, dtype=torch.uint8)
    triggered = clean.clone()
    triggered[0, 0, 8, 8] = 110
    found = visibility(clean, triggered)
    assert (found["images"], found["changed"], found["linf"]) == (2, 1, 5.0)
    mse = 10**2 / 256
    assert found["psnr"] == pytest.approx(10 * np.log10(255**2 / mse), rel=1e-5)  # of the changed image alone
    assert 0.9 < found["ssim"] < 1
    same = visibility(clean, clean)
    assert (same["ssim"], "psnr" in same) == (1.0, False)
    assert "ssim" not in visibility(clean[..., :8, :8], triggered[..., 8:, 8:])
    with pytest.raises(ValueError, match="N > 0"):
        visibility(clean[:0], triggered[:0])


def test_spectrum_by_hand() -> None:
    """A wave of 3 cycles over the columns: two equal peaks beside the middle; a constant: the middle alone."""
    clean = torch.full((2, 3, 16, 16), 100, dtype=torch.uint8)
    wave = (20 * torch.cos(2 * torch.pi * 3 * torch.arange(16) / 16)).round()
    waves = spectrum(clean, (clean + wave).to(torch.uint8))
    assert sorted(waves.flatten().topk(2).indices.tolist()) == [8 * 16 + 8 - 3, 8 * 16 + 8 + 3]
    flat = spectrum(clean, clean + 1)
    assert flat[8, 8] == pytest.approx(np.log1p(256), rel=1e-5)
    assert int((flat > 1e-3).sum()) == 1
