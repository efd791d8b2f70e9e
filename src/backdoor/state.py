"""The values that flow through a run; the line between `State` and `Truth` is the threat model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Split:
    """One set of labelled images.

    Attributes:
        images: uint8 (N, C, H, W); in RAM or a memory map, indexed alike.
        labels: int64 (N,), in [0, K).
        index: int64 (N,), the row in the original set; survives every `take`.
    """

    images: Tensor
    labels: Tensor
    index: Tensor

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != torch.uint8:
            raise ValueError(
                f"Split.images: expected uint8 (N, C, H, W), got {self.images.dtype} {tuple(self.images.shape)}"
            )
        for name, value in (("labels", self.labels), ("index", self.index)):
            if value.shape != (len(self.images),) or value.dtype != torch.int64:
                raise ValueError(
                    f"Split.{name}: expected int64 ({len(self.images)},), got {value.dtype} {tuple(value.shape)}"
                )

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: Tensor) -> Split:
        """The given rows (int64 positions or a bool mask (N,)), as a copy."""
        return Split(self.images[rows], self.labels[rows], self.index[rows])

    @staticmethod
    def of(images: Tensor, labels: Tensor) -> Split:
        """A split whose index is 0..N-1."""
        return Split(images, labels, torch.arange(len(images)))


@dataclass(frozen=True)
class State:
    """All that a defender may know. Stages return a new one (`dataclasses.replace`).

    Attributes:
        train: the suspicious training set, N rows.
        num_classes: K.
        reserved: small trusted set, split off the clean TRAIN data, if the defender has one.
        model: takes float [0, 1] images; normalisation, purifiers and stamps live inside it.
        scores: name -> float (N,), higher = more suspect.
        groups: name -> bool (N,), for instance `suspect`.
        findings: anything else a stage hands on, as JSON-able values or tensors.
    """

    train: Split
    num_classes: int
    reserved: Split | None = None
    model: nn.Module | None = None
    scores: Mapping[str, Tensor] = field(default_factory=dict)
    groups: Mapping[str, Tensor] = field(default_factory=dict)
    findings: Mapping[str, Any] = field(default_factory=dict)

    def without_labels(self) -> State:
        """The same, every label of the train set 0."""
        return replace(self, train=replace(self.train, labels=torch.zeros_like(self.train.labels)))

    def has(self, need: str) -> bool:
        """Whether `reserved`, `model` or a score, group or finding of that name is there."""
        if need in ("train", "reserved", "model"):
            return getattr(self, need) is not None
        return any(need in part for part in (self.scores, self.groups, self.findings))


class Goal(ABC):
    """What a trigger is to do to an image; `backdoor.metrics.goals` has the kinds.

    Attributes:
        kind: the word for it in records.
    """

    kind: str

    @abstractmethod
    def hit(self, predicted: Tensor, original: Tensor) -> Tensor:
        """bool (N,): where the attack has succeeded, given predicted and true classes, int64 (N,)."""

    def wanted(self, original: Tensor) -> Tensor | None:
        """int64 (N,): the class that the attacker wants for each image, or None where several will do."""
        return None


@dataclass(frozen=True)
class AttackSet:
    """Triggered test images of one poison group.

    Attributes:
        split: the images, with their TRUE labels.
        goal: what the trigger is to do to them.
    """

    split: Split
    goal: Goal

    def as_wanted(self) -> Split:
        """The images under the labels that the attacker wants, or under their true ones where several will do."""
        wanted = self.goal.wanted(self.split.labels)
        return self.split if wanted is None else replace(self.split, labels=wanted)


@dataclass(frozen=True)
class Truth:
    """What only the evaluator sees; no stage is ever handed one.

    `None` means unknown (a user's own data): the metric is then absent, never 0.

    Attributes:
        test_clean: the clean test set.
        attacks: name -> triggered test images, a set for each poison group that differs; the first is the attack's
            own, of which `asr` is said, and the others are `asr/NAME`.
        poisoned: bool (N,) over the train set.
        clean_labels: int64 (N,), the train labels before poisoning.
        targets: the target classes of all-to-one attacks, for C-Acc without these classes.
    """

    test_clean: Split
    attacks: Mapping[str, AttackSet] = field(default_factory=dict)
    poisoned: Tensor | None = None
    clean_labels: Tensor | None = None
    targets: frozenset[int] = frozenset()
