"""What an attacker wants at test time, and whether two such wishes are one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from backdoor.attacks.label_maps import LabelMap
from backdoor.state import Goal
from backdoor.triggers.base import Trigger


@dataclass(frozen=True)
class Aim:
    """A test-time trigger, and the label map that says of which images it should do what."""

    trigger: Trigger
    label_map: LabelMap

    def same(self, other: Aim, num_classes: int) -> bool:
        """Whether both want the same of the same classes, by a trigger of the same settings."""
        classes, mine, theirs = torch.arange(num_classes), self.label_map, other.label_map
        return (
            alike(mine.goal(num_classes), theirs.goal(num_classes))
            and torch.equal(mine.victims(classes, num_classes), theirs.victims(classes, num_classes))
            and alike(self.trigger, other.trigger)
        )


def targets_of(label_maps: Iterable[LabelMap | None]) -> frozenset[int]:
    """The target classes of those that have one."""
    return frozenset(one.target for one in label_maps if one is not None and one.target is not None)


def alike(one: Any, other: Any) -> bool:
    """Whether two settings, or two objects made of settings, are the same.

    Objects of one type are compared by their attributes. Of functions, and what else tells nothing of itself, only the
    very same one counts: then a group is measured once too often, never too seldom.
    """
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one.cpu(), other.cpu())
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(alike(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(alike(*pair) for pair in zip(one, other, strict=True))
    if isinstance(one, nn.Module | LabelMap | Goal):
        mine, theirs = ({**vars(made), "_cache": None} for made in (one, other))  # what it painted with last
        return alike(mine, theirs)
    same = one == other
    return same if isinstance(same, bool) else bytes(one) == bytes(other)  # NumPy arrays
