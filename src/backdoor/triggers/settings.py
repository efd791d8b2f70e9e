"""Checks of what a user may write under `attack.trigger`; each failure is one line."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from backdoor.errors import UserError, suggest


def one_of(key: str, value: Any, choices: Iterable[str]) -> str:
    """`value` if it is one of `choices`.

    Raises:
        UserError: for any other value, with the nearest choice.
    """
    names = list(choices)
    if value not in names:
        raise UserError(f"attack.trigger.{key}: unknown value {value!r}; {suggest(str(value), names)}")
    return str(value)


def number(key: str, value: Any, low: float, high: float = math.inf) -> float:
    """`value` as a finite float in [low, high].

    Raises:
        UserError: if it is not a number or lies outside.
    """
    try:
        result = float(value)
    except (TypeError, ValueError):
        result = math.nan
    if not (low <= result <= high and math.isfinite(result)):
        limits = f"from {low:g} to {high:g}" if math.isfinite(high) else f"of at least {low:g}"
        raise UserError(f"attack.trigger.{key}: expected a number {limits}, got {value!r}; change it")
    return result


def whole(key: str, value: Any, low: int = 0) -> int:
    """`value` as an int of at least `low`.

    Raises:
        UserError: if it is not a whole number or is smaller.
    """
    result = number(key, value, low)
    if result != int(result):
        raise UserError(f"attack.trigger.{key}: expected a whole number, got {value!r}; round it")
    return int(result)


def side(key: str, value: Any) -> float:
    """A length: below 1 a share of the image's side, from 1 on whole pixels.

    Raises:
        UserError: if it is not above 0, or a fraction of a pixel.
    """
    result = number(key, value, 0)
    if result == 0 or (result >= 1 and result != int(result)):
        raise UserError(
            f"attack.trigger.{key}: expected a share of the image's side below 1 or a whole number of pixels,"
            f" got {value!r}; write for example 0.1 or 3"
        )
    return result


def pixels(length: float, image_side: int) -> int:
    """The length of `side` in pixels of an image: int(length * side) for a share, at least 1."""
    return max(1, int(length * image_side)) if length < 1 else int(length)


def cell(height: int, width: int) -> int:
    """Pixels of one pattern cell: max(1, side / 32 rounded half up), so patterns keep their share."""
    return max(1, math.floor(min(height, width) / 32 + 0.5))
