"""What all data sets share: their settings, the checks, and the way through the cache."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

from backdoor.checking.ranges import Count, Number, Plain, Positive, Seed, Side
from backdoor.data.augment import make_augment
from backdoor.data.cache import cached
from backdoor.data.decode import FilePictures
from backdoor.data.files import scan_classes, subfolders
from backdoor.data.imageset import DataSet, ImageSet, Pictures
from backdoor.data.pictures import npz_pictures
from backdoor.data.reserve import Limit
from backdoor.errors import UserError, check_whole

__all__ = ["DataSet", "ImageSet", "Parts", "Source", "load_images"]

log = logging.getLogger(__name__)


class Parts(NamedTuple):
    """What a source hands to `load`; `classes` None means the numbers up to the largest train label."""

    train: Pictures
    test: Pictures
    classes: tuple[str, ...] | None


LUMA = (0.299, 0.587, 0.114)  # of R, G and B (ITU-R 601), as the images are made grey


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """A data set to be loaded; making one checks the settings and touches no disk.

    Args:
        name: shown in tables.
        mean, std: of the channels of [0, 1] images; one value a channel. Where images are made grey, three become their
            luma (of standard deviations: as if the channels went together); where grey is repeated, so is one.
        channels: 3 (grey images are repeated) or 1 (colour images become luma); None = as the images are.
        image_size: pixels, one number (square) or [height, width]; None = as is.
        on_corrupt: error, or skip (and count) files that cannot be decoded.
        augment: the usual augmentation of these images, a name of `backdoor.data.augment`.
        limit: {train, test}: at most so many images, stratified and drawn with `limit_seed`; None = all.
        recipe: the usual victim training; kept here for other configs to refer to.

    Attributes:
        native: (H, W) of the images as they are, where all have one size and it is known before they are read.

    Raises:
        UserError: a setting out of range.
    """

    native: ClassVar[tuple[int, int] | None] = None

    name: str
    mean: Sequence[Number]
    std: Sequence[Positive]
    channels: int | None = 3
    image_size: Side | Sequence[Side] | None = None
    on_corrupt: str = "error"
    augment: str = "none"
    limit: Mapping[str, Count | None] | None = None
    limit_seed: Seed = 0
    recipe: Mapping[str, Plain | Sequence[Plain]] | None = None

    def __post_init__(self) -> None:
        if self.on_corrupt not in ("error", "skip"):
            raise UserError(f"data.on_corrupt={self.on_corrupt}: expected error or skip")
        if self.channels not in (None, 1, 3):
            raise UserError(f"data.channels={self.channels}: expected 1 or 3")
        make_augment(self.augment)
        if any(value <= 0 for value in self.std):
            raise UserError(f"data.std={list(self.std)}: expected values above 0")
        if self.size is not None and not all(type(side) is int and side > 0 for side in self.size):
            raise UserError(f"data.image_size={self.image_size}: expected pixels, as 32 or [height, width]")
        for part, count in (self.limit or {}).items():
            if part not in ("train", "test"):
                raise UserError(f"data.limit.{part}: unknown; expected train or test")
            if count is not None:
                check_whole({f"data.limit.{part}": count})

    @property
    def size(self) -> tuple[int, int] | None:
        """(H, W) to resize to."""
        sides = self.image_size
        if sides is None or not isinstance(sides, Sequence):
            return None if sides is None else (sides, sides)
        if len(sides) != 2:
            raise UserError(f"data.image_size={sides}: expected pixels, as 32 or [height, width]")
        return sides[0], sides[1]

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """(C, H, W) as `load` will find it; None if only the images tell."""
        size = self.size or self.native
        return None if size is None or self.channels is None else (self.channels, *size)

    def names(self) -> tuple[str, ...] | None:
        """Names of class 0, 1, ..., K-1; None if only the files tell."""
        return None

    def limit_of(self, part: str) -> Limit:
        """The limit of `train` or `test`."""
        return Limit((self.limit or {}).get(part), self.limit_seed)

    @abstractmethod
    def parts(self, cache_dir: Path) -> Parts:
        """Find (or download) the images; decodes nothing.

        Raises:
            UserError: what is missing, and what to put where.
        """

    def load(self, cache_dir: Path, progress: bool = True) -> DataSet:
        """The decoded data set, from the cache if it is there.

        Args:
            cache_dir: decoded images go to `<cache_dir>/data`.
            progress: show a bar while decoding.

        Raises:
            UserError: missing, corrupt or contradictory data; a cache folder that cannot be written.
        """
        parts = self.parts(Path(cache_dir))
        train = cached(parts.train, cache_dir, progress=progress)
        test = cached(parts.test, cache_dir, progress=progress)
        classes = parts.classes or tuple(str(label) for label in range(max(0, int(train.labels.max())) + 1))
        for image_set, pictures in ((train, parts.train), (test, parts.test)):
            check_labels(image_set, len(classes), f"data ({pictures.title})")
            if image_set.skipped:
                log.warning("data: left out %d corrupt images of %s", image_set.skipped, pictures.title)
        if train.shape != test.shape:
            raise UserError(
                f"data.image_size: train images are {shape_text(train.shape)}, test images "
                f"{shape_text(test.shape)}; set data.image_size"
            )
        lacking = sorted(set(test.labels.tolist()) - set(train.labels.tolist()))
        if lacking and not self.limit_of("train").count:
            raise UserError(f"data: the test set of {self.name} has class {classes[lacking[0]]!r}, the train set not")
        mean, std = self.normalisation(train.shape[0])
        return DataSet(self.name, train, test, classes, mean, std)

    def normalisation(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(mean, std) of images with so many channels.

        Raises:
            UserError: another number of values than one a channel, or than grey and colour turn into each other.
        """
        made = []
        for setting, given in (("mean", self.mean), ("std", self.std)):
            values = tuple(float(value) for value in given)
            if (len(values), channels) == (3, 1):
                same = len(set(values)) == 1  # exactly that value, then
                values = values[:1] if same else (sum(a * b for a, b in zip(LUMA, values, strict=True)),)
            elif (len(values), channels) == (1, 3):
                values *= 3
            elif len(values) != channels:
                raise UserError(
                    f"data.{setting}={list(given)}: expected {channels} values, one a channel of the images"
                )
            made.append(values)
        return made[0], made[1]


def load_images(
    path: Path,
    *,
    classes: Sequence[str],
    shape: tuple[int, int, int],
    cache_dir: Path,
    setting: str,
    on_corrupt: str = "error",
    progress: bool = True,
) -> ImageSet:
    """A user's own images with the classes and the image shape of a data set that is there already.

    Args:
        path: a tree with a folder a class (class names, or class numbers as 0 or 00000), or an npz with uint8
            `images` and integer `labels`.
        shape: (C, H, W). Files in a tree are resized to it; an npz must have this size.
        setting: what an error message names, for instance `attack.train`.

    Raises:
        UserError: missing or corrupt files, unknown classes, labels out of range, another image size.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        layout = f"a folder a class ({', '.join(list(classes)[:3])}, ...) or an npz"
        labels = {name: number for number, name in enumerate(classes)}
        numbers = {name: int(name) for name in subfolders(path, setting, layout) if name.isdecimal()}
        if not set(numbers) <= set(labels) and max(numbers.values()) < len(classes):
            labels = numbers
        files, _ = scan_classes(path, labels, setting, layout)
        return cached(
            FilePictures(setting, files, setting, shape[0], shape[1:], on_corrupt),
            cache_dir,
            progress=progress,
        )
    images = cached(npz_pictures(path, setting, title=setting, channels=shape[0]), cache_dir, progress=progress)
    if images.shape != shape:
        raise UserError(f"{setting}={path}: expected {shape_text(shape)} images, got {shape_text(images.shape)}")
    check_labels(images, len(classes), f"{setting}={path}")
    return images


def check_labels(images: ImageSet, classes: int, where: str) -> None:
    """Labels must lie in [0, K)."""
    low, high = int(images.labels.min()), int(images.labels.max())
    if low < 0 or high >= classes:
        raise UserError(f"{where}: labels: expected 0 to {classes - 1} ({classes} classes), got {low} to {high}")


def shape_text(shape: Sequence[int]) -> str:
    """CxHxW."""
    return "x".join(str(size) for size in shape)
