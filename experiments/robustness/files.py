"""The odd files that odd inputs name: images, arrays, checkpoints, configs, and things that are no files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

CONFIGS = {
    "attack/broken.yaml": "name: [",
    "attack/a_list.yaml": "- 1\n- 2\n",
    "attack/typo.yaml": "defaults:\n  - badnets\n  - _self_\nratoi: 0.1\n",
    "attack/mine.yaml": "defaults:\n  - badnets\n  - _self_\nname: mine\nratio: 0.2\n",
    "defense/nowhere.yaml": "name: nowhere\nstages: {one: {_target_: nowhere.at.All}}\n",
    "defense/no_stage.yaml": "name: no_stage\nstages: {one: {_target_: collections.OrderedDict}}\n",
    "defense/unnamed.yaml": "stages: {}\n",
    "model/no_model.yaml": "_target_: os.getcwd\n",
    "model/raises.yaml": "_target_: this.antigravity_of_none\n",
    "data/no_data.yaml": "_target_: collections.OrderedDict\nname: no_data\n",
}


class Payload:
    """What a hostile pickle would hold: reading it without care makes the folder `touched`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def tree(root: Path, classes: dict[str, list[str]], suffix: str = "png", rows: int = 8) -> Path:
    """A folder of noise images for each class of each part."""
    random = np.random.default_rng(0)
    for part, names in classes.items():
        for name in names:
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(rows):
                pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.{suffix}")
    return root


def make_folders(root: Path) -> None:
    """Data in folders, good and bad."""
    both = {"train": ["cat", "dog"], "test": ["cat", "dog"]}
    tree(root / "good", both)
    tree(root / "gif", both, "gif")
    tree(root / "unicode", {"train": ["café", "犬"], "test": ["café", "犬"]})
    tree(root / "extra", {"train": ["cat", "dog"], "test": ["cat", "dog", "owl"]})
    tree(root / "corrupt", both)
    tree(root / "one_class", {"train": ["cat"], "test": ["cat"]})
    tree(root / "one_tree", {".": ["cat", "dog"]})
    (root / "corrupt/train/dog/2.png").write_bytes(b"not an image")
    (root / "hollow/train/cat").mkdir(parents=True)
    (root / "hollow/test/cat").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "others/train/cat").mkdir(parents=True)
    (root / "others/train/cat/1.heic").write_bytes(b"x")
    os.mkfifo(root / "fifo")
    os.mkfifo(root / "fifo.pt")
    os.mkfifo(root / "fifo.npz")


def make_arrays(root: Path) -> None:
    """Data in npz files, good and bad."""
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (16, 16, 16, 3), dtype=np.uint8), np.arange(16) % 2
    files: dict[str, tuple[np.ndarray, np.ndarray]] = {
        "good": (images, labels),
        "column": (images, labels[:, None]),
        "pickled": (images, np.array([{"a": 1}] * 16, dtype=object)),
        "float": (images.astype(np.float32), labels),
        "flat": (images.reshape(16, -1), labels),
        "short": (images, labels[:5]),
        "class2": (images, np.arange(16) % 3),
        "none": (images[:0], labels[:0]),
        "negative": (images, labels - 1),
        "half": (images, labels + 0.5),
        "huge_label": (images, labels + 10**12),
        "four_channels": (np.zeros((16, 16, 16, 4), np.uint8), labels),
    }
    for name, (pixels, classes) in files.items():
        np.savez(root / f"{name}.npz", images=pixels, labels=classes)
    parts = {f"{part}_{what}": value for part in ("train", "test") for what, value in
             (("images", images), ("labels", labels[:, None]))}  # fmt: skip
    np.savez(root / "medmnist.npz", **parts)
    np.savez(root / "other_keys.npz", x=images, y=labels)
    np.savez(root / "rows.npz", rows=np.array([5, 99_999]))
    np.savez(root / "good_rows.npz", rows=np.array([5, 7]))
    (root / "text.npz").write_text("not an npz")
    (root / "rows.txt").write_text("1\ntwo\n")


def make_checkpoints(root: Path) -> None:
    """Checkpoints, none of which fits."""
    torch.save(torch.nn.Linear(3, 2).state_dict(), root / "wide.pt")
    torch.save({"state_dict": {"weight": torch.ones(2)}, "extra": Payload(root / "touched")}, root / "hostile.pt")
    torch.save([1, 2], root / "list.pt")
    torch.save({}, root / "empty_dict.pt")
    (root / "text.pt").write_text("not a checkpoint")
    (root / "empty.pt").touch()
    (root / "empty.safetensors").touch()
    (root / "long.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")


def make_files(root: Path) -> Path:
    """All of them; `root` is made."""
    root.mkdir(parents=True)
    make_folders(root)
    make_arrays(root)
    make_checkpoints(root)
    for name, text in CONFIGS.items():
        path = root / "conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root
