"""The embedded data set: scikit-learn's handwritten digits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from backdoor.checking.ranges import Seed
from backdoor.data.pictures import ArrayPictures
from backdoor.data.reserve import stratified
from backdoor.data.sources import Parts, Source

TEST_IMAGES = 360  # of 1,797, which leaves 1,437 to train on
ENLARGE = 4  # 8x8 to 32x32, nearest neighbour


@dataclass(frozen=True, kw_only=True)
class Digits(Source):
    """1,797 images of 8x8 pixels in 17 grey levels, enlarged to 32x32 (Alpaydin and Kaynak 1998, UCI).

    The whole set ships inside scikit-learn, so it needs neither files nor a network.

    Args:
        split_seed: of the stratified split into 1,437 train and 360 test images.
    """

    native: ClassVar[tuple[int, int] | None] = (8 * ENLARGE, 8 * ENLARGE)

    split_seed: Seed = 0

    def names(self) -> tuple[str, ...]:
        return tuple("0123456789")

    def parts(self, cache_dir: Path) -> Parts:
        """scikit-learn itself is imported only if the cache lacks the images."""
        train, test = (
            ArrayPictures(
                f"{self.name} {part}",
                f"digits:{ENLARGE}:{TEST_IMAGES}:{self.split_seed}:{part}",
                partial(read_digits, part == "train", self.split_seed),
                self.channels,
                self.size,
                self.limit_of(part),
            )
            for part in ("train", "test")
        )
        return Parts(train, test, self.names())


def read_digits(train: bool, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (N, 1, 32, 32), the levels 0..16 spread over 0..255 and rounded half up; int64 labels (N,)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    labels = digits.target.astype(np.int64)
    images = np.floor(digits.images * 255 / 16 + 0.5).astype(np.uint8)[:, None]
    images = images.repeat(ENLARGE, axis=2).repeat(ENLARGE, axis=3)
    test = np.zeros(len(labels), bool)
    generator = torch.Generator().manual_seed(seed)
    test[stratified(torch.from_numpy(labels), TEST_IMAGES, generator).numpy()] = True
    rows = ~test if train else test
    return images[rows], labels[rows]
