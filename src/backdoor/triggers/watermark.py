"""The Trojan watermark: a small colour patch that is added, not painted over."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from backdoor.checking.ranges import Cells, CountOrNone, Positive, Seed, Share
from backdoor.errors import UserError
from backdoor.triggers.base import Shape
from backdoor.triggers.local import ANCHORS, Local, Piece, place
from backdoor.triggers.pattern import as_pattern, cells_to_pixels, enlarge
from backdoor.triggers.settings import cell, number, one_of, side, whole

# R, G and B of the "trojanTrigger" in the codes of ABL and D-BR (after Liu et al., NDSS 2018).
TROJAN = (
    ((207.35, 175.36, 29.36), (79.37, 137.37, 248.36), (131.36, 6.36, 246.35)),
    ((131.35, 243.36, 232.36), (8.37, 0.0, 113.36), (40.36, 145.36, 250.35)),
    ((181.35, 120.35, 179.36), (126.36, 32.35, 146.36), (4.36, 61.36, 246.35)),
)


class Watermark(Local):
    """y = x + a P with a 3x3x3 patch P, by default at rows and columns 25-27 of 32.

    The reference code casts the sum to uint8, which wraps modulo 256 on x86 and is undefined in C. The
    default here saturates; ``overflow=wrap`` with ``rounding=trunc`` repeats the reference on every machine.

    Args:
        pattern: levels 0..255, (h, w) or (3, h, w); None: the reference numbers, or drawn if `seed` is given.
        seed: draws the pattern (3, 3, 3) uniformly from [0, 250] instead.
        alpha: strength a, in [0, 1].
        anchor: see `Patch`.
        margin: distance from the borders in cells of 1/32 of the image's side.
        size: see `Patch`.

    Raises:
        UserError: for a pattern or number outside these limits.
    """

    def __init__(
        self,
        pattern: Cells | None = None,
        *,
        seed: Seed | None = None,
        alpha: Share = 1.0,
        anchor: str = "bottom_right",
        margin: CountOrNone = 4,
        size: Positive | None = None,
        **rounding: Any,
    ) -> None:
        super().__init__(**rounding)
        self.seed = None if seed is None else whole("seed", seed)
        if pattern is not None and self.seed is not None:
            raise UserError(f"attack.trigger.seed: expected null beside a pattern, got {seed}; drop one of them")
        fixed = as_pattern("pattern", TROJAN if pattern is None else pattern, 255)
        self.pattern = fixed if self.seed is None else drawn(self.seed)
        self.alpha = number("alpha", alpha, 0, 1)
        self.anchor = one_of("anchor", anchor, ANCHORS)
        self.margin = whole("margin", margin)
        self.size = None if size is None else side("size", size)

    def pieces(self, shape: Shape) -> list[Piece]:
        size = cells_to_pixels(self.pattern.shape[1:], self.size, shape)
        top, left = place(self.anchor, self.margin * cell(*shape[1:]), size, shape)
        return [Piece(top, left, enlarge(self.pattern, size), torch.full(size, self.alpha))]

    def mix(self, x: Tensor, piece: Piece) -> Tensor:
        return x + piece.weight * piece.pattern


def drawn(seed: int) -> Tensor:
    """Uniform float32 (3, 3, 3) in [0, 250] from `seed`."""
    return 250 * torch.rand(3, 3, 3, generator=torch.Generator().manual_seed(seed))
