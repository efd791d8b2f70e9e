"""When an attack has succeeded on an image: metrics ask its goal, so none of them knows of target labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from backdoor.state import Goal


@dataclass(frozen=True, eq=False)
class Targeted(Goal):
    """The model answers the class that the attacker chose for images of that class.

    Args:
        table: int64 (K,), true class -> wanted class.

    Raises:
        ValueError: another shape or dtype, or a wanted class that is none of the K.
    """

    table: Tensor
    kind = "targeted"

    def __post_init__(self) -> None:
        table = self.table
        if table.ndim != 1 or table.dtype != torch.int64 or not len(table):
            raise ValueError(f"goal: expected int64 (K,), K > 0, got {table.dtype} {tuple(table.shape)}")
        if not 0 <= int(table.min()) <= int(table.max()) < len(table):
            raise ValueError(f"goal: expected classes from 0 to {len(table) - 1}, got {table.tolist()}")

    @staticmethod
    def at(target: int, num_classes: int) -> Targeted:
        """One class for the images of all K classes."""
        return Targeted(torch.full((num_classes,), target))

    def hit(self, predicted: Tensor, original: Tensor) -> Tensor:
        return predicted == self.wanted(original)

    def wanted(self, original: Tensor) -> Tensor:
        if len(original) and not 0 <= int(original.min()) <= int(original.max()) < len(self.table):
            raise ValueError(
                f"original: expected classes from 0 to {len(self.table) - 1}, "
                f"got {int(original.min())} to {int(original.max())}"
            )
        return self.table.to(original.device)[original]


class Untargeted(Goal):
    """The model answers any class but the true one (UBW, Li et al., NeurIPS 2022: "ASR-A")."""

    kind = "untargeted"

    def hit(self, predicted: Tensor, original: Tensor) -> Tensor:
        return predicted != original
