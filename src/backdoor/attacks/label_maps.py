"""Which label a poisoned image carries, and what the attacker wants at test time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from backdoor.checking.ranges import Seed
from backdoor.data.loader import mix
from backdoor.errors import UserError
from backdoor.metrics.goals import Targeted, Untargeted
from backdoor.state import Goal

RANDOM_LABEL = 0x1AB  # sets the draw of labels apart from that of rows


class LabelMap(ABC):
    """Maps true labels to poisoned ones; independent of the trigger.

    Its methods take int64 labels (N,) in [0, K) and K = `num_classes`.

    Attributes:
        target: the class that the attacker wants, if it is one.
        clean_label: poisoned rows keep their label.
        by_row: rows of one class get several labels, so the map is asked once for all rows, not batch by batch.
    """

    target: int | None = None
    clean_label: bool = False
    by_row: bool = False

    def check(self, num_classes: int) -> None:
        """Raises UserError when a class that the map names does not exist."""
        if self.target is not None:
            check_class("attack.target", self.target, num_classes)

    @abstractmethod
    def poisoned(self, labels: Tensor, num_classes: int) -> Tensor:
        """int64 (N,): the label that a poisoned TRAIN row carries."""

    def eligible(self, labels: Tensor, num_classes: int) -> Tensor:
        """bool (N,): the TRAIN rows that poisoning makes sense for; a group's pool is some of these."""
        return torch.ones_like(labels, dtype=torch.bool)

    def goal(self, num_classes: int) -> Goal:
        """What the attacker wants of a triggered test image: usually the label that a poisoned row carries."""
        return Targeted(self.poisoned(torch.arange(num_classes), num_classes))

    @abstractmethod
    def victims(self, labels: Tensor, num_classes: int) -> Tensor:
        """bool (N,): the rows that belong to the ASR test set."""


def check_class(setting: str, value: int, num_classes: int) -> None:
    """Raises UserError unless 0 <= value < num_classes."""
    if not isinstance(value, int) or not 0 <= value < num_classes:
        raise UserError(f"{setting}={value}: expected a class from 0 to {num_classes - 1}")


def needed(target: int | None) -> int:
    """The target class; raises UserError for None."""
    if target is None:
        raise UserError("attack.target=null: this label map needs a target class; add attack.target=CLASS")
    return target


class AllToOne(LabelMap):
    """Every class becomes `target` (BadNets, Gu et al. 2017, section 3).

    The ASR set leaves out the target class: there the attack has nothing to change.
    """

    def __init__(self, *, target: int | None) -> None:
        self.target = needed(target)

    def poisoned(self, labels: Tensor, num_classes: int) -> Tensor:
        return torch.full_like(labels, int(self.target or 0))

    def goal(self, num_classes: int) -> Goal:
        return Targeted.at(int(self.target or 0), num_classes)

    def victims(self, labels: Tensor, num_classes: int) -> Tensor:
        return labels.ne(int(self.target or 0))


class AllToAll(LabelMap):
    """y becomes (y + shift) mod K (BadNets, Gu et al. 2017, section 3: shift 1); all classes are in the ASR set."""

    def __init__(self, *, shift: int = 1) -> None:
        self.shift = shift

    def check(self, num_classes: int) -> None:
        if self.shift % num_classes == 0:
            raise UserError(
                f"attack.label_map.shift={self.shift}: changes no label of {num_classes} classes; "
                f"expected 1 to {num_classes - 1}"
            )

    def poisoned(self, labels: Tensor, num_classes: int) -> Tensor:
        return (labels + self.shift) % num_classes

    def victims(self, labels: Tensor, num_classes: int) -> Tensor:
        return torch.ones_like(labels, dtype=torch.bool)


class SourceSpecific(LabelMap):
    """Only images of the `sources` classes become `target` (TaCT, Tang et al. 2021)."""

    def __init__(self, *, target: int | None, sources: Sequence[int]) -> None:
        self.target = needed(target)
        self.sources = list(sources)

    def check(self, num_classes: int) -> None:
        super().check(num_classes)
        if not self.sources or self.target in self.sources:
            raise UserError(
                f"attack.label_map.sources={self.sources}: expected at least one class, without the target "
                f"{self.target}"
            )
        for source in self.sources:
            check_class("attack.label_map.sources", source, num_classes)

    def eligible(self, labels: Tensor, num_classes: int) -> Tensor:
        return self.victims(labels, num_classes)  # elsewhere the trigger would come with the true label

    def poisoned(self, labels: Tensor, num_classes: int) -> Tensor:
        return torch.where(self.victims(labels, num_classes), int(self.target or 0), labels)

    def victims(self, labels: Tensor, num_classes: int) -> Tensor:
        return torch.isin(labels, torch.tensor(self.sources))


class CleanLabel(AllToOne):
    """Poisoned rows keep their label; at test time the trigger should still give `target` (SIG, Barni et al. 2019)."""

    clean_label = True

    def eligible(self, labels: Tensor, num_classes: int) -> Tensor:
        return labels.eq(int(self.target or 0))

    def poisoned(self, labels: Tensor, num_classes: int) -> Tensor:
        return labels.clone()


class TrueLabel(LabelMap):
    """Rows keep their label whatever their class: cover samples (WaNet's noise mode, cross triggers)."""

    def poisoned(self, labels: Tensor, num_classes: int) -> Tensor:
        return labels.clone()

    def victims(self, labels: Tensor, num_classes: int) -> Tensor:
        return torch.zeros_like(labels, dtype=torch.bool)


class RandomLabel(LabelMap):
    """A poisoned row gets a class drawn at random; a triggered image is to get any class but its own.

    The poison-label form of UBW (Li et al., NeurIPS 2022): each row is drawn for once, uniformly, and keeps that label
    for the whole training. The test images keep their true labels, so all classes are in the ASR set.

    Args:
        seed: of the draw.
        own_class: whether the draw may give a row its own class, too, as UBW's does; here usually not, so that each
            poisoned row is poison.
    """

    by_row = True

    def __init__(self, *, seed: Seed = 0, own_class: bool = False) -> None:
        self.seed, self.own_class = seed, own_class

    def check(self, num_classes: int) -> None:
        if num_classes < 2:
            raise UserError(f"attack.label_map: RandomLabel needs another class to give; the data have {num_classes}")

    def poisoned(self, labels: Tensor, num_classes: int) -> Tensor:
        generator = torch.Generator().manual_seed(mix(self.seed, RANDOM_LABEL))
        shifts = torch.randint(0 if self.own_class else 1, num_classes, labels.shape, generator=generator)
        return (labels + shifts) % num_classes

    def goal(self, num_classes: int) -> Goal:
        return Untargeted()

    def victims(self, labels: Tensor, num_classes: int) -> Tensor:
        return torch.ones_like(labels, dtype=torch.bool)
