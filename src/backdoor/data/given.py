"""Images that a Python program hands over: torch's data sets, or arrays."""

from __future__ import annotations

import hashlib
import math
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from backdoor.data.decode import CHUNK_BYTES
from backdoor.data.imageset import Chunk, DataSet, Pictures
from backdoor.data.pictures import ArrayPictures, checked_arrays, resize, to_channels
from backdoor.data.sources import Parts, Source
from backdoor.errors import UserError

EXPECTED = (
    "a data set with len() whose items are (image, label), or a pair (images, labels) of uint8 images (N, H, W[, C]) "
    "or (N, C, H, W) and integer labels (N,)"
)
KINDS = "a PIL image, or a uint8 or float [0, 1] tensor or array (H, W), (H, W, C) or (C, H, W) with 1 or 3 channels"


@dataclass(frozen=True, kw_only=True)
class Given(Source):
    """A data set in this process.

    Args:
        train, test: its images; the same ones twice where there are no test images.
        classes: names of class 0, 1, ...; None numbers them up to the largest train label.
    """

    train: Pictures
    test: Pictures
    classes: Sequence[str] | None = None

    def names(self) -> tuple[str, ...] | None:
        return None if self.classes is None else tuple(str(name) for name in self.classes)

    def parts(self, cache_dir: Path) -> Parts:
        """Both, as they were given."""
        return Parts(self.train, self.test, self.names())

    def load(self, cache_dir: Path, progress: bool = True) -> DataSet:
        """As any source; pixels that only this process can name again are found by their content, not by a pointer."""
        try:
            return super().load(cache_dir, progress)
        finally:
            for pictures in (self.train, self.test):
                if isinstance(pictures, ItemPictures):
                    pointers = Path(cache_dir).expanduser() / "data" / "sources"
                    (pointers / f"{pictures.signature()}.json").unlink(missing_ok=True)


@dataclass(frozen=True)
class ItemPictures:
    """The items of a data set, read once, in order.

    Args:
        data: `data[row]` is (image, label); `len(data)`.
        where: what an error message names.
        channels, size: as in `ArrayPictures`.
    """

    data: Any
    where: str
    channels: int | None = None
    size: tuple[int, int] | None = None
    key: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def title(self) -> str:
        return self.where

    @property
    def total(self) -> int:
        return len(self.data)

    def signature(self) -> str:
        """Of this object: nobody can tell whether another one has the same images."""
        return hashlib.sha256(self.key.encode()).hexdigest()

    def chunks(self) -> Iterator[Chunk]:
        """Some MB at a time; raises UserError for an item that is no (image, label) or has another size."""
        images: list[np.ndarray] = []
        labels: list[int] = []
        first: tuple[int, ...] = ()
        for row in range(len(self.data)):
            image, label = self.item(row)
            first = first or image.shape
            if image.shape != first:
                raise UserError(f"{self.where}: {several_sizes(image.shape, first, row)}")
            images.append(image)
            labels.append(label)
            if len(images) * math.prod(first) >= CHUNK_BYTES:
                yield Chunk(np.stack(images), np.array(labels, np.int64))
                images, labels = [], []
        if images:
            yield Chunk(np.stack(images), np.array(labels, np.int64))

    def item(self, row: int) -> tuple[np.ndarray, int]:
        """uint8 (C, H, W) and the label of a row."""
        found = self.data[row]
        if not isinstance(found, tuple | list) or len(found) != 2:
            got = type(found).__name__ if not isinstance(found, tuple | list) else f"{len(found)} values"
            raise UserError(f"{self.where}[{row}]: expected (image, label), got {got}; poisoning needs every label")
        pixels = pixels_of(found[0], f"{self.where}[{row}]")
        converted = resize(to_channels(pixels[None], self.channels), self.size)
        return converted[0], label_of(found[1], f"{self.where}[{row}]")


def several_sizes(found: tuple[int, ...], first: tuple[int, ...], row: int) -> str:
    """What to do about images that differ."""
    if found[0] != first[0]:
        return f"image {row} has {found[0]} channels, the first {first[0]}; say data.channels=3 (or 1) for all of them"
    return (
        f"images of several sizes: image {row} is {found[2]}x{found[1]}, the first {first[2]}x{first[1]}; say for "
        "instance data.image_size=32 to resize them"
    )


def given_pictures(data: Any, where: str, channels: int | None, size: tuple[int, int] | None) -> Pictures:
    """The pictures of what a caller gave: a pair of arrays, or a data set.

    Raises:
        UserError: neither, or an empty one.
    """
    if isinstance(data, tuple) and len(data) == 2 and all(hasattr(part, "shape") for part in data):
        images, labels = checked_arrays(np.asarray(data[0]), np.asarray(data[1]), where)
        content = hashlib.sha256(np.ascontiguousarray(images).data)
        content.update(labels.data)
        key = f"given:{images.shape}:{content.hexdigest()}"
        return ArrayPictures(where, key, lambda: (images, labels), channels, size)
    if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")) or isinstance(data, str | bytes | dict):
        raise UserError(f"{where}: expected {EXPECTED}; got {type(data).__name__}")
    if len(data) == 0:
        raise UserError(f"{where}: expected {EXPECTED}; got no item")
    return ItemPictures(data, where, channels, size)


def pixels_of(image: Any, where: str) -> np.ndarray:
    """One image as uint8 (C, H, W), C of 1 or 3.

    Raises:
        UserError: another type or shape, or values outside [0, 1], as a Normalize leaves them.
    """
    if isinstance(image, Image.Image):
        pixels = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
    elif isinstance(image, Tensor | np.ndarray):
        pixels = levels(np.asarray(image.detach().cpu() if isinstance(image, Tensor) else image), where)
    else:
        raise UserError(f"{where}: expected {KINDS}, got {type(image).__name__}")
    if pixels.ndim == 2:
        return pixels[None]
    if pixels.ndim == 3 and (isinstance(image, Tensor) or pixels.shape[2] not in (1, 3)) and pixels.shape[0] in (1, 3):
        return pixels
    if pixels.ndim == 3 and pixels.shape[2] in (1, 3):
        return pixels.transpose(2, 0, 1)
    raise UserError(f"{where}: expected {KINDS}, got shape {pixels.shape}")


def levels(values: np.ndarray, where: str) -> np.ndarray:
    """uint8 as it is; floats in [0, 1] as 0..255, rounded."""
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind != "f" or values.size == 0:
        raise UserError(f"{where}: expected {KINDS}, got {values.dtype} {values.shape}")
    if not (values.min() >= 0 and values.max() <= 1):  # NaN, too
        raise UserError(
            f"{where}: float images must lie in [0, 1], got {values.min():.3g} to {values.max():.3g}; leave out the "
            "data set's Normalize and hand it to transform="
        )
    return np.rint(values * 255).astype(np.uint8)


def label_of(label: Any, where: str) -> int:
    """A class number; raises UserError for anything else."""
    single = isinstance(label, Tensor | np.ndarray | np.generic) and math.prod(label.shape) == 1
    value = label.item() if single else label
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UserError(f"{where}: expected a class number of at least 0 as the label, got {label!r:.40}")
    return value
