"""The real images: BACKDOOR_TEST_DATA names the folder with cifar10-jpeg, gtsrb and tiny-imagenet-200."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from backdoor.data import Folder, Gtsrb, TinyImageNet
from backdoor.data.names import CIFAR10

pytestmark = pytest.mark.real
HALF: dict[str, Any] = {"mean": [0.5] * 3, "std": [0.25] * 3}


@pytest.fixture
def root() -> Path:
    given = os.environ.get("BACKDOOR_TEST_DATA")
    if not given:
        pytest.skip("BACKDOOR_TEST_DATA is not set: the real images are not there")
    return Path(given)


def needs(folder: Path) -> Path:
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    return folder


def same(path: Path, pixels: torch.Tensor) -> bool:
    return bool(np.array_equal(np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1), pixels.numpy()))


def test_cifar10_folder_decodes_all_and_reopens_at_once(root: Path, tmp_path: Path) -> None:
    made = Folder(name="cifar10-jpeg", root=str(needs(root / "cifar10-jpeg")), **HALF)
    data = made.load(tmp_path, progress=False)
    start = time.perf_counter()
    again = made.load(tmp_path, progress=False)
    split = again.train.open()
    assert time.perf_counter() - start < 10  # measured 0.4 s; generous, since test machines are shared
    assert again.train.digest == data.train.digest
    assert (data.classes, data.shape) == (CIFAR10, (3, 32, 32))
    assert torch.bincount(data.train.labels).tolist() == [5000] * 10
    assert torch.bincount(data.test.labels).tolist() == [1000] * 10
    for row, name in ((0, "airplane"), (17_123, "cat"), (49_999, "truck")):
        path = sorted((root / "cifar10-jpeg" / "train" / name).iterdir())[row % 5000]
        assert same(path, split.images[row])


def test_gtsrb_counts(root: Path, tmp_path: Path) -> None:
    needs(root / "gtsrb")
    made = Gtsrb(name="gtsrb", root=str(root), download=False, image_size=32, **HALF)
    data = made.load(tmp_path, progress=False)
    assert (data.train.count, data.test.count) == (39_209, 12_630)
    assert (data.shape, data.num_classes) == ((3, 32, 32), 43)
    sizes = torch.bincount(data.train.labels)
    assert (int(sizes.min()), int(sizes.max())) == (210, 2250)
    folder = root / "gtsrb" / "GTSRB"
    assert same(folder / "Training" / "00000" / "00000_00000.ppm", data.train.open().images[0])
    assert same(folder / "Final_Test" / "Images" / "00000.ppm", data.test.open().images[0])
    assert int(data.test.labels[0]) == 16


def test_tiny_imagenet_part(root: Path, tmp_path: Path) -> None:
    needs(root / "tiny-imagenet-200")
    data = TinyImageNet(name="tiny_imagenet", root=str(root), **HALF).load(tmp_path, progress=False)
    assert (data.shape, data.num_classes) == ((3, 64, 64), 200)
    assert torch.bincount(data.train.labels).tolist() == [50] * 200
    assert data.test.count == 2000
    first = sorted((root / "tiny-imagenet-200" / "train" / data.classes[0] / "images").iterdir())[0]
    assert same(first, data.train.open().images[0])
