"""The formulas of D-ST/D-BR's sample distinguishment (Chen, Wu, Wang, NeurIPS 2022), in pure torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from backdoor.errors import UserError, suggest

TRANSFORMS = ("rotate", "affine", "flip", "none")


def centre_similarity(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Mean cosine of the class centres of a batch: the authors' "intra-class" loss, minimised in step 2 of SD.

    Args:
        features: float (B, D).
        labels: int64 (B,), as given, poisoned or not.

    Returns:
        sum over pairs i != j of cos(c_i, c_j), divided by K_b^2, K_b the classes in the batch; a scalar. Three equal
        centres give 2/3, orthogonal ones 0.
    """
    members = F.one_hot(labels, num_classes).to(features.dtype)
    counts = members.sum(0)
    centres = F.normalize((members.T @ features) / counts.clamp(min=1).unsqueeze(1), dim=1)
    here = counts.gt(0).to(features.dtype)
    cosines = (centres @ centres.T) * here.outer(here)
    return (cosines.sum() - cosines.diagonal().sum()) / here.sum().square()


def check_transforms(transforms: list[str]) -> None:
    """Raises UserError for an unknown transform, or if nothing would change."""
    for name in transforms:
        if name not in TRANSFORMS:
            raise UserError(f"transforms={transforms}: {suggest(str(name), TRANSFORMS)}")
    if not set(transforms) - {"none"}:
        raise UserError(f"transforms={transforms}: expected at least one that changes the image, as [rotate, affine]")


def transformed(images: Tensor, draws: Tensor, transforms: list[str], *, angle: float, shift: float) -> Tensor:
    """Each image under its own draw of the transforms, one after the other; nearest neighbour, black outside.

    Args:
        images: float (B, C, H, W).
        draws: float (B, 3) in [0, 1): of the angle and of the two shifts.
        transforms: `rotate` by U(-angle, angle) degrees around the centre, `affine`: a shift by U(-shift, shift) of
            either side, in whole pixels, `flip`: left to right, always.

    Returns:
        float (B, C, H, W). All is read in one go, as whole-pixel shifts and rotations do not blur each other; what one
        of them moves out of the image stays lost.
    """
    _, _, height, width = images.shape
    sides = torch.tensor([width, height], device=images.device)
    placed = grid_of(height, width, images)
    seen = torch.ones(placed.shape[:3], dtype=torch.bool, device=images.device)
    for name in reversed(transforms):  # from the result's pixels back to the source's
        if name == "affine":
            pixels = ((2 * draws[:, 1:] - 1) * shift * sides).round()
            placed = placed - pixels[:, None, None, :]
        elif name == "rotate":
            turn = (2 * draws[:, 0] - 1) * angle * math.pi / 180
            cos, sin = turn.cos()[:, None, None], turn.sin()[:, None, None]
            x, y = placed[..., 0], placed[..., 1]
            placed = torch.stack([cos * x - sin * y, sin * x + cos * y], 3)
        elif name == "flip":
            placed = placed * torch.tensor([-1.0, 1.0], device=images.device)
        seen &= (placed.abs() * 2 <= sides).all(3)
    found = F.grid_sample(images, placed * 2 / sides, mode="nearest", padding_mode="zeros", align_corners=False)
    return found * seen.unsqueeze(1)


def grid_of(height: int, width: int, like: Tensor) -> Tensor:
    """Centres of all pixels, in pixels from the middle of the image: float (B, H, W, 2), (x, y)."""
    y = torch.arange(height, device=like.device) - (height - 1) / 2
    x = torch.arange(width, device=like.device) - (width - 1) / 2
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([columns, rows], 2).expand(len(like), -1, -1, -1)


def feature_change(plain: Tensor, moved: Tensor) -> Tensor:
    """FCT: mean over the features of (f(x) - f(tau(x)))^2, float (B,)."""
    return (plain - moved).square().mean(1)
