"""A user's own images as npz files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from backdoor.data.pictures import npz_pictures
from backdoor.data.sources import Parts, Source


@dataclass(frozen=True, kw_only=True)
class Arrays(Source):
    """Two npz files with uint8 `images` (N, H, W), (N, H, W, C) or (N, C, H, W) and integer `labels` (N,).

    Args:
        train, test: the files.
        classes: names of class 0, 1, ...; None numbers them up to the largest train label.
    """

    train: str
    test: str
    classes: Sequence[str] | None = None

    def names(self) -> tuple[str, ...] | None:
        return None if self.classes is None else tuple(str(name) for name in self.classes)

    def parts(self, cache_dir: Path) -> Parts:
        """Both files; only their size and times are looked at."""
        train, test = (
            npz_pictures(
                Path(path),
                f"data.{part}",
                title=f"{self.name} {part}",
                channels=self.channels,
                size=self.size,
                limit=self.limit_of(part),
            )
            for part, path in (("train", self.train), ("test", self.test))
        )
        return Parts(train, test, self.names())
