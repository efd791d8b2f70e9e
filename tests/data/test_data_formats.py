"""Small files in the data sets' original on-disk formats, read by torchvision's own classes."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision.datasets as tv
from PIL import Image

from backdoor.data import Cifar10, Cifar100, DataSet, FashionMnist, Gtsrb, Mnist, TinyImageNet
from backdoor.errors import UserError

THREE: dict[str, Any] = {"mean": [0.5] * 3, "std": [0.25] * 3}
ONE: dict[str, Any] = {"mean": [0.5], "std": [0.25], "channels": 1}


def load(made: Any, cache: Path) -> DataSet:
    return made.load(cache, progress=False)


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, np.uint8)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def dumped(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))


def cifar_files(root: Path, kind: Any, patch: pytest.MonkeyPatch, classes: int) -> np.ndarray:
    """CIFAR batches of 20 images; the class is told the md5 of these files instead of the originals'."""
    key = "fine_labels" if classes == 100 else "labels"
    folder, stored = root / kind.base_folder, []
    for number, (name, _) in enumerate([*kind.train_list, *kind.test_list]):
        data = pixels(20 + number, 3072)[:20]
        stored.append(data.reshape(20, 3, 32, 32))
        dumped(folder / name, {"data": data, key: [(7 * row) % classes for row in range(20)]})
    dumped(folder / kind.meta["filename"], {kind.meta["key"]: [str(label) for label in range(classes)]})
    for attribute in ("train_list", "test_list"):
        patch.setattr(kind, attribute, [[name, md5(folder / name)] for name, _ in getattr(kind, attribute)])
    patch.setattr(kind, "meta", {**kind.meta, "md5": md5(folder / kind.meta["filename"])})
    return np.concatenate(stored)


@pytest.mark.parametrize(("source", "kind", "classes"), [(Cifar10, tv.CIFAR10, 10), (Cifar100, tv.CIFAR100, 100)])
def test_cifar_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Any, kind: Any, classes: int) -> None:
    stored = cifar_files(tmp_path, kind, monkeypatch, classes)
    made = source(name="cifar", root=str(tmp_path), download=False, **THREE)
    data = load(made, tmp_path / "cache")
    assert (data.train.count, data.test.count, data.num_classes) == (len(stored) - 20, 20, classes)
    np.testing.assert_array_equal(data.train.open().images.numpy(), stored[:-20])
    np.testing.assert_array_equal(data.test.open().images.numpy(), stored[-20:])
    assert data.test.labels.tolist() == [(7 * row) % classes for row in range(20)]


def test_cifar_is_read_once_and_a_damaged_batch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar_files(tmp_path, tv.CIFAR10, monkeypatch, 10)
    made = Cifar10(name="cifar10", root=str(tmp_path), download=False, **THREE)
    first = load(made, tmp_path / "cache")
    with monkeypatch.context() as patch:  # reading again would fail
        patch.setattr(tv.CIFAR10, "__init__", None)
        assert load(made, tmp_path / "cache").train.digest == first.train.digest
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    batch.write_bytes(batch.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"^data\.root=.*cifar10 cannot be read \(RuntimeError: .*corrupted"):
        load(made, tmp_path / "cache")


def idx(values: np.ndarray) -> bytes:
    """The format of MNIST: magic number, sizes (big endian), values."""
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


@pytest.mark.parametrize(("source", "kind"), [(Mnist, tv.MNIST), (FashionMnist, tv.FashionMNIST)])
@pytest.mark.parametrize("packed", [False, True])
def test_mnist_idx_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Any, kind: Any, packed: bool) -> None:
    images = {"train": pixels(30, 28, 28), "t10k": pixels(10, 28, 28)}
    raw = tmp_path / kind.__name__ / "raw"
    raw.mkdir(parents=True)
    for part, values in images.items():
        labels = (np.arange(len(values)) % 10).astype(np.uint8)
        for name, content in ((f"{part}-images-idx3-ubyte", values), (f"{part}-labels-idx1-ubyte", labels)):
            path = raw / (name + ".gz" if packed else name)
            path.write_bytes(gzip.compress(idx(content)) if packed else idx(content))
    if packed:  # torchvision unpacks archives that lie there and have the right md5
        monkeypatch.setattr(kind, "resources", [(name, md5(raw / name)) for name, _ in kind.resources])
    data = load(source(name="mnist", root=str(tmp_path), download=packed, **ONE), tmp_path / "cache")
    assert (data.train.count, data.test.count, data.shape, data.num_classes) == (30, 10, (1, 28, 28), 10)
    np.testing.assert_array_equal(data.train.open().images[:, 0].numpy(), images["train"])
    colour = load(source(name="mnist", root=str(tmp_path), download=False, image_size=32, **THREE), tmp_path / "cache")
    assert colour.shape == (3, 32, 32)


def gtsrb_files(root: Path, classes: int = 43) -> None:
    """The original layout, with images of several sizes."""
    base = root / "gtsrb"
    (base / "GTSRB" / "Final_Test" / "Images").mkdir(parents=True)
    lines = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for label in range(classes):
        folder = base / "GTSRB" / "Training" / f"{label:05d}"
        folder.mkdir(parents=True)
        (folder / f"GT-{label:05d}.csv").write_text("Filename;Width\n")
        for number in range(2):
            Image.new("RGB", (20 + label, 30), (label, number, 5)).save(folder / f"00000_{number:05d}.ppm")
        Image.new("RGB", (25, 25 + label), (label, 9, 5)).save(
            base / "GTSRB" / "Final_Test" / "Images" / f"{label:05d}.ppm"
        )
        lines.append(f"{label:05d}.ppm;25;25;0;0;1;1;{label}")
    (base / "GT-final_test.csv").write_text("\n".join(lines) + "\n")


def test_gtsrb_layout(tmp_path: Path) -> None:
    gtsrb_files(tmp_path)
    made = Gtsrb(name="gtsrb", root=str(tmp_path), download=False, image_size=32, **THREE)
    data = load(made, tmp_path / "cache")
    assert (data.train.count, data.test.count, data.shape, data.num_classes) == (86, 43, (3, 32, 32), 43)
    assert data.train.open().images[:, 0, 0, 0].tolist() == data.train.labels.tolist()
    assert data.test.open().images[:, 0, 0, 0].tolist() == data.test.labels.tolist()
    original = Gtsrb(name="gtsrb", root=str(tmp_path), download=False, **THREE)
    with pytest.raises(UserError, match=r"^data\.image_size: .* is 21x30, the first is 20x30"):
        load(original, tmp_path / "cache")


def test_gtsrb_that_is_not_whole(tmp_path: Path) -> None:
    gtsrb_files(tmp_path, classes=42)
    made = Gtsrb(name="gtsrb", root=str(tmp_path), download=False, image_size=32, **THREE)
    with pytest.raises(UserError, match=r"^data\.root=.*expected 43 class folders .*got 42"):
        load(made, tmp_path / "cache")
    (tmp_path / "gtsrb" / "GT-final_test.csv").unlink()
    with pytest.raises(UserError, match=r"^data\.root=.*cannot be read \(FileNotFoundError: .*GT-final_test\.csv"):
        load(made, tmp_path / "cache")


def tiny_files(root: Path) -> Path:
    """The original layout with three classes."""
    base, wnids = root / "tiny-imagenet-200", ["n03", "n01", "n02"]
    lines = []
    (base / "val" / "images").mkdir(parents=True)
    for number, wnid in enumerate(wnids):
        (base / "train" / wnid / "images").mkdir(parents=True)
        (base / "train" / wnid / f"{wnid}_boxes.txt").write_text("0 0 1 1\n")
        Image.new("L", (64, 64), 50 * number).save(base / "train" / wnid / "images" / f"{wnid}_0.JPEG")
        Image.new("RGB", (64, 64), (50 * number,) * 3).save(base / "val" / "images" / f"val_{number}.JPEG")
        lines.append(f"val_{number}.JPEG\t{wnid}\t0\t0\t62\t62")
    (base / "wnids.txt").write_text("\n".join(wnids))
    (base / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    return base


def test_tiny_imagenet_layout(tmp_path: Path) -> None:
    base = tiny_files(tmp_path)
    for root in (tmp_path, base):
        data = load(TinyImageNet(name="tiny", root=str(root), **THREE), tmp_path / "cache")
        assert data.classes == ("n01", "n02", "n03")
        for part in (data.train, data.test):
            assert part.labels.tolist() == [0, 1, 2]
            assert part.open().images[:, 0, 0, 0].tolist() == [50, 100, 0]


def test_tiny_imagenet_with_wrong_annotations(tmp_path: Path) -> None:
    base = tiny_files(tmp_path)
    made = TinyImageNet(name="tiny", root=str(tmp_path), **THREE)
    listing = base / "val" / "val_annotations.txt"
    good = listing.read_text()
    listing.write_text(good.replace("n02", "n09"))
    with pytest.raises(UserError, match=r"^data\.root: .*val_annotations\.txt, line 3: 'n09' is not in wnids\.txt"):
        load(made, tmp_path / "cache")
    listing.write_text(good.replace("val_1", "val_8"))
    with pytest.raises(UserError, match=r"^data\.root: .*val_8\.JPEG is listed but cannot be read"):
        load(made, tmp_path / "cache")
