"""A cartoon cat drawn with tensors, so that no picture has to be shipped."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

Colour = tuple[float, float, float]
Point = tuple[float, float]

WHITE: Colour = (255, 255, 255)
BLACK: Colour = (0, 0, 0)
PINK: Colour = (230, 14, 99)
YELLOW: Colour = (253, 211, 4)

SUPERSAMPLING = 4
STROKE = 0.03  # width of the outlines, share of the height
MIDDLE = 0.48  # the cat's axis, share of the width


def draw_kitty(height: int, width: int) -> Tensor:
    """Draw the mascot at 4x supersampling and average it down.

    The colours follow the statistics of the cartoon in the reference codes (73.1 % near-white, 13.5 %
    near-black, 10.2 % pink, a yellow dot; mean RGB (214.4, 191.8, 200.4)); the drawing is our own.

    Args:
        height: H, pixels.
        width: W, pixels.

    Returns:
        float32 (3, H, W), levels 0..255.
    """
    canvas = _Canvas.white(height * SUPERSAMPLING, width * SUPERSAMPLING)
    for side in (-1, 1):
        tip, inner, outer = (
            (0.04, MIDDLE + 0.27 * side),
            (0.18, MIDDLE + 0.03 * side),
            (0.37, MIDDLE + 0.30 * side),
        )
        canvas.outline(canvas.polygon(tip, inner, outer), PINK)
    body = ((0.55, 0.34), (0.55, 0.62), (0.90, 0.76), (0.90, 0.20))
    canvas.outline(canvas.polygon(*body), PINK)
    canvas.outline(canvas.ellipse((0.38, MIDDLE), (0.23, 0.31)), WHITE)
    canvas.fill(canvas.ellipse((0.455, MIDDLE), (0.018, 0.028)), YELLOW)
    for side in (-1, 1):
        canvas.fill(canvas.ellipse((0.37, MIDDLE + 0.13 * side), (0.045, 0.03)), BLACK)
        canvas.fill(canvas.ellipse((0.47, MIDDLE + 0.19 * side), (0.035, 0.045)), PINK)
        canvas.fill(canvas.stroke((0.53, MIDDLE), (0.50, MIDDLE + 0.08 * side), 0.015), BLACK)
        for rise in (-0.03, 0.03):
            near, far = MIDDLE + 0.26 * side, MIDDLE + 0.42 * side
            canvas.fill(canvas.stroke((0.46 + rise / 2, near), (0.46 + 2 * rise, far), 0.012), BLACK)
    return avg_pool2d(canvas.pixels[None], SUPERSAMPLING)[0]


@dataclass(frozen=True)
class _Canvas:
    """Pixels (3, H, W) and their centres as shares of the sides, (H, 1) and (1, W).

    A shape is a tensor of depths (H, W): above 0 inside, in shares of the side, as far as the border is off.
    """

    pixels: Tensor
    rows: Tensor
    columns: Tensor

    @staticmethod
    def white(height: int, width: int) -> _Canvas:
        rows = (torch.arange(height)[:, None] + 0.5) / height
        columns = (torch.arange(width)[None] + 0.5) / width
        return _Canvas(torch.full((3, height, width), 255.0), rows, columns)

    def ellipse(self, centre: Point, radii: Point) -> Tensor:
        distance = ((self.rows - centre[0]) / radii[0]).square() + ((self.columns - centre[1]) / radii[1]).square()
        return (1 - distance.sqrt()) * min(radii)

    def polygon(self, *corners: Point) -> Tensor:
        """A convex polygon, its corners in either sense of rotation."""
        edges = [self._beside(a, b) for a, b in zip(corners, (*corners[1:], corners[0]), strict=True)]
        depth = torch.stack(edges)
        return torch.maximum(depth.amin(0), (-depth).amin(0))

    def stroke(self, start: Point, end: Point, thickness: float) -> Tensor:
        """A line segment with square ends."""
        mean = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
        half = ((end[0] - start[0]) / 2, (end[1] - start[1]) / 2)
        length = (half[0] ** 2 + half[1] ** 2) ** 0.5
        along = ((self.rows - mean[0]) * half[0] + (self.columns - mean[1]) * half[1]) / length
        return torch.minimum(length - along.abs(), thickness / 2 - self._beside(start, end).abs())

    def fill(self, depth: Tensor, colour: Colour) -> None:
        torch.where(depth > 0, torch.tensor(colour)[:, None, None], self.pixels, out=self.pixels)

    def outline(self, depth: Tensor, colour: Colour) -> None:
        """Fill, with a black line inside the border."""
        self.fill(depth, BLACK)
        self.fill(depth - STROKE, colour)

    def _beside(self, a: Point, b: Point) -> Tensor:
        """Signed distance (H, W) from the line through a and b."""
        down, right = b[0] - a[0], b[1] - a[1]
        cross = (self.rows - a[0]) * right - (self.columns - a[1]) * down
        return cross / (down**2 + right**2) ** 0.5
