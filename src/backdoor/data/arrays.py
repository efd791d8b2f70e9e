"""A user's own images as npz files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from backdoor.data.pictures import SAVED, ArrayPictures, npz_pictures
from backdoor.data.sources import Parts, Source
from backdoor.errors import UserError
from backdoor.store.npz import open_npz

log = logging.getLogger(__name__)

BOTH = ("train_images", "train_labels", "test_images", "test_labels")


@dataclass(frozen=True, kw_only=True)
class Arrays(Source):
    """npz files with uint8 `images` (N, H, W), (N, H, W, C) or (N, C, H, W) and integer `labels` (N,) or (N, 1).

    Args:
        train, test: the files. With `test` None the first holds both parts, as `train_images`, `train_labels`,
            `test_images` and `test_labels` (MedMNIST, Yang et al. 2023, has these names); other arrays are left out.
        classes: names of class 0, 1, ...; None numbers them up to the largest train label.
    """

    train: str
    test: str | None = None
    classes: Sequence[str] | None = None

    def names(self) -> tuple[str, ...] | None:
        return None if self.classes is None else tuple(str(name) for name in self.classes)

    def parts(self, cache_dir: Path) -> Parts:
        """Both files; only their size and times are looked at, and the names in a file of both parts."""
        train = self.pictures("train", self.train)
        if self.test is None:
            self.check_both(Path(self.train).expanduser())
        return Parts(train, self.pictures("test", self.test or self.train), self.names())

    def pictures(self, part: str, path: str) -> ArrayPictures:
        """The images of `train` or `test`."""
        setting = "data.test" if part == "test" and self.test is not None else "data.train"
        return npz_pictures(
            Path(path),
            setting,
            title=f"{self.name} {part}",
            part=part,
            channels=self.channels,
            size=self.size,
            limit=self.limit_of(part),
        )

    def check_both(self, path: Path) -> None:
        """Raises UserError unless the file has the arrays of both parts; says what else is in it."""
        with open_npz(path, "data.train", hint=SAVED) as file:
            names = list(file.files)
        missing = [name for name in BOTH if name not in names]
        if missing:
            raise UserError(
                f"data.test=null: {path} lacks the array {missing[0]}, so it does not hold both parts; it has: "
                f"{', '.join(names) or 'nothing'}; name the file of the test images with data.test="
            )
        others = [name for name in names if name not in BOTH]
        if others:
            log.warning("data.train=%s: the arrays %s are left out", path, ", ".join(others))
