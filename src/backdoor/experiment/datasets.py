"""Images and poisoned images as torch's `Dataset`, for training loops that are not this package's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from backdoor.attacks import PoisonPlan
from backdoor.data.loader import to_float
from backdoor.state import Split, Truth
from backdoor.triggers.base import Trigger

Transform = Callable[[Any], Any]


class ImageData(Dataset[tuple[Any, int]]):
    """Labelled images: `data[row]` is `(image, label)`.

    Without a transform an image is float32 (C, H, W) in [0, 1]; a transform gets the PIL image, as torchvision's data
    sets have it.

    Attributes:
        split: the images uint8 (N, C, H, W), labels int64 (N,) and rows of the original set.
        classes: name of class 0, 1, ..., K-1.
        transform: of an image; may be set at any time.
    """

    def __init__(self, split: Split, classes: Sequence[str], transform: Transform | None = None) -> None:
        self.split, self.classes, self.transform = split, tuple(classes), transform

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, row: int) -> tuple[Any, int]:
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        one = self.split.take(torch.tensor([row % len(self)]))
        label = int(one.labels[0])
        if self.transform is None:
            return to_float(one.images)[0], label
        return self.transform(picture(one.images[0])), label

    @property
    def labels(self) -> Tensor:
        """int64 (N,)."""
        return self.split.labels

    def batch(self, rows: Tensor) -> Tensor:
        """The images of some rows (int64 (B,)), stacked: float (B, C, H, W)."""
        if self.transform is None:
            return to_float(self.split.take(rows).images)
        return torch.stack([self[row][0] for row in rows.tolist()])


def picture(image: Tensor) -> Image.Image:
    """uint8 (1|3, H, W) -> a PIL image of mode L or RGB."""
    return Image.fromarray(image.permute(1, 2, 0).squeeze(-1).contiguous().numpy())


@dataclass(frozen=True)
class CleanData:
    """A run's data before the attack.

    Attributes:
        train, test: without the rows that were set aside for defenses.
        reserved: those rows, or None.
    """

    train: ImageData
    test: ImageData
    reserved: ImageData | None
    classes: tuple[str, ...]


@dataclass(frozen=True)
class PoisonedData:
    """A poisoned data set.

    Attributes:
        name: of the attack.
        train: with the attacker's images and labels.
        test: clean; None if no test images were given.
        test_attacks: name of a group -> triggered test images under the labels that the attacker wants; under their
            true ones if any other label will do (an untargeted attack).
        plan: rows, roles and new labels; None if the poison is somebody else's.
        trigger: of test time; None if the attack has none or it is not known.
        truth: what is poisoned and what is measured.
        classes: name of class 0, 1, ..., K-1.
    """

    name: str
    train: ImageData
    test: ImageData | None
    test_attacks: Mapping[str, ImageData]
    plan: PoisonPlan | None
    trigger: Trigger | None
    truth: Truth
    classes: tuple[str, ...]

    @property
    def test_attack(self) -> ImageData | None:
        """The triggered test images of the attack's first group, of which `asr` is said."""
        return next(iter(self.test_attacks.values()), None)

    @property
    def rows(self) -> Tensor:
        """int64 (P,): the poisoned rows of `train`, ascending; without covers, and empty if nobody knows them."""
        known = self.truth.poisoned
        return torch.empty(0, dtype=torch.int64) if known is None else known.nonzero().flatten()

    def use(self, transform: Transform | None, test_transform: Transform | None) -> PoisonedData:
        """The same, with the transforms of its train and of all its test images set."""
        self.train.transform = transform
        for data in (self.test, *self.test_attacks.values()):
            if data is not None:
                data.transform = test_transform
        return self


def poisoned_data(
    name: str,
    train: Split,
    truth: Truth,
    classes: Sequence[str],
    *,
    plan: PoisonPlan | None = None,
    trigger: Trigger | None = None,
    has_test: bool = True,
) -> PoisonedData:
    """What an attack made of a data set; without `has_test` its test images are not shown."""
    attacks = {key: ImageData(one.as_wanted(), classes) for key, one in truth.attacks.items()} if has_test else {}
    test = ImageData(truth.test_clean, classes) if has_test else None
    return PoisonedData(name, ImageData(train, classes), test, attacks, plan, trigger, truth, tuple(classes))
