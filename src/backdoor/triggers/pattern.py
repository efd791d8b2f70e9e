"""Small patterns of cells: from a user's numbers to blocks of pixels."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from typing import Any

import torch
from torch import Tensor

from backdoor.errors import UserError
from backdoor.triggers.base import Shape
from backdoor.triggers.settings import cell, pixels


def as_pattern(key: str, values: Rows[Any], high: float) -> Tensor:
    """Nested lists (h, w) or (3, h, w) in [0, high] as float32 (1 or 3, h, w).

    Raises:
        UserError: for another shape or range.
    """
    try:
        pattern = torch.as_tensor(values, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"attack.trigger.{key}: expected rows of numbers, all of one length, got {values!r}; mend it"
        ) from error
    pattern = pattern[None] if pattern.ndim == 2 else pattern
    if pattern.ndim != 3 or len(pattern) not in (1, 3) or pattern.numel() == 0:
        raise UserError(
            f"attack.trigger.{key}: expected rows of numbers (h, w) or three such channels (3, h, w), got"
            f" shape {tuple(pattern.shape)}; mend it"
        )
    if not bool(((pattern >= 0) & (pattern <= high)).all()):
        raise UserError(f"attack.trigger.{key}: expected numbers from 0 to {high:g}, got {values!r}; mend it")
    return pattern


def enlarge(pattern: Tensor, size: tuple[int, int]) -> Tensor:
    """(..., h, w) cells as solid blocks on (..., H, W) pixels, by nearest neighbour."""
    rows, columns = ((torch.arange(new) * old) // new for new, old in zip(size, pattern.shape[-2:], strict=True))
    return pattern[..., rows[:, None], columns]


def cells_to_pixels(cells: tuple[int, ...], size: float | None, shape: Shape) -> tuple[int, int]:
    """(h, w) in pixels of a pattern of (h, w) cells on (C, H, W) images."""
    height, width = cells
    if size is None:
        return height * cell(*shape[1:]), width * cell(*shape[1:])
    return scaled_to(cells, pixels(size, min(shape[1:])))


def scaled_to(size: tuple[int, ...], longer: int) -> tuple[int, int]:
    """(h, w) with the same aspect ratio and the given longer side, each at least 1."""
    height, width = size
    return max(1, round(height * longer / max(size))), max(1, round(width * longer / max(size)))
