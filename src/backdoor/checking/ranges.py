"""Ranges of numbers, written where the types are: `ratio: Share`. A config is checked against both (`checking`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

# No setting needs a larger whole number, and torch cannot hold one.
LARGEST = 2**63 - 1


@dataclass(frozen=True)
class Range:
    """Marks an annotation: finite numbers within limits, `Annotated[float, Range(least=0, below=1)]`.

    Attributes:
        least, most: limits that are allowed themselves.
        above, below: limits that are not.
    """

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def holds(self, value: float) -> bool:
        """Whether the number lies within; NaN and the infinities never do.

        >>> Range(least=0, below=1).holds(1.0)
        False
        """
        return self.least <= value <= self.most and self.above < value < self.below

    def __str__(self) -> str:
        """What follows "a number".

        >>> str(Range(least=0, most=1)), str(Range(least=0, below=1))
        (' from 0 to 1', ' of at least 0 and below 1')
        """
        least, most, above, below = (math.isfinite(limit) for limit in (self.least, self.most, self.above, self.below))
        if least and most:
            return f" from {self.least:g} to {plain(self.most)}"
        if above and below:
            return f" between {self.above:g} and {self.below:g}, which are excluded"
        low = f" of at least {self.least:g}" if least else f" above {self.above:g}" if above else ""
        high = f" of at most {plain(self.most)}" if most else f" below {plain(self.below)}" if below else ""
        return f"{low} and{high}" if low and high else low + high


def plain(limit: float) -> str:
    """A limit as it is written: no exponent where all digits count."""
    return str(limit) if isinstance(limit, int) else f"{limit:g}"


Count = Annotated[int, Range(least=1)]
CountOrNone = Annotated[int, Range(least=0)]  # 0: none
Seed = Annotated[int, Range(least=0, most=LARGEST)]
Side = Annotated[int, Range(least=1, most=4096)]  # pixels
Number = Annotated[float, Range()]  # any but NaN and the infinities
NotNegative = Annotated[float, Range(least=0)]
Positive = Annotated[float, Range(above=0)]
Share = Annotated[float, Range(least=0, most=1)]
SomeShare = Annotated[float, Range(above=0, most=1)]  # not none
ProperShare = Annotated[float, Range(above=0, below=1)]  # neither none nor all
BelowOne = Annotated[float, Range(least=0, below=1)]
Momentum = BelowOne
Level = Annotated[float, Range(least=0, most=255)]  # of a pixel
SomeLevels = Annotated[float, Range(above=0, most=255)]
Angle = Annotated[float, Range(above=0, most=180)]  # degrees
AboveOne = Annotated[float, Range(above=1)]
Two = Annotated[int, Range(least=2)]  # or more
Cells = Sequence[Sequence[Level | Sequence[Level]]]  # rows of levels, or three channels of such rows
CellMask = Sequence[Sequence[Share | bool | Sequence[Share | bool]]]
# What a config holds that is neither a list nor a mapping.
Plain = str | int | float | bool | None
