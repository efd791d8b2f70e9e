"""The shapes inside which a trigger is optimised, drawn here."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from backdoor.checking.ranges import CountOrNone, Positive
from backdoor.triggers.base import Shape
from backdoor.triggers.local import ANCHORS, place
from backdoor.triggers.settings import cell, one_of, pixels, side, whole

FORMS = ("disc", "square")


@dataclass(frozen=True)
class Mask:
    """Where the trigger may be.

    Attributes:
        form: `disc` or `square`.
        size: its diameter or side: pixels, or below 1 a share of the image's side.
        anchor: top_left, top_right, bottom_left, bottom_right or center.
        margin: distance from the borders, in cells of 1/32 of the image's side.

    Raises:
        UserError: for a setting outside these limits.
    """

    form: str = "disc"
    size: Positive = 0.3
    anchor: str = "bottom_right"
    margin: CountOrNone = 1

    def __post_init__(self) -> None:
        one_of("mask.form", self.form, FORMS)
        one_of("mask.anchor", self.anchor, ANCHORS)
        side("mask.size", self.size)
        whole("mask.margin", self.margin)

    def draw(self, shape: Shape) -> Tensor:
        """bool (H, W) for images (C, H, W).

        Raises:
            UserError: if it does not fit.
        """
        _, height, width = shape
        length = pixels(self.size, min(height, width))
        top, left = place(self.anchor, self.margin * cell(height, width), (length, length), shape)
        away = (torch.arange(length) - (length - 1) / 2).square()
        inside = away[:, None] + away <= (length / 2) ** 2 if self.form == "disc" else torch.ones(length, length).bool()
        mask = torch.zeros(height, width, dtype=torch.bool)
        mask[top : top + length, left : left + length] = inside
        return mask
