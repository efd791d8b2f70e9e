"""Seeded, class-stratified choices of rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from backdoor.errors import UserError
from backdoor.state import Split


def stratified(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` rows drawn so that each class keeps its share to within one row.

    Shares are rounded down; rows still missing go to the largest remainders (ties by chance).

    Args:
        labels: int64 (N,), each >= 0.
        count: 0 to N.
        generator: on the CPU.

    Returns:
        int64 (count,), ascending.
    """
    total = len(labels)
    if not 0 <= count <= total:
        raise ValueError(f"count: expected 0 to {total}, got {count}")
    if count in (0, total):
        return torch.arange(count)
    sizes = torch.bincount(labels)
    quota = sizes * count // total
    remainder = sizes * count % total
    shuffle = torch.randperm(len(sizes), generator=generator)
    by_remainder = shuffle[torch.argsort(remainder[shuffle], descending=True, stable=True)]
    quota[by_remainder[: count - int(quota.sum())]] += 1
    drawn = torch.randperm(total, generator=generator)
    drawn = drawn[torch.argsort(labels[drawn], stable=True)]
    starts = torch.cumsum(sizes, 0) - sizes
    rank = torch.arange(total) - starts[labels[drawn]]
    return drawn[rank < quota[labels[drawn]]].sort().values


def split_reserved(split: Split, reserved: int | float, seed: int) -> tuple[Tensor, Tensor]:
    """Set a small clean part of the TRAIN set aside for defenses that need trusted data.

    Args:
        split: the clean train set, before any attack; test data are never handed to a defense.
        reserved: number of rows (int), or share of the rows (float in [0, 1)); 0 reserves none.
        seed: the same seed gives the same rows.

    Returns:
        (kept, reserved): int64 rows, ascending, disjoint, together all rows; stratified by class.

    Raises:
        UserError: a number or share that leaves no train row, or is no number.
    """
    total = len(split)
    count = reserved_count(reserved, total)
    chosen = stratified(split.labels, count, torch.Generator().manual_seed(seed))
    kept = torch.ones(total, dtype=torch.bool)
    kept[chosen] = False
    return kept.nonzero()[:, 0], chosen


def reserved_count(reserved: int | float, total: int) -> int:
    """Rows to reserve of `total`."""
    expected = check_reserved(reserved, f"0 to {total - 1}")
    if isinstance(reserved, int):
        if reserved >= total:
            raise UserError(f"reserved: {expected}, got {reserved} of {total} train images")
        return reserved
    count = round(reserved * total)
    if count >= total or (reserved > 0 and count == 0):
        raise UserError(f"reserved: {expected}; {reserved} of {total} train images is {count}")
    return count


def check_reserved(reserved: int | float, numbers: str = "0 or more") -> str:
    """Refuse what is wrong with any train set; `numbers` are those of rows that are allowed.

    Returns:
        What is expected, for messages.
    """
    expected = f"expected a number of rows ({numbers}) or a share (0.0 up to, not including, 1.0)"
    if isinstance(reserved, bool) or not isinstance(reserved, int | float):
        raise UserError(f"reserved: {expected}, got {reserved!r}")
    share = isinstance(reserved, float)
    if not (math.isfinite(reserved) and reserved >= 0 and (not share or reserved < 1)):
        raise UserError(f"reserved: {expected}, got {reserved}")
    return expected


@dataclass(frozen=True)
class Limit:
    """At most `count` rows (all if None), stratified by class and seeded: for quick studies."""

    count: int | None = None
    seed: int = 0

    def rows(self, labels: Tensor) -> Tensor:
        """int64 rows of the labels (N,), ascending."""
        count = len(labels) if self.count is None else min(self.count, len(labels))
        return stratified(labels, count, torch.Generator().manual_seed(self.seed))
