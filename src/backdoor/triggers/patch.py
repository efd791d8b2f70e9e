"""Patch triggers: y = (1 - a M) x + a M P with a small pattern P and a mask M."""

from __future__ import annotations

from typing import Any

import torch

from backdoor.checking.ranges import CellMask, Cells, CountOrNone, Level, Positive, Share
from backdoor.errors import UserError
from backdoor.triggers.base import Shape
from backdoor.triggers.local import ANCHORS, Local, Piece, place
from backdoor.triggers.pattern import as_pattern, cells_to_pixels, enlarge, scaled_to
from backdoor.triggers.picture import RESIZES, read_picture, resize_picture
from backdoor.triggers.settings import cell, number, one_of, pixels, side, whole

# The 3x3 checker of BadNets (Gu et al., 2017) as ABL ships it: asymmetric, 4 white and 5 black cells.
GRID = ((0, 0, 255), (0, 255, 0), (255, 0, 255))


class Patch(Local):
    """A pattern of cells in a corner or the centre.

    Args:
        pattern: levels 0..255, (h, w) for all channels alike or (3, h, w) for RGB.
        mask: (h, w), in [0, 1]; None covers the whole pattern. Black is a colour: nothing is implied.
        anchor: top_left, top_right, bottom_left, bottom_right or center.
        margin: distance from the borders, in cells (1/32 of the image's side, rounded, at least 1 pixel).
        size: longer side of the pattern, pixels or (below 1) a share of the image's side; None makes each
            cell of the pattern 1/32 of the side, so that the pattern keeps its share of the area.
        alpha: opacity in [0, 1].

    Raises:
        UserError: for a pattern, mask or number outside these limits.
    """

    def __init__(
        self,
        pattern: Cells = GRID,
        *,
        mask: CellMask | None = None,
        anchor: str = "bottom_right",
        margin: CountOrNone = 0,
        size: Positive | None = None,
        alpha: Share = 1.0,
        **rounding: Any,
    ) -> None:
        super().__init__(**rounding)
        self.pattern = as_pattern("pattern", pattern, 255)
        height, width = self.pattern.shape[1:]
        self.mask = torch.ones(height, width) if mask is None else as_pattern("mask", mask, 1)[0]
        if self.mask.shape != (height, width):
            raise UserError(
                f"attack.trigger.mask: expected {height}x{width} like the pattern, got"
                f" {'x'.join(map(str, self.mask.shape))}; give one number a cell"
            )
        self.anchor = one_of("anchor", anchor, ANCHORS)
        self.margin = whole("margin", margin)
        self.size = None if size is None else side("size", size)
        self.alpha = number("alpha", alpha, 0, 1)

    def pieces(self, shape: Shape) -> list[Piece]:
        size = cells_to_pixels(self.mask.shape, self.size, shape)
        top, left = place(self.anchor, self.margin * cell(*shape[1:]), size, shape)
        return [Piece(top, left, enlarge(self.pattern, size), self.alpha * enlarge(self.mask, size))]


class Square(Local):
    """A solid square, by default white, with the side int(0.1 H): 3 at 32, 6 at 64, 22 at 224 pixels.

    Source: the square trigger of ABL and D-BR, which lies 1 pixel off the border at 32x32 (0 in D-BR's
    ImageNet version).

    Args:
        size: side in pixels or, below 1, as a share of the image's side.
        margin: distance from the borders in cells of 1/32 of the image's side.
        value: level 0..255.
        anchor, alpha: see `Patch`.

    Raises:
        UserError: for a number outside these limits.
    """

    def __init__(
        self,
        *,
        size: Positive = 0.1,
        margin: CountOrNone = 1,
        value: Level = 255,
        anchor: str = "bottom_right",
        alpha: Share = 1.0,
        **rounding: Any,
    ) -> None:
        super().__init__(**rounding)
        self.size = side("size", size)
        self.margin = whole("margin", margin)
        self.value = number("value", value, 0, 255)
        self.anchor = one_of("anchor", anchor, ANCHORS)
        self.alpha = number("alpha", alpha, 0, 1)

    def pieces(self, shape: Shape) -> list[Piece]:
        length = pixels(self.size, min(shape[1:]))
        top, left = place(self.anchor, self.margin * cell(*shape[1:]), (length, length), shape)
        full = torch.ones(length, length)
        return [Piece(top, left, full[None] * self.value, full * self.alpha)]


class FourCorners(Local):
    """A pattern in the bottom right and its mirror images in the other corners.

    Source: the label-consistent attack (Turner et al., 2019) as ABL and D-BR use it: flush with the bottom
    and right borders, but 1 pixel off the top and left ones.

    Args:
        pattern: levels 0..255, (h, w) or (3, h, w), as it stands in the bottom right.
        margin: distance from the top and left borders in cells of 1/32 of the image's side.
        size, alpha: see `Patch`.

    Raises:
        UserError: for a pattern or number outside these limits.
    """

    def __init__(
        self,
        pattern: Cells = GRID,
        *,
        margin: CountOrNone = 1,
        size: Positive | None = None,
        alpha: Share = 1.0,
        **rounding: Any,
    ) -> None:
        super().__init__(**rounding)
        self.pattern = as_pattern("pattern", pattern, 255)
        self.margin = whole("margin", margin)
        self.size = None if size is None else side("size", size)
        self.alpha = number("alpha", alpha, 0, 1)

    def pieces(self, shape: Shape) -> list[Piece]:
        _, rows, columns = shape
        height, width = cells_to_pixels(self.pattern.shape[1:], self.size, shape)
        offset = self.margin * cell(rows, columns)
        if 2 * height + offset > rows or 2 * width + offset > columns:
            raise UserError(
                f"attack.trigger.size: expected four patches side by side in {rows}x{columns} images, got"
                f" {height}x{width} pixels each, {offset} off the border; choose a smaller size or margin"
            )
        pattern = enlarge(self.pattern, (height, width))
        weight = torch.full((height, width), self.alpha)
        return [
            Piece(top, left, pattern.flip(flips), weight)
            for top, left, flips in (
                (offset, offset, (1, 2)),
                (offset, columns - width, (1,)),
                (rows - height, offset, (2,)),
                (rows - height, columns - width, ()),
            )
        ]


class ImagePatch(Local):
    """An image file as a patch; its alpha channel, if it has one, is the mask.

    Args:
        path: the file, anything Pillow reads.
        size: longer side, pixels or (below 1) a share of the image's side; the aspect ratio is kept.
        resize: bilinear, bicubic or nearest; the first two with antialiasing.
        anchor, margin, alpha: see `Patch`.

    Raises:
        UserError: if the file cannot be read or a setting is outside its limits.
    """

    def __init__(
        self,
        path: str,
        *,
        size: Positive = 0.2,
        anchor: str = "bottom_right",
        margin: CountOrNone = 0,
        alpha: Share = 1.0,
        resize: str = "bicubic",
        **rounding: Any,
    ) -> None:
        super().__init__(**rounding)
        self.picture = read_picture(path)
        self.size = side("size", size)
        self.anchor = one_of("anchor", anchor, ANCHORS)
        self.margin = whole("margin", margin)
        self.alpha = number("alpha", alpha, 0, 1)
        self.resize = one_of("resize", resize, RESIZES)

    def pieces(self, shape: Shape) -> list[Piece]:
        size = scaled_to(self.picture.shape[1:], pixels(self.size, min(shape[1:])))
        top, left = place(self.anchor, self.margin * cell(*shape[1:]), size, shape)
        pattern, weight = resize_picture(self.picture, size, self.resize, antialias=True)
        return [Piece(top, left, pattern, self.alpha * weight)]
