"""Bad data settings and files: one line that names the setting, before anything is trained."""

from __future__ import annotations

import io
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backdoor.data import Arrays, Cifar10, Digits, Folder, Gtsrb, Mnist, TinyImageNet
from backdoor.errors import UserError

HALF: dict[str, Any] = {"mean": [0.5] * 3, "std": [0.25] * 3}


def refused(made: Any, cache: Path) -> str:
    """The one line of the error."""
    with pytest.raises(UserError) as caught:
        made.load(cache, progress=False)
    line = str(caught.value)
    assert "\n" not in line
    return line


def image(path: Path, size: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), (200, 10, 30)).save(path)


def folder(root: Path, **settings: Any) -> Folder:
    return Folder(name="mine", root=str(root), **{**HALF, **settings})


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("on_corrupt", "ignore", r"data\.on_corrupt=ignore: expected error or skip"),
        ("channels", 4, r"data\.channels=4: expected 1 or 3"),
        ("augment", "crop+flip", r"data\.augment=crop\+flip: unknown; did you mean"),
        ("std", [0.5, 0.5, 0], r"data\.std=\[0\.5, 0\.5, 0\]: expected values above 0"),
        ("image_size", 0, r"data\.image_size=0: expected pixels"),
        ("image_size", "32", r"data\.image_size=32: expected pixels"),
        ("image_size", [32, 32, 3], r"data\.image_size=\[32, 32, 3\]: expected pixels"),
        ("image_size", 32.5, r"data\.image_size=32\.5: expected pixels"),
        ("limit", {"train": 0}, r"data\.limit\.train=0: expected a whole number of at least 1"),
        ("limit", {"test": 0.5}, r"data\.limit\.test=0\.5: expected"),
        ("limit", {"val": 5}, r"data\.limit\.val: unknown; expected train or test"),
    ],
)
def test_settings_are_checked_before_any_file(setting: str, value: object, message: str) -> None:
    with pytest.raises(UserError, match="^" + message):
        Digits(name="digits", **{**HALF, setting: value})


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_test_fraction_is_a_share(fraction: float) -> None:
    with pytest.raises(UserError, match=r"^data\.test_fraction=.*expected a share"):
        folder(Path("x"), test_fraction=fraction)


@pytest.mark.parametrize("setting", ["mean", "std"])
def test_normalisation_must_fit_the_channels(tmp_path: Path, setting: str) -> None:
    made = Digits(name="digits", limit={"train": 20, "test": 10}, **{**HALF, setting: [0.5, 0.5]})
    assert refused(made, tmp_path) == f"data.{setting}=[0.5, 0.5]: expected 3 values, one a channel of the images"


def test_missing_and_empty_roots(tmp_path: Path) -> None:
    line = refused(folder(tmp_path / "none"), tmp_path)
    assert line.startswith(f"data.root={tmp_path}/none: cannot be read (No such file or directory); expected <root>/")
    (tmp_path / "empty").mkdir()
    assert refused(folder(tmp_path / "empty"), tmp_path).startswith(f"data.root={tmp_path}/empty: holds no folder")
    (tmp_path / "hollow" / "cat").mkdir(parents=True)
    assert "hollow/cat: this class folder holds no image" in refused(folder(tmp_path / "hollow"), tmp_path)
    image(tmp_path / "flat" / "1.png")
    assert "flat: holds no folder; expected <root>/train/<class>" in refused(folder(tmp_path / "flat"), tmp_path)
    image(tmp_path / "alone" / "train" / "cat" / "1.png")
    assert "has train/ but no test/ or val/" in refused(folder(tmp_path / "alone"), tmp_path)


def test_a_test_class_that_train_lacks(tmp_path: Path) -> None:
    for name in ("train/cat", "train/dog", "test/cat", "test/horse"):
        image(tmp_path / "in" / name / "1.png")
    line = refused(folder(tmp_path / "in"), tmp_path)
    assert line.startswith(f"data.root={tmp_path}/in/test: folder 'horse' (1 such) is no class of the train data; ")
    assert "cat, dog" in line


def test_train_and_test_of_two_sizes(tmp_path: Path) -> None:
    image(tmp_path / "in" / "train" / "cat" / "1.png", 8)
    image(tmp_path / "in" / "test" / "cat" / "1.png", 9)
    line = refused(folder(tmp_path / "in"), tmp_path)
    assert line == "data.image_size: train images are 3x8x8, test images 3x9x9; set data.image_size"


def test_too_few_images_to_split(tmp_path: Path) -> None:
    image(tmp_path / "in" / "cat" / "1.png")
    assert refused(folder(tmp_path / "in"), tmp_path) == "data.test_fraction=0.2: gives 0 test images of 1"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_not_a_corrupt_one(tmp_path: Path) -> None:
    for number in range(5):
        image(tmp_path / "in" / "cat" / f"{number}.png")
        (tmp_path / "in" / "cat" / f"{number}.png").chmod(0)
    assert "Permission denied" in refused(folder(tmp_path / "in", on_corrupt="skip"), tmp_path)


GOOD: dict[str, Any] = {"images": np.zeros((4, 8, 8, 3), np.uint8), "labels": np.arange(4)}


def saved(**changes: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **{**GOOD, **changes})
    return stream.getvalue()


def zipped(name: str, content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr(name, content)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (saved(images=np.zeros((4, 8, 8, 3), np.float32)), "images: expected uint8 .* got float32"),
        (
            saved(images=np.zeros((4, 8, 8, 4), np.uint8)),
            r"images: expected uint8 .* got uint8 \(4, 8, 8, 4\)",
        ),
        (saved(images=np.zeros((4, 8), np.uint8)), r"images: expected uint8 .* got uint8 \(4, 8\)"),
        (saved(images=np.zeros((0, 8, 8, 3), np.uint8)), r"images: expected uint8 .* N > 0"),
        (saved(images=np.array([None, "x"])), "without pickled objects"),
        (saved(labels=np.array([{}, 1, 2, 3], object)), "without pickled objects"),
        (saved(labels=np.zeros(4)), r"labels: expected integers \(4,\), got float64"),
        (saved(labels=np.zeros(3, int)), r"labels: expected integers \(4,\), got int64 \(3,\)"),
        (saved(labels=np.zeros((4, 2), int)), r"labels: expected integers \(4,\), got int64 \(4, 2\)"),
        (saved()[:-40], "expected an npz of plain arrays"),
        (b"PK\x03\x04 no zip", "expected an npz of plain arrays"),
        (b"\x80\x04K\x01.", "expected an npz of plain arrays"),
        (b"", "expected an npz of plain arrays"),
        (zipped("images.npy", b"\x93NUMPY"), "lacks the array labels; it has: images"),
        (zipped("x.npy", b""), "lacks the array images; it has: x"),
        (saved(labels=np.arange(4) - 2), "labels: expected 0 to 1 .* got -2 to 1"),
    ],
)
def test_bad_npz(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "bad.npz").write_bytes(content)
    path = str(tmp_path / "bad.npz")
    line = refused(Arrays(name="mine", train=path, test=path, **HALF), tmp_path / "cache")
    assert line.startswith("data")
    assert re.search(message, line), line


def test_npz_that_is_missing_or_a_plain_npy(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.npz")
    line = refused(Arrays(name="mine", train=missing, test=missing, **HALF), tmp_path)
    assert line.startswith(f"data.train={missing}: no such file")
    with open(tmp_path / "x.npz", "wb") as file:
        np.save(file, GOOD["images"])
    path = str(tmp_path / "x.npz")
    assert "expected an npz" in refused(Arrays(name="mine", train=path, test=path, **HALF), tmp_path / "cache")


def test_arrays_test_class_that_train_lacks(tmp_path: Path) -> None:
    (tmp_path / "train.npz").write_bytes(saved(labels=np.array([0, 0, 2, 2])))
    (tmp_path / "test.npz").write_bytes(saved(labels=np.array([0, 1, 2, 2])))
    made = Arrays(name="mine", train=str(tmp_path / "train.npz"), test=str(tmp_path / "test.npz"), **HALF)
    assert refused(made, tmp_path) == "data: the test set of mine has class '1', the train set not"


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (Cifar10, "put the folder cifar-10-batches-py of cifar-10-python.tar.gz into "),
        (Mnist, "put MNIST/raw/ with train-images-idx3-ubyte.gz"),
        (Gtsrb, "put gtsrb/ with GTSRB/Training/<class>/*.ppm"),
    ],
)
def test_without_download_it_says_what_to_put_where(tmp_path: Path, kind: Any, told: str) -> None:
    made = kind(name="mine", root=str(tmp_path / "here"), download=False, **HALF)
    line = refused(made, tmp_path / "cache")
    assert line.startswith(f"data.root={tmp_path}/here: mine cannot be read (RuntimeError: Dataset not found")
    assert told in line
    assert line.endswith(f"into {tmp_path}/here, or set data.download=true")


def test_tiny_imagenet_says_what_to_put_where(tmp_path: Path) -> None:
    line = refused(TinyImageNet(name="tiny", root=str(tmp_path), **HALF), tmp_path / "cache")
    assert line.startswith(f"data.root={tmp_path}: cannot read {tmp_path}/tiny-imagenet-200/wnids.txt")
    assert "unpack tiny-imagenet-200.zip" in line
