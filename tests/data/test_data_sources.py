from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image, features

from backdoor.data import Arrays, DataSet, Folder, Source, load_images
from backdoor.data.pictures import resize, to_channels
from backdoor.errors import UserError

CONF = Path(__file__).parents[2] / "conf"
NAMES = sorted(path.stem for path in (CONF / "data").glob("*.yaml"))
REQUIRED = {"folder": ["data.root=nowhere"], "arrays": ["data.train=nowhere.npz", "data.test=nowhere.npz"]}
HALF: dict[str, Any] = {"mean": [0.5] * 3, "std": [0.25] * 3}


def source(name: str, *overrides: str) -> Source:
    """As the program makes it: composed, then instantiated."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(overrides=[f"+data={name}", *REQUIRED.get(name, []), *overrides])
    return instantiate(config.data, _convert_="all")


def tree(root: Path, classes: list[str], count: int = 10, size: int = 8) -> Path:
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for image in range(count):
            Image.new("RGB", (size, size), (number * 20, image * 10, 7)).save(root / name / f"{image}.png")
    return root


def folder(root: Path, **settings: Any) -> Folder:
    return Folder(name="folder", root=str(root), **{**HALF, **settings})


def arrays(path: Path, images: np.ndarray, labels: np.ndarray) -> str:
    np.savez(path, images=images, labels=labels)
    return str(path)


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("name", NAMES)
def test_every_config_has_the_common_keys_and_touches_no_disk(name: str) -> None:
    made = source(name)
    assert made.name == name
    assert len(made.mean) == len(made.std) == (1 if "mnist" in name else 3)
    assert set(made.recipe or {}) == {"epochs", "lr", "batch_size", "weight_decay", "schedule"}
    assert (CONF / "data" / f"{name}.yaml").read_text().startswith("# ")


def test_digits_are_those_of_scikit_learn_enlarged(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    data = source("digits").load(tmp_path, progress=False)
    assert (data.train.count, data.test.count, data.shape, data.num_classes) == (1437, 360, (3, 32, 32), 10)
    shares = torch.bincount(data.test.labels) / torch.bincount(data.train.labels)
    assert float(shares.max() - shares.min()) < 0.02
    small = torch.cat([part.open().images[:, 0, ::4, ::4] for part in (data.train, data.test)]).flatten(1)
    known = np.floor(load_digits().images * 255 / 16 + 0.5).astype(np.uint8).reshape(1797, 64)
    assert sorted(small.tolist()) == sorted(known.tolist())
    blocks = data.train.open().images.unfold(2, 4, 4).unfold(3, 4, 4).flatten(4)
    assert bool((blocks == blocks[..., :1]).all())
    values = torch.cat([part.open().images.float().flatten() for part in (data.train, data.test)]) / 255
    assert data.mean[0] == pytest.approx(float(values.mean()), abs=1e-3)
    assert data.std[0] == pytest.approx(float(values.std()), abs=1e-3)


def test_digits_split_is_seeded_and_size_and_channels_follow(tmp_path: Path) -> None:
    def digests(*overrides: str) -> tuple[str, str]:
        data = source("digits", *overrides).load(tmp_path, progress=False)
        return data.train.digest, data.test.digest

    assert digests() == digests()
    assert digests() != digests("data.split_seed=1")
    changes = "data.image_size=[20,24]", "data.channels=1", "data.mean=[0.3]", "data.std=[0.4]"
    assert source("digits", *changes).load(tmp_path, progress=False).shape == (1, 20, 24)


def test_limit_keeps_a_seeded_stratified_subset(tmp_path: Path) -> None:
    def load(*overrides: str) -> DataSet:
        return source("digits", "data.limit.train=100", *overrides).load(tmp_path, progress=False)

    data = load("data.limit.test=20")
    assert (data.train.count, data.test.count) == (100, 20)
    assert int(torch.bincount(data.train.labels, minlength=10).min()) >= 9
    assert load().train.digest == data.train.digest
    assert load().test.count == 360
    assert load("data.limit_seed=1").train.digest != data.train.digest


def test_folder_with_train_and_val(tmp_path: Path) -> None:
    tree(tmp_path / "in" / "train", ["b", "a", "c"])
    tree(tmp_path / "in" / "val", ["c", "a"], count=2)
    (tmp_path / "in" / "train" / "a" / "notes.txt").write_text("no image")
    (tmp_path / "in" / "train" / ".hidden").mkdir()
    data = folder(tmp_path / "in").load(tmp_path / "cache", progress=False)
    assert data.classes == ("a", "b", "c")
    assert (data.train.count, data.test.labels.tolist()) == (30, [0, 0, 2, 2])
    assert data.train.open().images[data.train.labels == 0][:, 0].unique().tolist() == [20]  # "a" was drawn second


def test_one_tree_is_split_stratified_and_disjoint(tmp_path: Path) -> None:
    tree(tmp_path / "in", ["train", "bus"])  # a class may be called train
    data = folder(tmp_path / "in", test_fraction=0.3).load(tmp_path / "cache", progress=False)
    assert (data.train.labels.tolist(), data.test.labels.tolist()) == ([0] * 7 + [1] * 7, [0] * 3 + [1] * 3)
    seen = [tuple(image[:, 0, 0].tolist()) for part in (data.train, data.test) for image in part.open().images]
    assert len(set(seen)) == 20


def test_folder_limit_grey_and_resize(tmp_path: Path) -> None:
    tree(tmp_path / "in", ["a", "b"])
    settings: dict[str, Any] = {"mean": [0.5], "std": [0.5], "channels": 1, "image_size": 16}
    data = folder(tmp_path / "in", limit={"train": 4}, **settings).load(tmp_path / "cache", progress=False)
    assert (data.train.labels.tolist(), data.test.count, data.shape) == ([0, 0, 1, 1], 4, (1, 16, 16))


def test_skipped_images_are_counted_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tree(tmp_path / "in", ["a", "b"]) / "a" / "3.png").write_bytes(b"broken")
    with caplog.at_level(logging.WARNING):
        data = folder(tmp_path / "in", on_corrupt="skip").load(tmp_path / "cache", progress=False)
    assert data.train.skipped + data.test.skipped == 1
    assert data.train.count + data.test.count == 19
    assert "left out 1 corrupt images of folder t" in caplog.text


@pytest.mark.parametrize("layout", ["grey", "nhwc", "nchw"])
def test_arrays_in_each_layout(tmp_path: Path, layout: str) -> None:
    nchw = pixels(12, 1 if layout == "grey" else 3, 8, 10)
    stored = {"grey": nchw[:, 0], "nhwc": nchw.transpose(0, 2, 3, 1), "nchw": nchw}[layout]
    train = arrays(tmp_path / "train.npz", stored, np.arange(12, dtype=np.uint8) % 4)
    test = arrays(tmp_path / "test.npz", stored[:3], np.array([3, 0, 1]))
    data = source("arrays", f"data.train={train}", f"data.test={test}").load(tmp_path / "cache", progress=False)
    expected = nchw.repeat(3, 1) if layout == "grey" else nchw
    np.testing.assert_array_equal(data.train.open().images.numpy(), expected)
    assert (data.test.labels.tolist(), data.classes) == ([3, 0, 1], ("0", "1", "2", "3"))


@pytest.mark.parametrize("shape", [(9, 8, 8), (9, 8, 8, 3)])
def test_one_file_for_both_parts_as_medmnist_has_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, shape: tuple[int, ...]
) -> None:
    stored = {part: pixels(count, *shape[1:]) for part, count in (("train", 9), ("val", 2), ("test", 4))}
    content = {f"{part}_images": images for part, images in stored.items()}
    for part, images in stored.items():
        content[f"{part}_labels"] = (np.arange(len(images), dtype=np.uint8) % 3)[:, None]
    np.savez(tmp_path / "med.npz", **content)
    with caplog.at_level(logging.WARNING):
        data = source("arrays", f"data.train={tmp_path}/med.npz", "data.test=null").load(tmp_path / "cache")
    for part, split in (("train", data.train.open()), ("test", data.test.open())):
        images = stored[part][..., None] if stored[part].ndim == 3 else stored[part]
        np.testing.assert_array_equal(
            split.images.numpy(), images.transpose(0, 3, 1, 2).repeat(3 // images.shape[3], 1)
        )
        assert split.labels.tolist() == [row % 3 for row in range(len(images))]
    assert "med.npz: the arrays val_images, val_labels are left out" in caplog.text
    np.savez(tmp_path / "one.npz", images=stored["train"], labels=content["train_labels"][:, 0])
    split_files = source("arrays", f"data.train={tmp_path}/one.npz", f"data.test={tmp_path}/med.npz")
    again = split_files.load(tmp_path / "cache")
    assert (again.train.digest, again.test.digest) == (data.train.digest, data.test.digest)
    with pytest.raises(UserError, match=r"^data\.test=null: .* lacks the array train_images, .* has: images, labels;"):
        source("arrays", f"data.train={tmp_path}/one.npz", "data.test=null").load(tmp_path / "cache")


def test_files_of_other_kinds_are_told_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tree(tmp_path / "in", ["a", "b"])
    for name in ("a/1.heic", "a/2.HEIC", "b/notes.txt", "b/README", "a/.DS_Store", "b/Thumbs.db"):
        (root / name).write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        folder(root).load(tmp_path / "cache", progress=False)
    told = "data.root={}: 4 files of other kinds are left out (.heic 2, .txt 1, no extension 1); images are .jpg "
    assert [told.format(root) in record.message for record in caplog.records] == [True]
    for path in (root / "b").glob("*.png"):
        path.unlink()
    with pytest.raises(UserError, match=r"in/b: this class folder holds no image; 2 files of other kinds .*\(\.txt 1"):
        folder(root).load(tmp_path / "cache")


@pytest.mark.parametrize("kind", ["gif", "webp", "tiff", "bmp", "jfif", "avif"])
def test_every_kind_that_pillow_reads(tmp_path: Path, kind: str) -> None:
    if kind == "avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    root = tree(tmp_path / "in", ["a", "b"])
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    more: dict[str, Any] = {"save_all": True, "append_images": frames[1:]} if kind in ("gif", "webp", "tiff") else {}
    frames[0].save(root / "b" / f"zzz.{kind}", **more)
    data = folder(root, test_fraction=0.1, limit_seed=1).load(tmp_path / "cache", progress=False)
    assert data.train.count + data.test.count == 21
    both = torch.cat([data.train.open().images, data.test.open().images]).double().mean((2, 3))
    assert (both - torch.tensor([255.0, 0.0, 0.0])).abs().amax(1).min() < 3, "the first frame, which is red"


def test_arrays_may_name_their_classes_even_those_without_images(tmp_path: Path) -> None:
    path = arrays(tmp_path / "x.npz", pixels(4, 8, 8, 3), np.arange(4))
    made = Arrays(name="arrays", train=path, test=path, classes=["a", "b", "c", "d", "e"], **HALF)
    assert made.load(tmp_path / "cache", progress=False).classes == ("a", "b", "c", "d", "e")


def test_conversions_agree_with_pil() -> None:
    images = pixels(6, 3, 24, 20)
    for row, image in enumerate(images):
        picture = Image.fromarray(image.transpose(1, 2, 0))
        np.testing.assert_array_equal(to_channels(images, 1)[row, 0], np.asarray(picture.convert("L")))
        for height, width in ((8, 10), (48, 32)):
            small = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
            difference = resize(images, (height, width))[row].astype(int) - small.astype(int)
            assert np.abs(difference).max() <= 1


SHAPE = (3, 8, 8)


def test_load_images_takes_class_names_or_numbers_and_resizes(tmp_path: Path) -> None:
    classes = ["cat", "dog", "emu"]
    named, numbered = (
        tree(tmp_path / "named", ["emu", "cat"]),
        tree(tmp_path / "numbered", ["00002", "00000"], size=16),
    )
    for path in (named, numbered):
        images = load_images(
            path, classes=classes, shape=SHAPE, cache_dir=tmp_path, setting="attack.train", progress=False
        )
        assert images.labels.tolist() == [0] * 10 + [2] * 10
        assert images.shape == SHAPE
        assert images.open().images[images.labels == 2][:, 0].unique().tolist() == [0]  # drawn first
    stored = arrays(tmp_path / "x.npz", pixels(5, 8, 8, 3), np.array([2, 1, 0, 0, 1], np.int32))
    images = load_images(
        Path(stored), classes=classes, shape=SHAPE, cache_dir=tmp_path, setting="attack.train", progress=False
    )
    assert images.labels.tolist() == [2, 1, 0, 0, 1]


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (pixels(4, 9, 9, 3), np.arange(4), r"expected 3x8x8 images, got 3x9x9"),
        (pixels(4, 8, 8, 3), np.arange(1, 5), r"labels: expected 0 to 3 \(4 classes\), got 1 to 4"),
        (pixels(4, 8, 8, 3), np.arange(4) - 1, r"labels: expected 0 to 3 \(4 classes\), got -1 to 2"),
    ],
)
def test_load_images_refuses_what_does_not_fit_the_data_set(
    tmp_path: Path, images: np.ndarray, labels: np.ndarray, message: str
) -> None:
    path = Path(arrays(tmp_path / "x.npz", images, labels))
    for _ in range(2):  # the second time from the cache
        with pytest.raises(UserError, match=r"^attack\.train=.*x\.npz: " + message):
            load_images(path, classes="abcd", shape=SHAPE, cache_dir=tmp_path, setting="attack.train", progress=False)


def test_load_images_refuses_unknown_classes_and_missing_paths(tmp_path: Path) -> None:
    def load(path: Path) -> None:
        load_images(path, classes=["cat", "dog"], shape=SHAPE, cache_dir=tmp_path, setting="attack.train")

    with pytest.raises(UserError, match=r"^attack\.train=.*folder 'dogs' \(1 such\) is no class .*did you mean 'dog'"):
        load(tree(tmp_path / "named", ["cat", "dogs"]))
    with pytest.raises(UserError, match=r"^attack\.train=.*'00000' \(2 such\)"):
        load(tree(tmp_path / "numbers", ["00000", "00002"]))
    with pytest.raises(UserError, match=r"^attack\.train=.*no such file"):
        load(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"^attack\.train=.*holds no folder; expected a folder a class \(cat, dog"):
        load(tmp_path / "empty")
