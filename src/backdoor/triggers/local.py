"""Triggers that change only small rectangles: the rest of the batch is copied, never converted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from backdoor.errors import UserError
from backdoor.triggers.base import Shape, Trigger, fit_channels, shape_of, to_levels
from backdoor.triggers.chunks import one_thread, rows_at_once

ANCHORS = ("top_left", "top_right", "bottom_left", "bottom_right", "center")


@dataclass(frozen=True)
class Piece:
    """One rectangle of a trigger.

    Attributes:
        top: its first row. left: its first column.
        pattern: float32 (C or 1, h, w), levels.
        weight: float32 (h, w), in [0, 1].
    """

    top: int
    left: int
    pattern: Tensor
    weight: Tensor

    def of(self, images: Tensor) -> Tensor:
        """The view of (B, C, H, W) images which the piece covers."""
        height, width = self.weight.shape
        return images[..., self.top : self.top + height, self.left : self.left + width]


class Local(Trigger):
    """Base of triggers made of rectangles; subclasses write `pieces`, and `mix` if they do not blend."""

    def pieces(self, shape: Shape) -> list[Piece]:
        """The rectangles for images (C, H, W), on the CPU, non-overlapping.

        Raises:
            UserError: if they do not fit.
        """
        raise NotImplementedError

    def mix(self, x: Tensor, piece: Piece) -> Tensor:
        """(1 - weight) x + weight pattern, exact at weights 0 and 1. x: float32 (B, C, h, w), levels."""
        return torch.lerp(x, piece.pattern, piece.weight)

    def paint(self, x: Tensor, index: Tensor | None) -> Tensor:
        for piece in self._on(x):
            view = piece.of(x)
            view.copy_(self.mix(view, piece))
        return x

    def stamp(self, images: Tensor, index: Tensor | None) -> Tensor:
        if self.quantize and images.is_floating_point():
            return super().stamp(images, index)
        out = images.clone()
        for piece in self._on(images):
            view = piece.of(images)
            levels = to_levels(view)
            piece.of(out).copy_(self.finish(self.mix(levels, piece), levels, view))
        return out

    def write(self, images: Tensor, rows: Tensor, index: Tensor) -> None:
        for piece in self._on(images):
            covered = piece.of(images)  # only these pixels are read and written
            pixels, step = covered.numpy(), rows_at_once(covered)
            with one_thread():
                for some in rows.split(step):
                    where = some.numpy()
                    before = torch.from_numpy(pixels[where])
                    levels = to_levels(before)
                    pixels[where] = self.finish(self.mix(levels, piece), levels, before).numpy()

    def _on(self, images: Tensor) -> list[Piece]:
        """`pieces` for the shape and device of `images`, made once."""
        device = images.device
        return self._cached(
            images,
            lambda: [
                Piece(p.top, p.left, fit_channels(p.pattern, images.shape[1]).to(device), p.weight.to(device))
                for p in self.pieces(shape_of(images))
            ],
        )


def place(anchor: str, margin: int, size: tuple[int, int], shape: Shape) -> tuple[int, int]:
    """First row and column of a rectangle.

    Args:
        anchor: one of `ANCHORS`.
        margin: pixels kept free between the rectangle and the two borders of its corner.
        size: (h, w) of the rectangle, pixels.
        shape: (C, H, W) of the images.

    Raises:
        UserError: if the rectangle is larger than the image or is pushed out of it.
    """
    (height, width), (_, rows, columns) = size, shape
    if height > rows or width > columns:
        raise UserError(
            f"attack.trigger.size: expected a trigger that fits {rows}x{columns} images, got {height}x{width}"
            " pixels; choose a smaller size"
        )
    if anchor == "center":
        return (rows - height) // 2, (columns - width) // 2
    if height + margin > rows or width + margin > columns:
        raise UserError(
            f"attack.trigger.margin: expected a {height}x{width} trigger to stay inside {rows}x{columns}"
            f" images, got a margin of {margin} pixels; choose a smaller margin or size"
        )
    top = margin if anchor.startswith("top") else rows - height - margin
    left = margin if anchor.endswith("left") else columns - width - margin
    return top, left
