"""WaNet's trigger: the whole image is bent a little, by one smooth field (Nguyen and Tran, ICLR 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from backdoor.checking.ranges import NotNegative, Seed, Share, Two
from backdoor.errors import UserError
from backdoor.triggers.base import Shape, Trigger
from backdoor.triggers.blend import GOLDEN
from backdoor.triggers.settings import number, one_of, whole

PADDINGS = ("zeros", "border", "reflection")
SPACES = ("raw", "normalised")


class Warp(Trigger):
    """Elastic warping: each pixel is read, bilinearly, from a place nearby that a smooth field names.

    Source: Nguyen, Tran, "WaNet - Imperceptible warping-based backdoor attack" (ICLR 2021, arXiv 2102.10369),
    section 3: control points P = s * U(-1, 1)^(k x k x 2) / mean|.|, upsampled bicubically, clipped to the image.
    The shift of a pixel is about s / 2 pixels at a control point, whatever the size of the image.

    A constant image is left as it is, except at the borders if `clamp` is off and `padding` is `zeros`.

    Args:
        points: k, control points along each side; 4 in the paper.
        strength: s; 0.5 in the paper. 0 is the identity.
        relative: grow the shift with the side, s * side / 32, so that it keeps its share of a larger image.
        seed: of the control points, drawn on the CPU.
        clamp: keep places inside the image, as the authors do; then nothing outside is ever read, and neither
            `padding` nor `space` matters.
        padding: what lies outside: `zeros`, `border` or `reflection`.
        space: whose zero `padding=zeros` means: `raw` paints black, `normalised` the data's mean colour, which is
            what a warp of normalised images (BackdoorBench) gives.
        mean: of each channel, in [0, 1]; needed by ``space=normalised``.
        noise: amplitude of additional offsets U(-1, 1) / side for each pixel and image, drawn from (seed, index);
            1 is the paper's noise mode (section 3), 0 the trigger itself.

    Attributes:
        control: float32 (1, 2, k, k), the control points divided by mean|.|: all that is needed to make the field
            again, so it is saved with the run.

    Raises:
        UserError: for a setting outside its limits.
    """

    control: Tensor

    def __init__(
        self,
        *,
        points: Two = 4,
        strength: NotNegative = 0.5,
        relative: bool = False,
        seed: Seed = 0,
        clamp: bool = True,
        padding: str = "zeros",
        space: str = "raw",
        mean: Sequence[Share] | None = None,
        noise: NotNegative = 0.0,
        **rounding: Any,
    ) -> None:
        super().__init__(**rounding)
        self.points, self.seed = whole("points", points, 2), whole("seed", seed)
        self.strength, self.noise = number("strength", strength, 0), number("noise", noise, 0)
        self.relative, self.clamp = bool(relative), bool(clamp)
        self.padding = one_of("padding", padding, PADDINGS)
        self.space = one_of("space", space, SPACES)
        self.mean = [number("mean", value, 0, 1) for value in mean] if mean is not None else None
        if self.space == "normalised" and self.mean is None:
            raise UserError(
                "attack.trigger.space=normalised: expected attack.trigger.mean, one value a channel, got null; "
                "set attack.trigger.mean=${data.mean}"
            )
        self.register_buffer("control", control_points(self.points, self.seed))

    def noisy(self, amplitude: float = 1.0) -> Self:
        """The noise mode of this very field: a warp that each image has to itself."""
        return self._changed(noise=number("noise", amplitude, 0))

    def field(self, height: int, width: int) -> Tensor:
        """Offsets float32 (1, H, W, 2), (x, y) in grid units, where the image reaches from -1 to 1."""
        smooth = F.interpolate(self.control.cpu(), size=(height, width), mode="bicubic", align_corners=True)
        growth = min(height, width) / 32 if self.relative else 1.0
        return self.strength * growth * smooth.permute(0, 2, 3, 1) / torch.tensor([width, height])

    def grid(self, height: int, width: int) -> Tensor:
        """Places that the pixels of an image are read from: float32 (1, H, W, 2)."""
        y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        return self._inside(torch.stack([x, y], 2) + self.field(height, width))

    def paint(self, x: Tensor, index: Tensor | None) -> Tensor:
        self.check_shape((x.shape[1], x.shape[2], x.shape[3]))
        if len(x) == 0:
            return x
        grid, _, _ = self._places(x)
        if self.noise:
            grid = self._inside(grid + self.jitter(x, index))
        zero = self._zero(x)
        x = x if zero is None else x - zero
        grid = grid.expand(len(x), -1, -1, -1)
        with torch.autocast(x.device.type, enabled=False):
            bent = F.grid_sample(x, grid, mode="bilinear", padding_mode=self.padding, align_corners=True)
        return bent if zero is None else bent.add_(zero)

    def stamp_some(self, images: Tensor, index: Tensor | None) -> Tensor:
        """The same pixels as by `paint`, bit by bit, twice as fast on a CPU where all images share one field.

        With one pixel of all images in a row, vector instructions add up rows; `grid_sample` gathers single numbers.
        """
        self.check_shape((images.shape[1], images.shape[2], images.shape[3]))
        if self.noise or not self.clamp or images.device.type != "cpu" or len(images) == 0:
            return super().stamp_some(images, index)
        _, positions, weights = self._places(images)
        rows = transposed(images.flatten(0, 1).flatten(1)).float()
        sums = F.embedding_bag(positions, rows, per_sample_weights=weights, mode="sum")
        return transposed(self._pixels(sums).to(torch.uint8)).view(images.shape)

    def jitter(self, x: Tensor, index: Tensor | None) -> Tensor:
        """Offsets of the noise mode: float32 (B, H, W, 2), uniform in +-noise / side, from (seed, index) alone."""
        if index is None:
            raise ValueError("index: expected int64 (B,), the rows in the original set, got None")
        height, width = x.shape[2:]
        draws = torch.empty(len(x), height, width, 2)
        for one, row in zip(draws, index.tolist(), strict=True):
            generator = torch.Generator().manual_seed((self.seed * GOLDEN + row) % 2**32)
            torch.rand(one.shape, generator=generator, out=one)
        return (self.noise * (2 * draws - 1) / torch.tensor([width, height])).to(x.device)

    def check_shape(self, shape: Shape) -> None:
        if min(shape[1:]) < self.points:
            raise UserError(
                f"attack.trigger.points={self.points}: expected at most the shorter side of the image, "
                f"{min(shape[1:])} pixels; lower it"
            )
        if self.space == "normalised" and self.mean is not None and len(self.mean) not in (1, shape[0]):
            raise UserError(
                f"attack.trigger.mean={self.mean}: expected one value for each of {shape[0]} channels, "
                f"got {len(self.mean)}"
            )

    def _places(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The grid for images like `x`, and its `taps`; made once."""

        def make() -> tuple[Tensor, Tensor, Tensor]:
            grid = self.grid(*x.shape[2:])
            positions, weights = taps(grid)
            return grid.to(x.device), positions.to(x.device), weights.to(x.device)

        return self._cached(x, make)

    def _inside(self, grid: Tensor) -> Tensor:
        return grid.clamp(-1, 1) if self.clamp else grid

    def _zero(self, x: Tensor) -> Tensor | None:
        """The levels that `padding=zeros` stands for, (1, C, 1, 1); None where that is 0."""
        if self.space == "raw" or self.mean is None:
            return None
        return torch.tensor(self.mean, device=x.device).mul(255).view(1, -1, 1, 1)


def control_points(points: Two, seed: Seed) -> Tensor:
    """float32 (1, 2, k, k): U(-1, 1), divided by its mean absolute value (WaNet, section 3)."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(1, 2, points, points, generator=generator) * 2 - 1
    return drawn / drawn.abs().mean()


def taps(grid: Tensor) -> tuple[Tensor, Tensor]:
    """The four pixels that each place inside an image lies between, and their bilinear weights.

    Args:
        grid: float32 (1, H, W, 2), in [-1, 1], the corners' centres being at -1 and 1.

    Returns:
        Positions int64 and weights float32, both (H * W, 4); a position is row * W + column.
    """
    height, width = grid.shape[1:3]
    x, y = ((grid[0, ..., axis] + 1) / 2 * (size - 1) for axis, size in enumerate((width, height)))
    left, top = x.floor().clamp(0, width - 2), y.floor().clamp(0, height - 2)
    right, down = x - left, y - top
    first = (top * width + left).long()
    weights = [(1 - right) * (1 - down), right * (1 - down), (1 - right) * down, right * down]
    positions = [first, first + 1, first + width, first + width + 1]
    return torch.stack(positions, 2).view(-1, 4), torch.stack(weights, 2).view(-1, 4)


def transposed(matrix: Tensor) -> Tensor:
    """(m, n) -> (n, m), contiguous, in a third of the time of `matrix.t().contiguous()` on a CPU.

    Shuffling m groups of n channels of one pixel is a transposition, and the one in torch with vector instructions.
    """
    rows, columns = matrix.shape
    size = matrix.numel()
    pixel = matrix.contiguous().as_strided((1, size, 1, 1), (size, 1, size, size))  # channels last
    return F.channel_shuffle(pixel, rows).view(columns, rows)
