"""Four corners that are added to the image, not painted over: the label-consistent attack's trigger."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from backdoor.checking.ranges import CountOrNone, Level
from backdoor.errors import UserError
from backdoor.triggers.base import Shape
from backdoor.triggers.local import Local, Piece
from backdoor.triggers.pattern import enlarge
from backdoor.triggers.settings import cell, number, whole

# Of both left corners; the right ones are its mirror image, so that a flip of the picture changes nothing.
LEFT = ((1.0, -1.0, -1.0), (-1.0, 1.0, -1.0), (1.0, -1.0, 1.0))


class AdditiveCorners(Local):
    """y = x + a S with a 3x3 pattern of signs S in every corner.

    Source: Turner, Tsipras, Madry, "Label-consistent backdoor attacks" (arXiv 1912.02771), whose trigger is added
    with a reduced amplitude to be less visible; signs and places as in BackdoorBench.

    Args:
        amplitude: a in levels; 255 is pure black and white, the paper goes down to 16.
        test_amplitude: a at test time; None: the same.
        margin: distance from the borders in cells of 1/32 of the image's side.

    Raises:
        UserError: for a number outside these limits.
    """

    def __init__(
        self, *, amplitude: Level = 255, test_amplitude: Level | None = None, margin: CountOrNone = 0, **rounding: Any
    ) -> None:
        super().__init__(**rounding)
        self.amplitude = number("amplitude", amplitude, 0, 255)
        self.test_amplitude = None if test_amplitude is None else number("test_amplitude", test_amplitude, 0, 255)
        self.margin = whole("margin", margin)

    def pieces(self, shape: Shape) -> list[Piece]:
        _, rows, columns = shape
        unit = cell(rows, columns)
        side, offset = 3 * unit, self.margin * unit
        if 2 * (side + offset) > min(rows, columns):
            raise UserError(
                f"attack.trigger: expected four {side}x{side} corners, {offset} pixels off the borders, to fit side by "
                f"side, got {rows}x{columns} images; choose larger images or a smaller margin"
            )
        left = self.amplitude * enlarge(torch.tensor(LEFT), (side, side))[None]
        weight = torch.ones(side, side)
        return [
            Piece(top, start, pattern, weight)
            for top in (offset, rows - side - offset)
            for start, pattern in ((offset, left), (columns - side - offset, left.flip(2)))
        ]

    def mix(self, x: Tensor, piece: Piece) -> Tensor:
        return x + piece.pattern

    def at_test(self) -> Self:
        if self.test_amplitude is None:
            return self
        return self._changed(amplitude=self.test_amplitude, test_amplitude=None)
