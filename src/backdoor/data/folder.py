"""A user's own images in folders, as torchvision's ImageFolder lays them out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from backdoor.checking.ranges import ProperShare, Seed
from backdoor.data.decode import FilePictures, ImageFile
from backdoor.data.files import limited, scan_classes, subfolders
from backdoor.data.reserve import stratified
from backdoor.data.sources import Parts, Source
from backdoor.errors import UserError

LAYOUT = "<root>/train/<class>/*.png and <root>/test/<class>/*.png (or val/), or <root>/<class>/*.png"


@dataclass(frozen=True, kw_only=True)
class FileSource(Source):
    """A source whose images are files below `root`."""

    root: str

    @property
    def folder(self) -> Path:
        return Path(self.root).expanduser()

    def file_parts(self, train: Sequence[ImageFile], test: Sequence[ImageFile], classes: tuple[str, ...]) -> Parts:
        """Both lists of files, limited, with this source's settings."""
        pictures = [
            FilePictures(
                f"{self.name} {part}",
                limited(files, self.limit_of(part)),
                "data.root",
                self.channels or 3,
                self.size,
                self.on_corrupt,
            )
            for part, files in (("train", train), ("test", test))
        ]
        return Parts(pictures[0], pictures[1], classes)


@dataclass(frozen=True, kw_only=True)
class Folder(FileSource):
    """A tree with `train/` and `test/` (or `val/`), or one tree that is split.

    Classes are the sorted folder names of the train tree.

    Args:
        root: the tree.
        test_fraction: share of ONE tree that becomes the test set, in (0, 1), stratified by class.
        split_seed: of that split.
    """

    test_fraction: ProperShare = 0.2
    split_seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.test_fraction < 1:
            raise UserError(f"data.test_fraction={self.test_fraction}: expected a share above 0 and below 1")

    def parts(self, cache_dir: Path) -> Parts:
        """Two trees if there is train/ beside test/ or val/; else one, split."""
        root = self.folder
        top = subfolders(root, "data.root", LAYOUT)
        held_out = next((name for name in ("test", "val", "valid", "validation") if name in top), None)
        if "train" in top and held_out:
            train, classes = scan_classes(top["train"], None, "data.root", LAYOUT)
            labels = {name: number for number, name in enumerate(classes)}
            test, _ = scan_classes(top[held_out], labels, "data.root", LAYOUT)
            return self.file_parts(train, test, classes)
        if "train" in top and next(os.walk(top["train"]))[1]:
            raise UserError(
                f"data.root={root}: has train/ but no test/ or val/; add one, or set data.root={root}/train "
                "to split data.test_fraction off it"
            )
        files, classes = scan_classes(root, None, "data.root", LAYOUT)
        return self.file_parts(*self.split(files), classes)

    def split(self, files: list[ImageFile]) -> tuple[list[ImageFile], list[ImageFile]]:
        """(train, test) of one tree; each class keeps at least one train image."""
        count = round(self.test_fraction * len(files))
        if not 0 < count < len(files):
            raise UserError(f"data.test_fraction={self.test_fraction}: gives {count} test images of {len(files)}")
        labels = torch.tensor([file.label for file in files])
        rows = set(stratified(labels, count, torch.Generator().manual_seed(self.split_seed)).tolist())
        train = [file for row, file in enumerate(files) if row not in rows]
        test = [file for row, file in enumerate(files) if row in rows]
        return train, test
