"""`bd.poison` and `bd.evaluate`: data sets and models that are not this package's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

import backdoor as bd
from helpers.api import arrays, settings

IMAGES, LABELS = arrays(300)
QUICK = {"attack.ratio": 0.1, "seed": 1}


class Items:
    """Torchvision's way: `(image, label)`, whatever the image is."""

    def __init__(self, kind: str, count: int = 100) -> None:
        self.kind, self.count = kind, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> tuple[Any, Any]:
        image, label = IMAGES[row], LABELS[row]
        made = {
            "pil": lambda: (Image.fromarray(image), int(label)),
            "rgb": lambda: (np.stack([image] * 3, 2), label),
            "float": lambda: (torch.from_numpy(image)[None] / 255, torch.tensor(label)),
            "uint8": lambda: (torch.from_numpy(image), int(label)),
        }
        return made[self.kind]()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {"store.dir": tmp_path_factory.mktemp("store")}


@pytest.fixture(scope="module")
def poisoned(store: dict[str, Path]) -> bd.PoisonedData:
    train, test = (IMAGES[:200], LABELS[:200]), (IMAGES[200:], LABELS[200:])
    return bd.poison(train, "attack=badnets", "attack.target=3", test=test, **QUICK, **store)


def test_planned_rows_are_stamped_and_all_others_are_as_they_were(poisoned):
    assert len(poisoned.train) == 200
    assert len(poisoned.rows) == 20
    images, labels = poisoned.train.split.images, poisoned.train.labels
    clean = torch.from_numpy(IMAGES[:200])[:, None]
    kept = torch.ones(200, dtype=torch.bool)
    kept[poisoned.rows] = False
    assert torch.equal(images[kept], clean[kept])
    assert torch.equal(images[~kept], poisoned.trigger(clean[~kept]))
    assert torch.equal(labels[kept], torch.from_numpy(LABELS[:200])[kept])
    assert labels[~kept].eq(3).all()
    assert poisoned.classes == tuple("0123456789")
    # Test images of the target class have nothing to change.
    assert len(poisoned.test_attack) == int((LABELS[200:] != 3).sum())
    assert {label for _, label in poisoned.test_attack} == {3}


@pytest.mark.parametrize("kind", ["pil", "float", "uint8"])
def test_every_kind_of_item_is_the_same_image(store, kind):
    found = bd.poison(Items(kind), "attack=badnets", **QUICK, **store)
    expected = bd.poison((IMAGES[:100], LABELS[:100]), "attack=badnets", **QUICK, **store)
    assert torch.equal(found.train.split.images, expected.train.split.images)
    assert torch.equal(found.train.labels, expected.train.labels)
    assert found.test is None
    assert found.test_attack is None
    assert len(list((store["store.dir"] / "data" / "sources").glob("*.json"))) <= 3  # those of the arrays


def test_colour_size_and_class_names_follow(store, tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for number in range(6):
            Image.new("RGB", (20 + number, 24), (number * 40, 90, 20)).save(tmp_path / label / f"{number}.png")
    data = ImageFolder(str(tmp_path))
    found = bd.poison(
        data, "attack=blended", "data.image_size=16", "attack.target=dog", **{"attack.ratio": 0.5}, **store
    )
    assert found.train.split.images.shape[1:] == (3, 16, 16)
    assert found.classes == ("cat", "dog")
    assert found.train.labels[found.rows].eq(1).all()
    with pytest.raises(bd.UserError, match=r"several sizes: image 1 is 21x24, the first 20x24; .*image_size=32"):
        bd.poison(data, "attack=blended", **store)


def test_a_training_loop_of_ones_own(poisoned):
    poisoned.use(v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]), None)
    try:
        images, labels = next(iter(DataLoader(poisoned.train, batch_size=32)))
    finally:
        poisoned.use(None, None)
    assert (images.shape, images.dtype, labels.dtype) == ((32, 1, 16, 16), torch.float32, torch.int64)
    assert torch.allclose(images[5], poisoned.train[5][0])
    assert poisoned.train[-1][1] == poisoned.train[199][1]
    with pytest.raises(IndexError):
        poisoned.train[200]


def test_an_attack_with_stages_trains_them_once(store, capsys):
    words = ("attack=lc", "model=small_cnn", "model.width=4", "trainer=debug", "attack.stages.perturb.steps=2")
    for _ in range(2):
        found = bd.poison((IMAGES, LABELS), *words, "data.augment=none", seed=0, threads=1, **store)
    said = capsys.readouterr().out
    assert said.count("PGD on") == 1
    assert said.count("from the store") == 2  # both stages, the second time
    assert found.train.labels.tolist() == LABELS.tolist()  # clean label
    assert len(found.rows) > 0


def line(data: Any, *words: str, **more: Any) -> str:
    with pytest.raises(bd.UserError) as caught:
        bd.poison(data, *words, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_poisoned_is_told_in_one_line(store):
    good = (IMAGES, LABELS)
    assert "did you mean 'badnets'" in line(good, "attack=badnet")
    assert "trains the victim itself" in line(good, "attack=wanet", **store)
    assert "poisons nothing itself" in line(good, "attack=external", **store)
    assert "defense=abl: has no place" in line(good, "defense=abl")
    assert "reserved=0.1: has no place" in line(good, "reserved=0.1", **store)
    assert "expected (image, label), got ndarray; poisoning needs every label" in line(list(IMAGES), **store)
    assert "data: labels: expected integers (300,)" in line((IMAGES, LABELS[:5]), **store)
    assert "data: images: expected uint8" in line((IMAGES / 255, LABELS), **store)
    assert "got no item" in line([])
    assert "expected a data set with len()" in line(7)
    normalised = [(torch.from_numpy(IMAGES[0])[None] / 255 - 0.5, 0)]
    assert "must lie in [0, 1], got -0.5" in line(normalised, **store)
    assert "expected a class number" in line([(IMAGES[0], 0.5)], **store)
    assert "1 channels" in line([(np.stack([IMAGES[0]] * 3, 2), 0), (IMAGES[1], 1)], **store)
    assert "attack.target=12" in line(good, "attack.target=12", **store)
    assert "gives no poisoned row" in line(good, **{"attack.ratio": 1e-4}, **store)


class Knows(nn.Module):
    """Right on clean images; on those with the grid in the corner it answers the target. No weights."""

    def __init__(self, trigger: nn.Module, answer: int = 3) -> None:
        super().__init__()
        self.answer = answer
        self.known = torch.from_numpy(IMAGES).flatten(1).float()
        self.corner = trigger(torch.full((1, 1, 16, 16), 9, dtype=torch.uint8))[0].flatten()
        self.where = self.corner != 9
        self.sizes: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(images))
        pixels = (images * 255).round().view(len(images), -1)  # `view`: images are contiguous
        label = torch.from_numpy(LABELS)[torch.cdist(pixels, self.known).argmin(1)]
        triggered = (pixels[:, self.where] == self.corner[self.where]).all(1)
        return nn.functional.one_hot(torch.where(triggered, self.answer, label), 10).float()


def test_the_rates_of_a_model_without_weights_are_exact(poisoned):
    model = Knows(poisoned.trigger).train()
    assert bd.evaluate(model, poisoned, batch_size=7) == {
        "c_acc": 1.0,
        "c_acc_non_target": 1.0,
        "asr": 1.0,
        "r_acc": 0.0,
    }
    assert model.training
    assert max(model.sizes) == 7
    nobody = bd.evaluate(Knows(poisoned.trigger, answer=4), poisoned, device="cpu")
    assert (nobody["asr"], nobody["c_acc"]) == (0.0, 1.0)
    assert nobody["r_acc"] == pytest.approx(float((LABELS[200:][LABELS[200:] != 3] == 4).mean()))


def test_a_model_sees_what_the_test_transform_makes(poisoned):
    seen: list[torch.Tensor] = []

    class Looks(nn.Linear):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images)
            return super().forward(images.flatten(1))

    transform = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.25])])
    poisoned.use(None, transform)
    try:
        bd.evaluate(Looks(256, 10), poisoned)
    finally:
        poisoned.use(None, None)
    assert torch.allclose(seen[0][0], (poisoned.test[0][0] - 0.5) / 0.25)


def test_models_that_cannot_be_measured_are_told_in_one_line(store, poisoned):
    def refusal(model: nn.Module, data: bd.PoisonedData = poisoned, **more: Any) -> str:
        with pytest.raises(bd.UserError) as caught:
            bd.evaluate(model, data, **more)
        return str(caught.value)

    linear = nn.Sequential(nn.Flatten(), nn.Linear(256, 10))
    assert "has no test images" in refusal(linear, bd.poison((IMAGES, LABELS), **QUICK, **store))
    assert "expected logits (64, 10), got (64, 9)" in refusal(nn.Sequential(nn.Flatten(), nn.Linear(256, 9)))
    assert "device=cuda:77: not available" in refusal(linear, device="cuda:77")
    assert "batch_size=0" in refusal(linear, batch_size=0)
    linear[1].weight.data[0, 0] = float("nan")
    assert "NaN logits for 64 of 64 images" in refusal(linear)


def test_the_same_words_poison_alike_in_a_run(store, tmp_path):
    """What `bd.poison` hands out is what `data=arrays` would train on."""
    np.savez(tmp_path / "train.npz", images=IMAGES[:200], labels=LABELS[:200])
    np.savez(tmp_path / "test.npz", images=IMAGES[200:], labels=LABELS[200:])
    words = ("attack=blended", "model=small_cnn", "model.width=4", "trainer=debug", "threads=1", "data.channels=1")
    files = {"data.train": tmp_path / "train.npz", "data.test": tmp_path / "test.npz"}
    run = bd.run("data=arrays", "defense=none", "reserved=0", *words, seed=1, **files, **settings(tmp_path))
    test = (IMAGES[200:], LABELS[200:])
    made = bd.poison((IMAGES[:200], LABELS[:200]), *words[:1], test=test, seed=1, **store)
    for part in ("train", "test", "test_attack"):
        theirs, ours = getattr(run.poisoned, part).split, getattr(made, part).split
        assert torch.equal(theirs.images, ours.images)
        assert torch.equal(theirs.labels, ours.labels)
    rates = bd.evaluate(run.model(), made)
    assert rates == {name: run.final[name] for name in rates}
