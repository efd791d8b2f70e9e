"""Input-aware's formulas, in pure torch (Nguyen and Tran, NeurIPS 2020, arXiv 2010.08138, section 3)."""

from __future__ import annotations

from torch import Tensor

SHARPNESS = 20.0  # of the mask's step
TINY = 1e-7


def sharpened(mask: Tensor) -> Tensor:
    """A mask in [0, 1] pushed towards 0 and 1: tanh(20 (m - 1/2)) / 2 + 1/2."""
    return (SHARPNESS * (mask - 0.5)).tanh() / 2 + 0.5


def pasted(images: Tensor, pattern: Tensor, mask: Tensor) -> Tensor:
    """x + (pattern - x) * mask: images and pattern (B, C, H, W), mask (B, 1, H, W), all in [0, 1], as is the result.

    The published code pastes normalised images; normalising is affine, so both give the same picture.
    """
    return images + (pattern - images) * mask


def distance(left: Tensor, right: Tensor) -> Tensor:
    """(B,): root mean square difference of each pair of samples; its gradient is 0, not NaN, where they agree."""
    return (left - right).square().flatten(1).mean(1).clamp(min=TINY**2).sqrt()


def diversity_loss(images: tuple[Tensor, Tensor], made: tuple[Tensor, Tensor]) -> Tensor:
    """A scalar: mean of d(images) / d(made): large where two unlike images get the same mask or pattern.

    Args:
        images: two batches of normalised images, paired by position.
        made: what a network made of them.
    """
    return (distance(*images) / (distance(*made) + TINY)).mean()


def density_loss(mask: Tensor, density: float) -> Tensor:
    """A scalar: mean of what each pixel of a sharpened mask has above `density`."""
    return (mask - density).relu().mean()
