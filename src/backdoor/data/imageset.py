"""Opened data: one array of pixels a split, memory-mapped from the cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from backdoor.state import Split


class Chunk(NamedTuple):
    """A run of decoded images, in the order of the set.

    Attributes:
        images: uint8 (n, C, H, W).
        labels: int64 (n,).
        skipped: corrupt files that were left out of this run.
    """

    images: np.ndarray
    labels: np.ndarray
    skipped: int = 0


class Pictures(Protocol):
    """Labelled images that are not decoded yet.

    Attributes:
        title: what the progress bar says, for instance `cifar10 train`.
        total: number of images, None if only decoding tells.
    """

    @property
    def title(self) -> str: ...

    @property
    def total(self) -> int | None: ...

    def signature(self) -> str:
        """Changes whenever the files or the way to decode them change; reads no pixels."""
        ...

    def chunks(self) -> Iterator[Chunk]:
        """Decode; all chunks have one image shape.

        Raises:
            UserError: files that cannot be used. No other error leaves this method for a fault of the files.
        """
        ...


@dataclass(frozen=True, eq=False)
class ImageSet:
    """One decoded set of labelled images in the cache.

    Attributes:
        digest: hex sha256 of shape, pixels and labels; equal digests mean equal data.
        count: N.
        shape: (C, H, W).
        labels: int64 (N,). Shared: clone before writing (`open` does).
        folder: holds `images.npy`, `labels.npy`, `meta.json`.
        skipped: corrupt files that were left out (`on_corrupt=skip`).
    """

    digest: str
    count: int
    shape: tuple[int, int, int]
    labels: Tensor
    folder: Path
    skipped: int = 0

    def open(self) -> Split:
        """A fresh split over a copy-on-write memory map of uint8 (N, C, H, W).

        Rows written in place cost only the pages they touch, stay private to this split and never
        reach the file.
        """
        mapped = np.load(self.folder / "images.npy", mmap_mode="c", allow_pickle=False)
        return Split.of(torch.from_numpy(mapped), self.labels.clone())


@dataclass(frozen=True, eq=False)
class DataSet:
    """A train and a test set of the same classes and image shape.

    Attributes:
        classes: name of class 0, 1, ..., K-1.
        mean, std: of the channels of [0, 1] images, one value a channel.
    """

    name: str
    train: ImageSet
    test: ImageSet
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.train.shape
